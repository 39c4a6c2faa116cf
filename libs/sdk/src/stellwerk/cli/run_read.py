"""`stellwerk run`: what runs logged, and which runs there are."""

import sys
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import chart, output
from stellwerk.cli.base import Session
from stellwerk.cli.run import run, show_runs
from stellwerk.log_text import Plain


@run.command(
    "search",
    example="stellwerk run search \"metrics.accuracy > 0.9 AND params.model = 'mlp'\" "
    "--order-by 'metrics.accuracy desc' --metric accuracy",
)
@click.argument("filter_", metavar="[FILTER]", default="")
@click.option("--order-by", default="", help='For example "metrics.loss asc".  [default: newest first]')
@click.option("--metric", "metrics", multiple=True, help="Show its last value. Repeatable.")
@click.option("--archived", is_flag=True, help="Search archived runs too.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
def search(
    session: Session, filter_: str, order_by: str, metrics: tuple[str, ...], archived: bool, limit: int
) -> None:
    """Find runs by what is known of them.

    By parameters, metrics, tags and attributes; docs/search.md has the language.
    """
    from stellwerk import states

    found = list(
        session.workspace().runs.search(
            filter_, order_by=order_by, metrics=metrics, include_archived=archived, limit=limit
        )
    )
    if session.json:
        output.document(
            [{"run": output.to_json(item.run.message), "metrics": item.metrics} for item in found]
        )
        return
    rows: list[list[Any]] = []
    for item in found:
        message = item.run.message
        shown = [f"{item.metrics[name]:.6g}" if name in item.metrics else "" for name in metrics]
        created = output.when(message.create_time)
        rows.append([item.run.id, states.run(message), names.last(message.experiment), created, *shown])
    output.table(("RUN", "STATE", "EXPERIMENT", "CREATED", *(name.upper() for name in metrics)), rows)


@run.command("compare", example="stellwerk run compare RUN-1 RUN-2 RUN-3")
@click.argument("runs", metavar="RUN RUN ...", nargs=-1, required=True)
@click.option("--all", "include_equal", is_flag=True, help="Show what is equal everywhere too.")
def compare(session: Session, runs: tuple[str, ...], include_equal: bool) -> None:
    """Show what differs between runs.

    Parameters, metrics, code, environment, data.
    """
    found = session.workspace().runs.compare(runs, include_equal=include_equal)
    if session.json:
        output.document(output.to_json(found))
        return
    header = ("GROUP", "KEY", *(names.last(item.name) for item in found.runs))
    output.table(header, [(row.group, row.key, *row.values) for row in found.rows])


@run.command("children", example="stellwerk run children RUN --deep")
@click.argument("name", metavar="RUN")
@click.option("--deep", is_flag=True, help="Show the runs below those too, as a tree.")
def children(session: Session, name: str, deep: bool) -> None:
    """List the runs directly below a run."""
    above = session.workspace().runs.get(name)
    found = above.children(deep=deep)
    depths = {above.name: -1}
    for item in found:
        depths[item.name] = depths[item.message.parent_run] + 1
    show_runs(session, (item.message for item in found), depths)


@run.command("records", example="stellwerk run records RUN confusion")
@click.argument("name", metavar="RUN")
@click.argument("record", default="")
def records(session: Session, name: str, record: str) -> None:
    """Show lists, rows, tables, pictures and charts that a run logged."""
    from stellwerk import values

    found = session.workspace().runs.get(name).records(record)
    if session.json:
        output.document([item._asdict() | {"value": values.plain(item.value)} for item in found])
        return
    rows = [(item.name, item.kind, item.step, item.artifact or _short(item.value)) for item in found]
    output.table(("NAME", "KIND", "STEP", "VALUE"), rows)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


@run.command("logs", example="stellwerk run logs RUN --tail 20 -f")
@click.argument("name", metavar="RUN")
@click.option("--log", default="", help="Path of the log.  [default: what the command printed]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
@click.option("--tail", type=click.IntRange(0), default=0, help="Only the last so many lines.")
@click.option("--times", is_flag=True, help="Begin each line with the time when the node read it (UTC).")
@click.option("--search", default="", metavar="TEXT", help="Only lines that hold TEXT.")
@click.option("--raw", is_flag=True, help="Keep colours and progress bars in pipes and files too.")
@click.option("--list", "listed", is_flag=True, help="List the logs instead.")
def logs(
    session: Session, name: str, log: str, follow: bool, search: str, raw: bool, listed: bool, **options: Any
) -> None:
    """Print a log."""
    found = session.workspace().runs.get(name)
    if listed:
        output.listing(
            found.logs(),
            session.json,
            ("LOG", "SIZE"),
            lambda item: (item.log, output.size(item.size_bytes)),
        )
        return
    if search:
        _show_lines(session, found.search_log(search, log=log), options["times"])
        return
    pieces = found.log(log=log, follow=follow, tail=options["tail"], times=options["times"])
    if session.json:
        output.document({"log": log or "user_logs/std_log.txt", "text": "".join(pieces)})
        return
    plain = None if raw or sys.stdout.isatty() else Plain()
    empty = True
    for piece in pieces:
        click.echo(plain.feed(piece) if plain is not None else piece, nl=False, color=True)
        empty = False
    if plain is not None:
        click.echo(plain.end(), nl=False)
    if empty:
        click.echo("The log is empty; `--list` shows the others of the run.", err=True)


def _show_lines(session: Session, lines: Any, times: bool) -> None:
    from stellwerk.log_text import Stamper, clean

    if session.json:
        output.document([output.to_json(line) for line in lines])
        return
    for line in lines:
        text = clean(line.text)
        click.echo(Stamper().stamp(text, line.time) if times else text)


@run.command("metrics", example="stellwerk run metrics RUN loss --max-points 50")
@click.argument("name", metavar="RUN")
@click.argument("metric", required=False)
@click.option(
    "--sampling",
    type=click.Choice(["exact", "lttb", "min-max"]),
    help="Make the history shorter: keep the look of the line, or its extremes.  [default: exact]",
)
@click.option("--max-points", type=click.IntRange(3, 10_000), help="Points after sampling.  [default: 1000]")
def metrics(
    session: Session, name: str, metric: str | None, sampling: str | None, max_points: int | None
) -> None:
    """Summarise the metrics of a run, or print the points of one."""
    found = session.workspace().runs.get(name)
    if metric is None:
        _show_summaries(session, found)
        return
    if sampling in (None, "exact") and max_points is None:
        points = found.history(metric)
    else:
        sampled = found.histories(metric, method=sampling or "lttb", max_points=max_points or 0)
        points = sampled.get(metric, [])
    if session.json:
        output.document([point._asdict() for point in points])
        return
    output.table(("STEP", "TIME", "VALUE"), [(p.step, p.time_ms, f"{p.value:.10g}") for p in points])


def _show_summaries(session: Session, found: Any) -> None:
    items = found.metrics()
    lines = {}
    if items and not session.json:
        names_ = [item.metric for item in items[:100]]
        lines = {
            name: chart.spark(points, 30) for name, points in found.histories(*names_, max_points=300).items()
        }
    output.listing(
        items,
        session.json,
        ("METRIC", "COUNT", "MIN", "MAX", "LAST", "STEP", ""),
        lambda item: (
            item.metric,
            item.count,
            f"{item.min:.6g}",
            f"{item.max:.6g}",
            f"{item.last:.6g}",
            item.last_step,
            lines.get(item.metric, ""),
        ),
    )
