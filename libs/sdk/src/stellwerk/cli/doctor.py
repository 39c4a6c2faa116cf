"""`stellwerk doctor`: whether everything works, what does not, and what to do about it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click

from stellwerk.cli import output
from stellwerk.cli.base import Command, Session
from stellwerk.cli.stack import launcher
from stellwerk.errors import StellwerkError
from stellwerk.settings import Settings

_FREE_BYTES = 1024**3
_HERE = "this machine"


@dataclass
class Row:
    """The result of one check; `part` of `service` was tried by `operation`."""

    service: str
    part: str
    ok: bool
    operation: str
    reason: str = ""
    cause: str = ""
    cure: str = ""
    duration_us: int = 0


@click.command(cls=Command, example="stellwerk doctor")
@click.option("-v", "--verbose", is_flag=True, help="Show what was tried and how long it took, too.")
def doctor(session: Session, verbose: bool) -> int:
    """Check each part with a real operation.

    Every service writes, reads and deletes a probe in what it stands on: MongoDB, NATS, the blob store,
    Vault. What does not work is shown with cause and cure. Exit code 0 only when all is well. Needs the key
    of an administrator; without one this machine is checked all the same.
    """
    rows = list(_checks(session))
    well = all(row.ok for row in rows)
    if session.json:
        output.document({"ok": well, "checks": [asdict(row) for row in rows]})
        return 0 if well else 1
    _show(rows, verbose)
    return 0 if well else 1


def _show(rows: list[Row], verbose: bool) -> None:
    header = ("SERVICE", "PART", "", *(("TRIED", "MS") if verbose else ()))
    output.table(
        header,
        [
            (
                *(row.service, row.part, "ok" if row.ok else "FAILED"),
                *((row.operation, f"{row.duration_us / 1000:.0f}") if verbose else ()),
            )
            for row in rows
        ],
    )
    for (part, reason, cause, cure), services in _grouped(rows).items():
        click.echo()
        click.echo(f"{part} of {', '.join(services)}  ({reason})")
        click.echo(f"  cause: {cause}")
        click.echo(f"  cure:  {cure}")
    failed = sum(not row.ok for row in rows)
    click.echo()
    click.echo("All is well." if not failed else f"{failed} of {len(rows)} checks failed.")


def _grouped(rows: list[Row]) -> dict[tuple[str, str, str, str], list[str]]:
    """The services that fail alike, by what is wrong."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        if not row.ok:
            found.setdefault((row.part, row.reason, row.cause, row.cure), []).append(row.service)
    return found


def _checks(session: Session) -> Iterator[Row]:
    configuration = _configuration(session)
    yield configuration
    settings = session.settings() if configuration.ok else None
    yield from _stack(session, settings)
    if settings is None or not settings.grpc_address or not settings.api_key:
        return
    answered = _ask(session)
    yield from answered
    if answered[0].ok:
        yield _nodes(session)


def _tried(part: str, operation: str, work: Callable[[], None], service: str = _HERE) -> Row:
    row = Row(service, part, True, operation)
    try:
        work()
    except StellwerkError as error:
        row.ok, row.reason, row.cause, row.cure = False, error.reason, error.message, error.cure
    return row


def _configuration(session: Session) -> Row:
    def read() -> None:
        settings = session.settings()
        if not settings.grpc_address:
            raise StellwerkError(
                "ADDRESS_MISSING",
                "No Stellwerk is known here.",
                "Start one with `stellwerk up`, or name its address with --grpc-address.",
            )
        if not settings.api_key:
            raise StellwerkError(
                "KEY_MISSING", "No key is known here.", "Sign in with `stellwerk login`, or name a key file."
            )

    return _tried("configuration", "find address and key", read)


def _stack(session: Session, settings: Settings | None) -> Iterator[Row]:
    """The processes of the stack on this machine, where that is the one that is asked."""
    if not (session.data_dir / "stack.json").exists():
        return
    try:
        state = launcher().status(session.data_dir)
    except Exception as error:
        if settings is None or settings.grpc_address == "" or _is_local(session, settings):
            cure = getattr(error, "cure", "") or "Start it with `stellwerk up`."
            reason = getattr(error, "reason", "STACK_UNREADABLE")
            yield Row(_HERE, "stack", False, "read its state", reason, str(error), cure)
        return
    if settings is not None and settings.grpc_address != state.get("grpc_address"):
        return
    for process in state.get("processes", ()):
        yield _process(process)
    yield _tried("disk", "measure the room in the data folder", lambda: _check_disk(session))


def _is_local(session: Session, settings: Settings) -> bool:
    from stellwerk.settings import read_json

    return read_json(session.data_dir / "stack.json").get("grpc_address") == settings.grpc_address


def _process(process: dict[str, Any]) -> Row:
    name, health = str(process["name"]), str(process.get("health", ""))
    row = Row(name, "process", health == "SERVING", "see that it runs and is healthy")
    if not row.ok:
        restarts = process.get("restarts", 0)
        last = process.get("last_reason") or ""
        row.reason = f"PROCESS_{health}"
        words = health.lower().replace("_", " ")
        row.cause = f"The process is {words}; {restarts} restarts{f': {last}' if last else ''}."
        row.cure = f"See why: stellwerk logs {name}."
    return row


def _check_disk(session: Session) -> None:
    free = shutil.disk_usage(session.data_dir).free
    if free < _FREE_BYTES:
        raise StellwerkError(
            "DISK_NEARLY_FULL",
            f"{session.data_dir} has {output.size(free)} left.",
            "Make room, or remove runs: docs/retention.md.",
        )


def _ask(session: Session) -> list[Row]:
    """What the services say; when they cannot be asked, why."""
    rows: list[Row] = []

    def ask() -> None:
        for check in session.client().diagnose():
            rows.append(
                Row(
                    *(check.service, check.part, check.ok, check.operation),
                    *(check.reason, check.cause, check.cure, check.duration_us),
                )
            )

    return [_tried("services", "ask the gateway for all services", ask, "gateway"), *rows]


def _nodes(session: Session) -> Row:
    def look() -> None:
        from stellwerk import states

        nodes = session.client().nodes()
        if not any(states.node(node) == "Ready" for node in nodes):
            raise StellwerkError(
                "NO_NODE_READY",
                f"None of {len(nodes)} nodes is ready: runs and deployments would wait.",
                "See `stellwerk compute nodes`, and the agent's log: stellwerk logs agent.",
            )

    return _tried("nodes", "look for a node that is ready", look, "compute")
