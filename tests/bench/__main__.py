"""`make bench`: runs the benchmarks, writes bench-results.json and prints the table.

A benchmark that fails is reported and the others go on; the exit code then is 1. A goal
that is missed is shown, not punished: machines differ.
"""

import argparse
import asyncio
import importlib
import sys
import traceback
from pathlib import Path

from rich.console import Console

from tests.bench.resources import Resources
from tests.bench.suite import SUITE, Benchmark, Row, measure, show, write

FOLDER = Path(__file__).parent
FRAME = {"__init__", "__main__", "suite", "resources"}
RESULTS = Path("bench-results.json")


def load() -> None:
    """Imports the modules of this folder, which declare their benchmarks on import."""
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem not in FRAME and not path.stem.startswith("test_"):
            importlib.import_module(f"tests.bench.{path.stem}")


async def run(benchmarks: list[Benchmark], resources: Resources, console: Console) -> list[Row]:
    """Runs the benchmarks one after another; one that raises leaves no row."""
    rows = []
    for entry in benchmarks:
        console.print(f"[bold]{entry.name}[/bold] …")
        try:
            rows.append(await measure(entry, resources))
        except Exception:
            console.print(f"[red]{entry.name} failed[/red]")
            traceback.print_exc()
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--only", default="", metavar="PREFIX", help="benchmarks whose name starts so")
    options = parser.parse_args(arguments)
    load()
    benchmarks = SUITE.select(options.only)
    # A pipe has no width: the table must not fold its names into nothing there.
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not benchmarks:
        known = ", ".join(entry.name for entry in SUITE.select()) or "none"
        console.print(f"No benchmark starts with {options.only!r}. There are: {known}.")
        return 1
    with Resources() as resources:
        rows = asyncio.run(run(benchmarks, resources, console))
    write(rows, RESULTS)
    show(rows, console)
    return 0 if len(rows) == len(benchmarks) else 1


if __name__ == "__main__":
    sys.exit(main())
