"""The pure parts of reading: down-sampling whatever was logged, and searching whatever chunks cut."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.runs.tests.support import points, values
from stellwerk_protos.runs.v1.logs_pb2 import LogLine
from stellwerk_protos.runs.v1.metrics_pb2 import SAMPLING_LTTB, SAMPLING_MIN_MAX
from stellwerk_runs.logs.domain import LogText
from stellwerk_runs.logs.search import LineSearch
from stellwerk_runs.metrics.domain import unpack
from stellwerk_runs.metrics.sampling import BLOCK_POINTS, Shortener, shorten

ANY = st.floats(width=64, allow_nan=True, allow_infinity=True)


@given(
    st.lists(st.one_of(ANY, st.just(math.nan), st.floats(-9, 9)), max_size=200),
    st.integers(3, 60),
    st.sampled_from([SAMPLING_LTTB, SAMPLING_MIN_MAX]),
)
def test_a_shortened_series_is_a_part_of_it_in_order(logged: list[float], size: int, sampling: int) -> None:
    short = shorten(points(logged), size, sampling)
    steps = [int(step) for step in unpack("q", short.steps)]
    assert len(short) <= size
    assert steps == sorted(set(steps))
    assert all(
        value == logged[step] or math.isnan(logged[step])
        for step, value in zip(steps, values(short), strict=True)
    )
    if len(logged) <= size:
        assert len(short) == len(logged)
    elif all(map(math.isfinite, logged)):
        assert (steps[0], steps[-1]) == (0, len(logged) - 1)
        if sampling == SAMPLING_MIN_MAX and size >= 4:
            assert {max(logged), min(logged)} <= set(values(short))


def test_a_series_of_many_blocks_keeps_its_extremes_and_ends() -> None:
    count = 3 * BLOCK_POINTS + 7
    whole = points([9.0 if n == BLOCK_POINTS + 3 else math.sin(n) for n in range(count)])
    shortener = Shortener(count, 1_000, SAMPLING_LTTB)
    for first in range(0, count, BLOCK_POINTS):
        shortener.feed(whole.slice(first, first + BLOCK_POINTS))
    short = shortener.result()
    assert len(short) == 1_000
    assert 9.0 in values(short)
    assert list(unpack("q", short.steps))[::999] == [0, count - 1]


@given(
    st.lists(st.sampled_from(["a", "Äb", "ä", "\n", "\r\n", "x" * 50, "€"]), max_size=60).map("".join),
    st.lists(st.integers(0, 400), max_size=6),
    st.sampled_from(["ä", "AB", "x", "€", "äB"]),
)
def test_a_search_finds_each_line_wherever_chunks_cut(text: str, cuts: list[int], query: str) -> None:
    data = text.encode()
    edges = [0, *sorted(cut for cut in set(cuts) if 0 < cut < len(data)), len(data)]
    search, found = LineSearch(query, 0), list[LogLine]()
    for start, end in pairwise(edges):
        found += search.feed(LogText("log", start, data[start:end], ((start, start),)))
    found += search.finish()
    expected, offset = [], 0
    for line in data.split(b"\n"):
        shown = line.decode().rstrip("\r")
        if query.casefold() in shown.casefold():
            expected.append((offset, shown))
        offset += len(line) + 1
    assert [(line.offset, line.text) for line in found] == expected
