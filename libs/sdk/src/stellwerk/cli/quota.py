"""`stellwerk quota`: what a workspace may use, and what it uses."""

import math
import re
from typing import TYPE_CHECKING, Any

import click

from stellwerk.cli import output
from stellwerk.cli.base import Group, Session, traced

if TYPE_CHECKING:
    from stellwerk_protos.registry.v1 import quotas_pb2

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?", re.IGNORECASE)


class Size(click.ParamType["int"]):
    """`10GB`, `1.5 TiB` or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        if found is None or (found[3] and not found[2]):
            self.fail(f"{value!r} is no size like 10GB or 512MiB.", param, ctx)
        unit = found[2].upper()
        factor = 1024 ** list(_UNITS).index(unit) if found[3] else _UNITS[unit]
        return int(float(found[1]) * factor)


@click.group(cls=Group)
def quota() -> None:
    """Limits of a workspace.

    Nodes, cores, storage, and a budget of CPU time.
    """


@quota.command("show", example="stellwerk quota show -w demo")
def show(session: Session) -> None:
    """Show what is used of each limit."""
    _show(session, session.workspace().quota.get())


@quota.command("set", example="stellwerk quota set -w demo --cores 8 --storage 10GB --cpu-hours 100")
@click.option("--nodes", type=click.IntRange(0), help="Nodes at one time.")
@click.option("--cores", type=click.IntRange(0), help="Cores at one time.")
@click.option("--storage", type=Size(), metavar="SIZE", help="All blobs together, for example 10GB.")
@click.option("--cpu-hours", type=click.FloatRange(0), help="Budget of CPU time.")
@click.option("--reset", is_flag=True, help="Begin to count CPU time anew.")
@traced
def set_(
    session: Session,
    nodes: int | None,
    cores: int | None,
    storage: int | None,
    cpu_hours: float | None,
    reset: bool,
) -> None:
    """Set limits; what is not given stays, 0 takes a limit away. For administrators of the platform."""
    if not reset and all(value is None for value in (nodes, cores, storage, cpu_hours)):
        raise click.UsageError("Nothing to set is given.")
    found = session.workspace().quota.set(
        nodes=nodes,
        cores=cores,
        storage_bytes=storage,
        cpu_seconds=None if cpu_hours is None else math.ceil(cpu_hours * 3600),
        reset_budget=reset,
    )
    _show(session, found)


def _show(session: Session, found: "quotas_pb2.Quota") -> None:
    if session.json:
        output.document(output.to_json(found))
    else:
        show_table(found)


def show_table(found: "quotas_pb2.Quota") -> None:
    """One line a limit."""
    used, limits = found.used, found.limits
    rows = [
        ("nodes", used.nodes, limits.nodes or "-"),
        ("cores", used.cores, limits.cores or "-"),
        ("storage", output.size(used.storage_bytes), _size(limits.storage_bytes)),
        ("CPU time", _hours(used.cpu_seconds), _hours(limits.cpu_seconds) if limits.cpu_seconds else "-"),
    ]
    output.table(("RESOURCE", "USED", "LIMIT"), rows)


def _size(count_bytes: int) -> str:
    return output.size(count_bytes) if count_bytes else "-"


def _hours(seconds: int) -> str:
    return f"{seconds} s" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
