"""`stellwerk events|trace|compute`: what happened, and where."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import output, subscribers
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Command, Group, Session
from stellwerk.cli.positions import Position
from stellwerk.cli.times import Start

_BAR_WIDTH = 30


@click.group(cls=Group)
def events() -> None:
    """The journal: every transition of every resource."""


events.add_command(subscribers.credentials)


@events.command("watch", example="stellwerk events watch --since 10m --type 'stellwerk.runs.*'")
@click.option(
    "--since",
    type=Start(),
    default=0,
    help="First event: a sequence, or 10m, 2h, a date.  [default: the next]",
)
@click.option("--type", "pattern", default="", help="Pattern of the type, for example 'stellwerk.runs.*'.")
@click.option("--resource", default="", help="Only this resource and what lies below it: runs/RUN.")
@click.option("--limit", type=click.IntRange(1), help="End after so many events.")
@click.option(
    "--resume",
    type=PathType(dir_okay=False),
    help="Keep the position in this file, and go on there the next time.",
)
def events_watch(
    session: Session,
    since: int | datetime,
    pattern: str,
    resource: str,
    limit: int | None,
    resume: Path | None,
) -> None:
    """Print events as they come.

    Until Ctrl-C; with --output json one CloudEvent a line. Each line begins with the event's sequence;
    restarts of the platform lose and repeat nothing.
    """
    position = Position(resume) if resume is not None else None
    kept = position.read() if position is not None else None
    watched = session.workspace().events.watch(
        since=since if kept is None else kept,
        type=pattern,
        resource=resource,
        on_start=position.keep if position is not None else None,
    )
    for count, event in enumerate(watched, 1):
        _print_event(session, event)
        if position is not None:
            sys.stdout.flush()
            position.keep(event.sequence + 1)
        if count == limit:
            return


@events.command("list", example="stellwerk events list --since 2h --resource runs/RUN")
@click.option(
    "--since", type=Start(), default=0, help="From here on: a sequence, or 10m, 2h, a date.  [default: all]"
)
@click.option("--resource", default="", help="Only this resource: runs/RUN.")
@click.option("--trace", "trace_id", default="", help="Only events of this trace.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--tail", type=click.IntRange(1), help="Only the newest so many, in order.")
def events_list(
    session: Session, since: int | datetime, resource: str, trace_id: str, limit: int, tail: int | None
) -> None:
    """List events, oldest first."""
    found = session.workspace().events.list(
        resource=resource, trace_id=trace_id, since=since, limit=tail or limit, newest=tail is not None
    )
    if session.json:
        output.document([_cloud_event(event) for event in found])
        return
    for event in found:
        _print_event(session, event)
    if len(found) == limit and tail is None:
        click.echo(f"These are the oldest {limit}; --limit shows more, --tail the newest.", err=True)


@events.command("dead-letters", example="stellwerk events dead-letters")
@click.option("--replay", type=click.IntRange(1), metavar="SEQUENCE", help="Hand this one out once more.")
def events_dead_letters(session: Session, replay: int | None) -> None:
    """List events that a consumer failed to handle, or replay one."""
    client = session.client()
    if replay is not None:
        client.replay_dead_letter(replay)
        click.echo(f"Replayed {replay}.", err=True)
        return
    output.listing(
        client.dead_letters(),
        session.json,
        ("SEQUENCE", "CONSUMER", "TIME", "ERROR"),
        lambda item: (item.sequence, item.consumer, output.when(item.time), item.error),
    )


def _cloud_event(event: Any) -> Any:
    return json.loads(event.cloud_event)


def _print_event(session: Session, event: Any) -> None:
    cloud_event = _cloud_event(event)
    if session.json:
        output.line({"sequence": event.sequence, **cloud_event})
        return
    data = cloud_event.get("data") or {}
    reason = data.get("reason") or {}
    kind = event.type.removeprefix("stellwerk.").removesuffix(".v1")
    resource = event.resource.split("/", 2)[-1]
    parts = (reason.get("code"), str(reason.get("message") or "").partition("\n")[0])
    why = ": ".join(part for part in parts if part)
    click.echo(f"{event.sequence:>7}  {output.when(event.time)}  {kind:<36}  {resource}  {why}".rstrip())


@click.command(cls=Command, example="stellwerk trace RUN")
@click.argument("run", metavar="RUN|TRACE_ID")
def trace(session: Session, run: str) -> None:
    """Show the spans of a run, from its submit to its outputs."""
    client = session.client()
    is_trace_id = len(run) == 32 and all(character in "0123456789abcdef" for character in run)
    name = run if is_trace_id else client.workspace(session.flags.workspace or "").runs.get(run).name
    found = client.trace(name)
    if session.json:
        output.document(output.to_json(found))
        return
    click.echo(f"trace {found.trace_id}  {len(found.spans)} spans")
    for line in _tree(list(found.spans)):
        click.echo(line)


def _tree(spans: list[Any]) -> list[str]:
    """The spans as a tree; one whose parent did not arrive is a root."""
    starts = {span.span_id: _start_us(span) for span in spans}
    first = min(starts.values(), default=0)
    total = max((starts[span.span_id] + span.duration_us for span in spans), default=1) - first
    children: dict[str, list[Any]] = {}
    for span in spans:
        children.setdefault(span.parent_span_id if span.parent_span_id in starts else "", []).append(span)
    lines: list[tuple[str, Any]] = []
    waiting = [(0, span) for span in reversed(children.get("", []))]
    while waiting:
        depth, span = waiting.pop()
        lines.append((f"{'  ' * depth}{span.service}  {span.name}{'  ERROR' if span.error else ''}", span))
        waiting += [(depth + 1, child) for child in reversed(children.get(span.span_id, []))]
    width = max((len(text) for text, _ in lines), default=0)
    return [
        f"{text:<{width}}  {span.duration_us / 1000:>10.1f} ms  "
        f"{_bar(starts[span.span_id] - first, span.duration_us, total)}".rstrip()
        for text, span in lines
    ]


def _start_us(span: Any) -> int:
    return int(span.start_time.seconds * 1_000_000 + span.start_time.nanos // 1_000)


def _bar(offset_us: int, duration_us: int, total_us: int) -> str:
    before = min(_BAR_WIDTH - 1, offset_us * _BAR_WIDTH // max(total_us, 1))
    length = max(1, min(_BAR_WIDTH - before, round(duration_us * _BAR_WIDTH / max(total_us, 1))))
    return "|" + " " * before + "█" * length + " " * (_BAR_WIDTH - before - length) + "|"


@click.group(cls=Group)
def compute() -> None:
    """Where runs and replicas are placed."""


@compute.command("list", example="stellwerk compute list")
def compute_list(session: Session) -> None:
    """List the computes of the workspace."""
    from stellwerk import states

    output.listing(
        session.workspace().computes.list(),
        session.json,
        ("NAME", "KIND", "CREATED"),
        lambda item: (names.last(item.name), states.compute_kind(item), output.when(item.create_time)),
    )


@compute.command("nodes", example="stellwerk compute nodes")
def compute_nodes(session: Session) -> None:
    """List the machines with an agent."""
    from stellwerk import states

    output.listing(
        session.client().nodes(),
        session.json,
        ("NAME", "STATE", "POOL", "SLOTS", "REASON"),
        lambda item: (
            names.last(item.name),
            states.node(item),
            item.pool,
            item.slots,
            output.reason_line(item.reason),
        ),
    )
