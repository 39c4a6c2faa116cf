"""`stellwerk endpoint top|load|simulate` and `stellwerk deployment scale`: load, and replicas by load."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stellwerk.cli import output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Command, Session, traced
from stellwerk.errors import StellwerkError

if TYPE_CHECKING:
    from stellwerk_protos.inference.v1.endpoints_pb2 import ScaleSettings

_REFRESH_SECONDS = 1.0
_ROWS = 30
_HEADER = (
    *("DEPLOYMENT", "TRAFFIC", "RATE/s", "ERRORS/s", "429/s", "P50 ms", "P99 ms"),
    *("IN FLIGHT", "QUEUE", "BATCH", "P50/P95/MAX", "CPU", "MEMORY", "REPLICAS", "STARTS/h", "COLD/h"),
)


def scale_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of scale settings; `scale_settings` makes the message of what they give."""
    replicas = click.IntRange(0, 100)
    delay = click.IntRange(1, 3_600)
    for option in reversed(
        (
            click.option("--min", "minimum", type=replicas, help="Fewest replicas; 0: may sleep."),
            click.option("--max", "maximum", type=click.IntRange(1, 100), help="Most replicas."),
            click.option("--target", type=float, help="Requests at a time for one replica.  [default: 4]"),
            click.option("--target-queue-ms", type=click.IntRange(1), help="Longest wait.  [default: 500]"),
            click.option("--up-delay", type=delay, help="Seconds before replicas start.  [default: 3]"),
            click.option("--down-delay", type=delay, help="Seconds before replicas stop.  [default: 60]"),
        )
    ):
        function = option(function)
    return function


def scale_settings(given: dict[str, Any]) -> "ScaleSettings | None":
    """Takes the options out of `given`; None without --max."""
    from stellwerk_protos.inference.v1.endpoints_pb2 import ScaleSettings

    names_of = ("minimum", "maximum", "target", "target_queue_ms", "up_delay", "down_delay")
    minimum, maximum, target, queue_ms, up_delay, down_delay = (given.pop(name) for name in names_of)
    if maximum is None:
        if any(value is not None for value in (minimum, target, queue_ms, up_delay, down_delay)):
            raise click.UsageError("Give --max too: the load decides up to so many replicas.")
        return None
    return ScaleSettings(
        min_replicas=1 if minimum is None else minimum,
        max_replicas=maximum,
        target_concurrency=target or 0,
        target_queue_ms=queue_ms or 0,
        scale_up_delay_seconds=up_delay or 0,
        scale_down_delay_seconds=down_delay or 0,
    )


def asleep_between(replicas: int) -> "ScaleSettings":
    """Up to so many replicas while there is work, and none else: how a batch deployment begins."""
    from stellwerk_protos.inference.v1.endpoints_pb2 import ScaleSettings

    return ScaleSettings(min_replicas=0, max_replicas=replicas)


def scale_text(item: Any) -> str:
    """`0 to 4 by load`, or nothing."""
    if not item.HasField("scale_settings"):
        return ""
    settings = item.scale_settings
    if item.workload.HasField("batch_settings"):
        return f"{settings.min_replicas} to {settings.max_replicas} by the mini-batches that wait"
    target = (
        f", {settings.target_concurrency:g} requests at a time each" if settings.target_concurrency else ""
    )
    return f"{settings.min_replicas} to {settings.max_replicas} by load{target}"


@click.command(
    "scale", cls=Command, example="stellwerk deployment scale blue --endpoint digits --min 0 --max 4"
)
@click.argument("name")
@click.option("--endpoint", "endpoint_name", required=True, metavar="NAME", help="The endpoint.")
@scale_options
@click.option("--fixed", is_flag=True, help="Keep as many replicas as there are now.")
@traced
def scale(session: Session, name: str, endpoint_name: str, fixed: bool, **given: Any) -> None:
    """Let the load decide on the replicas of a deployment.

    `stellwerk why` shows each decision with its evidence; `stellwerk endpoint simulate` tries settings.
    """
    settings = scale_settings(given)
    if fixed == (settings is not None):
        raise click.UsageError("Give either --max or --fixed.")
    changed = session.workspace().loads.set_scale(endpoint_name, name, settings)
    facts = [
        ("name", changed.name),
        ("replicas", f"{changed.ready_replica_count} of {changed.replica_count} ready"),
        ("scaling", scale_text(changed) or "none"),
    ]
    output.facts(changed, session.json, facts)


@click.command("top", cls=Command, example="stellwerk endpoint top digits")
@click.argument("endpoint", default="")
@click.option("--once", is_flag=True, help="Print the table once.")
def top(session: Session, endpoint: str, once: bool) -> None:
    """Show the load of the deployments, live.

    Of one endpoint, or of all; means over the last ten seconds, over all gateways. BATCH: requests in one
    call of the script, as a mean, and how many half of the calls, 95 of 100 and all had at most, rounded up
    to a power of two. CPU: of one core, all replicas together. STARTS and COLD: replicas that became ready
    within the last hour, and how often requests waited because none ran, each with its mean time. JSON, and
    what is no terminal, get it once.
    """
    loads = session.workspace().loads
    if session.json:
        output.document(output.to_json(loads.list(endpoint)))
        return
    live = sys.stdout.isatty() and not once
    while True:
        answer = loads.list(endpoint)
        if live:
            click.clear()
        output.table(_HEADER, [_row(load) for load in answer.loads])
        if not answer.gateways:
            click.echo("No gateway reports at the moment.", err=True)
        if not live:
            return
        time.sleep(_REFRESH_SECONDS)


def _row(load: Any) -> Sequence[object]:
    _, endpoint, _, deployment = load.deployment.rsplit("/", 3)
    rates = (f"{value:.1f}" for value in (load.rate, load.failed_rate, load.refused_rate))
    times = (f"{value:.1f}" if value else "-" for value in (load.p50_ms, load.p99_ms))
    return (
        *(f"{endpoint}/{deployment}", f"{load.percent} %", *rates, *times),
        *(f"{load.in_flight:.1f}", f"{load.queued:.1f}"),
        f"{load.batch_size:.1f}" if load.batch_size else "-",
        _batches(load),
        *(f"{load.cpu_percent:.0f} %", output.size(load.memory_bytes)),
        f"{load.ready_replica_count}/{load.replica_count}",
        _each(load.start_count, load.start_seconds),
        _each(load.cold_start_count, load.cold_start_ms / 1000),
    )


def _batches(load: Any) -> str:
    sizes = (load.batch_size_p50, load.batch_size_p95, load.batch_size_max)
    return "/".join(map(str, sizes)) if load.batch_size_max else "-"


def _each(count: int, seconds: float) -> str:
    return f"{count} ({seconds:.1f} s)" if count else "0"


@click.command(
    "load", cls=Command, example="stellwerk endpoint load digits --deployment blue -o json > load.json"
)
@click.argument("endpoint")
@click.option("--deployment", required=True, metavar="NAME", help="The deployment.")
@click.option("--seconds", type=click.IntRange(1, 3_600), default=3_600, help="The latest.  [default: all]")
def load(session: Session, endpoint: str, deployment: str, seconds: int) -> None:
    """Show how many requests came, second by second.

    With -o json it is a file for `stellwerk endpoint simulate --load`.
    """
    history = session.workspace().loads.history(endpoint, deployment, seconds)
    if session.json:
        output.document(output.to_json(history))
        return
    arrivals = list(history.arrivals)
    facts = [
        ("from", output.when(history.start_time)),
        ("seconds", len(arrivals)),
        ("requests", sum(arrivals)),
        ("most in a second", max(arrivals, default=0)),
        ("one request takes", f"{history.service_seconds * 1000:.1f} ms" if history.service_seconds else ""),
    ]
    output.lines(facts)


@click.command(
    "simulate",
    cls=Command,
    example="stellwerk endpoint simulate digits --deployment blue --min 0 --max 8 --target 2",
)
@click.argument("endpoint")
@click.option("--deployment", required=True, metavar="NAME", help="The deployment.")
@scale_options
@click.option("--load", "file", type=PathType(), help="File.  [default: the last hour]")
@click.option("--service-ms", type=float, default=0, help="Work on one request.  [default: as seen]")
@click.option("--start-seconds", type=float, default=0, help="Until a new replica answers.  [default: 5]")
@click.option("--parallel", type=int, default=0, help="Work at a time.  [default: workers]")
def simulate(
    session: Session,
    endpoint: str,
    deployment: str,
    file: Path | None,
    service_ms: float,
    start_seconds: float,
    parallel: int,
    **given: Any,
) -> None:
    """Play the load that was recorded against other scale settings.

    The rules are those of scaling itself. A file holds a JSON list with the requests of each second, or
    what `stellwerk endpoint load -o json` prints. Nothing changes.
    """
    settings = scale_settings(given)
    if settings is None:
        raise click.UsageError("Give --max, and what else is to be tried.")
    arrivals, seen_seconds = _read(file) if file is not None else (None, 0.0)
    played = session.workspace().loads.simulate(
        endpoint,
        deployment,
        settings,
        arrivals=arrivals,
        service_seconds=service_ms / 1000 or seen_seconds,
        start_seconds=start_seconds,
        parallel=parallel,
    )
    if session.json:
        output.document(output.to_json(played))
    else:
        _show(played)


def _read(file: Path) -> tuple[list[int], float]:
    try:
        document = json.loads(file.read_text())
        found = document if isinstance(document, list) else document["arrivals"]
        seconds = 0.0 if isinstance(document, list) else float(document.get("serviceSeconds", 0))
        return [int(count) for count in found], seconds
    except OSError as error:
        text = f"{file} cannot be read: {error.strerror}."
        raise StellwerkError("PATH_NOT_FOUND", text, "Check the path.", code="NOT_FOUND") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StellwerkError(
            "INVALID_LOAD",
            f"{file} holds no load.",
            "It must be a JSON list of numbers, or what `stellwerk endpoint load -o json` prints.",
            code="INVALID_ARGUMENT",
        ) from error


def _show(played: Any) -> None:
    """At most thirty rows of equal length, then the sums."""
    step = -(-len(played.seconds) // _ROWS)
    rows = [(at, played.seconds[at : at + step]) for at in range(0, len(played.seconds), step)]
    output.table(
        ("SECOND", "REQUESTS/s", "REPLICAS", "READY", "QUEUE"),
        [
            (
                at,
                f"{sum(item.arrivals for item in part) / len(part):.1f}",
                max(item.replica_count for item in part),
                min(item.ready_replica_count for item in part),
                f"{max(item.queued for item in part):.0f}",
            )
            for at, part in rows
        ],
    )
    output.lines(
        [
            ("requests", played.requests),
            ("wait", f"{played.mean_queue_ms:.0f} ms in the mean, {played.longest_queue_ms:.0f} ms at most"),
            ("left waiting", f"{played.left_over:.0f}" if played.left_over >= 1 else ""),
            ("decisions", played.decisions),
            ("replica-seconds", f"{played.replica_seconds:.0f}"),
        ]
    )
