"""The frame of the benchmarks: how one is declared, run, written and shown.

A benchmark is a function of one `Resources` in a module of this folder:

    @benchmark("rpc.unary", unit="requests/s", better="higher", goal=1000, peer="bare grpc.aio server")
    async def unary(resources: Resources) -> Measurement:
        ...
        return Measurement(value=ours, peer_value=theirs, rounds=5)

Existing frames (pytest-benchmark, asv, pyperf) time one function in one process; what is
measured here are rates and percentiles over several processes, beside a peer.
"""

import inspect
import json
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from rich.console import Console
from rich.table import Table

from tests.bench.resources import Resources

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Measurement:
    """What one benchmark found. `rounds` counts the repetitions or samples behind `value`."""

    value: float
    rounds: int
    peer_value: float | None = None


Function = Callable[[Resources], Measurement | Awaitable[Measurement]]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; `goal` is the value that it should reach, `peer` what `peer_value` measures.

    `goal_ratio` is a goal for value / peer_value, which says more where machines differ.
    """

    name: str
    unit: str
    better: Better
    goal: float | None
    peer: str | None
    function: Function
    goal_ratio: float | None = None


class Row(TypedDict):
    """One entry of bench-results.json; `ratio` is value / peer_value."""

    name: str
    value: float
    unit: str
    better: Better
    goal: float | None
    peer: str | None
    peer_value: float | None
    ratio: float | None
    goal_ratio: float | None
    rounds: int


class Suite:
    """The benchmarks that have been declared, by name."""

    def __init__(self) -> None:
        self._benchmarks: dict[str, Benchmark] = {}

    def benchmark(
        self,
        name: str,
        *,
        unit: str,
        better: Better,
        goal: float | None = None,
        goal_ratio: float | None = None,
        peer: str | None = None,
    ) -> Callable[[Function], Function]:
        """Declares the decorated function as the benchmark `name` (`<area>.<what>`)."""

        def declare(function: Function) -> Function:
            if name in self._benchmarks:
                raise ValueError(f"two benchmarks are called {name}")
            self._benchmarks[name] = Benchmark(name, unit, better, goal, peer, function, goal_ratio)
            return function

        return declare

    def select(self, prefix: str = "") -> list[Benchmark]:
        """The benchmarks whose name starts with `prefix`, in order of name."""
        return [self._benchmarks[name] for name in sorted(self._benchmarks) if name.startswith(prefix)]


SUITE = Suite()
benchmark = SUITE.benchmark


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` per cent of the samples do not exceed."""
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]


async def measure(entry: Benchmark, resources: Resources) -> Row:
    """Runs one benchmark."""
    found = entry.function(resources)
    measurement = await found if inspect.isawaitable(found) else found
    peer_value = measurement.peer_value
    return Row(
        name=entry.name,
        value=measurement.value,
        unit=entry.unit,
        better=entry.better,
        goal=entry.goal,
        peer=entry.peer,
        peer_value=peer_value,
        ratio=measurement.value / peer_value if peer_value else None,
        goal_ratio=entry.goal_ratio,
        rounds=measurement.rounds,
    )


def reached(row: Row) -> bool | None:
    """Whether value and ratio reach their goals; None without a goal."""
    pairs = [(row["value"], row["goal"]), (row["ratio"], row["goal_ratio"])]
    goals = [(found, goal) for found, goal in pairs if found is not None and goal is not None]
    if not goals:
        return None
    return all(found >= goal if row["better"] == "higher" else found <= goal for found, goal in goals)


def write(rows: Iterable[Row], path: Path) -> None:
    """Writes bench-results.json."""
    path.write_text(json.dumps(list(rows), indent=2) + "\n")


def show(rows: Iterable[Row], console: Console) -> None:
    """Prints the rows as a table."""
    table = Table("benchmark", "unit", "better")
    for column in ("value", "goal", "", "peer value", "ratio", "goal", "rounds"):
        table.add_column(column, justify="right")
    table.add_column("peer")
    for row in rows:
        mark = {True: "reached", False: "missed", None: ""}[reached(row)]
        numbers = [
            _number(row["value"]),
            _number(row["goal"]),
            mark,
            _number(row["peer_value"]),
            _number(row["ratio"]),
            _number(row["goal_ratio"]),
        ]
        table.add_row(
            row["name"], row["unit"], row["better"], *numbers, str(row["rounds"]), row["peer"] or ""
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
