"""The frame itself: declaring, selecting, measuring, writing and showing, without any server."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.bench import __main__ as runner
from tests.bench.resources import Resources
from tests.bench.suite import Benchmark, Measurement, Row, Suite, measure, percentile, reached, show, write


def constant(value: float, peer_value: float | None = None) -> Benchmark:
    def function(resources: Resources) -> Measurement:
        return Measurement(value=value, rounds=3, peer_value=peer_value)

    return Benchmark("area.what", "ms", "lower", 5.0, "peer" if peer_value else None, function)


def silent() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_select_by_prefix_in_order_of_name() -> None:
    suite = Suite()
    for name in ("rpc.unary", "flow.warm", "flow.cold"):
        suite.benchmark(name, unit="s", better="lower")(lambda resources: Measurement(value=1, rounds=1))
    assert [entry.name for entry in suite.select("flow")] == ["flow.cold", "flow.warm"]
    assert len(suite.select()) == 3


def test_a_name_is_taken_once() -> None:
    suite = Suite()
    suite.benchmark("a.b", unit="s", better="lower")(lambda resources: Measurement(value=1, rounds=1))
    with pytest.raises(ValueError, match=r"a\.b"):
        suite.benchmark("a.b", unit="s", better="lower")(lambda resources: Measurement(value=1, rounds=1))


async def test_a_row_has_all_fields_and_the_ratio_to_the_peer() -> None:
    row = await measure(constant(4.0, peer_value=2.0), Resources())
    assert row == Row(
        name="area.what",
        value=4.0,
        unit="ms",
        better="lower",
        goal=5.0,
        peer="peer",
        peer_value=2.0,
        ratio=2.0,
        goal_ratio=None,
        rounds=3,
    )


async def test_a_benchmark_may_be_async_and_have_no_peer() -> None:
    async def function(resources: Resources) -> Measurement:
        return Measurement(value=1.0, rounds=1)

    row = await measure(Benchmark("a.b", "s", "lower", None, None, function), Resources())
    assert (row["peer_value"], row["ratio"], reached(row)) == (None, None, None)


@pytest.mark.parametrize(
    ("better", "value", "expected"),
    [("lower", 4.0, True), ("lower", 6.0, False), ("higher", 5.0, True), ("higher", 4.9, False)],
)
async def test_reached_follows_the_direction(better: str, value: float, expected: bool) -> None:
    row = await measure(constant(value), Resources())
    assert reached({**row, "better": "lower" if better == "lower" else "higher"}) is expected


async def test_a_benchmark_that_fails_leaves_the_others() -> None:
    def broken(resources: Resources) -> Measurement:
        raise RuntimeError("broken")

    failing = Benchmark("a.broken", "s", "lower", None, None, broken)
    rows = await runner.run([failing, constant(1.0)], Resources(), silent())
    assert [row["name"] for row in rows] == ["area.what"]


async def test_what_is_written_is_what_was_measured(tmp_path: Path) -> None:
    row = await measure(constant(4.0, peer_value=2.0), Resources())
    write([row], tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == [row]


async def test_the_table_shows_value_goal_and_peer() -> None:
    console = silent()
    show([await measure(constant(4.0, peer_value=2.0), Resources())], console)
    file = console.file
    assert isinstance(file, io.StringIO)
    for text in ("area.what", "reached", "peer", "4"):
        assert text in file.getvalue()


def test_resources_open_once_and_close_in_reverse() -> None:
    happened: list[str] = []

    @contextmanager
    def opener(folder: Path) -> Iterator[Any]:
        happened.append(f"open {folder.name}")
        yield folder
        happened.append(f"close {folder.name}")

    with Resources(opener, opener) as resources:
        assert happened == []
        assert resources.stack is resources.stack
        assert resources.servers is resources.servers
    assert happened == ["open stack", "open servers", "close servers", "close stack"]


def test_an_unknown_prefix_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--only", "no-such-benchmark"]) == 1
    assert "No benchmark starts with 'no-such-benchmark'" in capsys.readouterr().out


def test_percentile_is_a_sample() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile(range(1, 2001), 99) == 1980
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)
