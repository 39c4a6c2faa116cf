"""What a comparison reads, and what it says of it; in this process, with files in place of a blob store."""

import gzip
import hashlib
import json
import math
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import Table, parquet
from scipy import stats
from scipy.stats import contingency

from stellwerk_inference.monitors.compare import baseline, columns, fetch, known, metrics
from stellwerk_inference.monitors.compare.columns import (
    CHI_SQUARE,
    JENSEN_SHANNON,
    KOLMOGOROV_SMIRNOV,
    PSI,
    Pair,
)
from stellwerk_inference.monitors.compare.comparison import Request, Threshold, compare
from stellwerk_inference.monitors.compare.failures import CheckFailed
from stellwerk_inference.monitors.compare.fetch import Blob
from stellwerk_inference.monitors.compare.rows import Reader, Unreadable
from stellwerk_inference.monitors.compare.sample import Sample

NAMES = ["age", "income", "label"]
NOON = "2026-11-23T12:00:00.000Z"


def test_metrics_have_the_values_of_textbook_and_library() -> None:
    even, tilted = np.array([0.5, 0.5]), np.array([0.8, 0.2])
    assert metrics.psi(even, tilted) == pytest.approx(0.3 * math.log(1.6) + -0.3 * math.log(0.4))
    assert metrics.psi(even, even) == metrics.jensen_shannon(even, even) == 0
    assert metrics.jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1)
    assert math.isfinite(metrics.psi(np.array([1.0, 0.0]), np.array([0.0, 1.0])))
    counts = np.array([[30.0, 50.0, 20.0], [10.0, 40.0, 50.0]])
    strength, p_value = metrics.chi_square(counts[0], counts[1])
    assert strength == pytest.approx(contingency.association(counts.astype(int), method="cramer"))
    assert p_value == pytest.approx(stats.chi2_contingency(counts, correction=False).pvalue)
    # As many more rows as one likes on one side: the distributions differ as before.
    assert metrics.chi_square(counts[0] * 1_000, counts[1])[0] == pytest.approx(strength)
    one, other = np.arange(100.0), np.arange(50.0, 150.0)
    assert metrics.kolmogorov_smirnov(one, other)[0] == pytest.approx(0.5)
    assert metrics.kolmogorov_smirnov(one, np.array([])) == (1.0, 0.0)


@pytest.mark.parametrize("rows", [100, 150, 400])
def test_few_rows_of_the_same_source_are_hardly_ever_drift(rows: int) -> None:
    draw, found = np.random.default_rng(rows), []
    for _ in range(100):
        numbers = Pair.of(draw.normal(size=800).tolist(), draw.normal(size=rows).tolist())
        texts = [draw.choice(list("abcdefghij"), size=count).tolist() for count in (800, rows)]
        found += [columns.value(PSI, numbers)[0], columns.value(PSI, Pair.of(*texts))[0]]
    assert sum(value > 0.2 for value in found) <= 2
    assert np.median(found) < 0.05


def test_a_shift_is_seen_by_each_metric_that_fits() -> None:
    draw = np.random.default_rng(1)
    numbers = Pair.of(draw.normal(size=500).tolist(), draw.normal(1, size=500).tolist())
    assert not numbers.categorical
    assert len(numbers.labels) == len(numbers.counts) == 10
    assert columns.value(PSI, numbers)[0] > 0.2
    assert columns.value(JENSEN_SHANNON, numbers)[0] > 0.1
    value, p_value = columns.value(KOLMOGOROV_SMIRNOV, numbers)
    assert value > 0.3
    assert p_value is not None
    assert p_value < 1e-6
    assert not columns.fits(CHI_SQUARE, numbers)
    texts = Pair.of(["red", "blue"] * 200, ["red", "blue", "green", "green"] * 100)
    assert texts.labels == ["blue", "red", "(other)"]
    assert texts.counts.tolist() == [100, 100, 200]
    assert columns.value(PSI, texts)[0] > 0.2
    assert columns.value(CHI_SQUARE, texts)[0] > 0.3
    assert not columns.fits(KOLMOGOROV_SMIRNOV, texts)


@pytest.mark.parametrize(
    ("before", "now", "drifts"),
    [
        ([3] * 50, [3.0] * 50, False),
        ([3] * 50, ["3"] * 50, False),
        ([3] * 50, [4] * 50, True),
        ([None] * 50, [None] * 50, False),
        ([None] * 50, [1] * 50, True),
        ([1.5, 2.5] * 100, [None] * 200, True),
        (list(range(200)), [float("nan")] * 200, True),
        (list(range(200)), [float("inf")] * 200, True),
        (["1", "2"] * 50, [1, 2] * 50, False),
        (["True", "False"] * 50, [True, False] * 50, False),
        (["true", "false"] * 50, [1, 0] * 50, False),
        (["a", "b"] * 50, ["a", "b", "a", "c"] * 25, True),
        ([[1], {"a": 1}] * 50, [None] * 100, False),
        ([7], [7], False),
        ([7], [8], True),
        (["x"], ["x"], False),
        # Nearly all at one end, from which it moves to either side.
        ([0.0] * 190 + list(range(1, 11)), [5.0] * 200, True),
        ([16.0] * 190 + list(range(10)), [5.0] * 200, True),
        (list(range(1, 11)) + [20.0] * 190 + list(range(31, 41)), [25.0] * 200, True),
        ([10**400, "1_000", "x"] * 20, ["x", 10**400, "1_000"] * 20, False),
    ],
)
def test_values_of_every_kind(before: list[Any], now: list[Any], drifts: bool) -> None:
    pair = Pair.of(before, now)
    for metric in (PSI, JENSEN_SHANNON, KOLMOGOROV_SMIRNOV, CHI_SQUARE):
        if columns.fits(metric, pair):
            value, p_value = columns.value(metric, pair)
            assert math.isfinite(value)
            assert p_value is None or 0 <= p_value <= 1
    assert (columns.value(PSI, pair)[0] > 0.2) is drifts
    assert len(pair.labels) == len(pair.baseline_counts) == len(pair.counts) <= 51
    assert pair.baseline_counts.sum() + pair.baseline_missing == len(before)
    assert pair.counts.sum() + pair.missing == len(now)


ROW = {"age": 1, "income": 2}


@pytest.mark.parametrize(
    "body",
    [
        [[1, 2]],
        {"data": [[1, 2]]},
        {"data": [1, 2]},
        {"data": [{"age": 1, "income": 2}], "method": "predict"},
        {"input_data": [[1, 2]]},
        {"input_data": {"columns": ["age", "income"], "index": [0], "data": [[1, 2]]}},
        {"dataframe_split": {"columns": ["age", "income"], "data": [[1, 2]]}},
        {"dataframe_records": [{"age": 1, "income": 2}]},
        {"Inputs": {"data": [[1, 2]]}, "GlobalParameters": 1.0},
        {"instances": [[1, 2]]},
        {"table": [[1, 2]], "threshold": 0.5},
        {"age": [1], "income": [2]},
        {"age": 1, "income": 2},
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]},
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}]},
        {
            "inputs": [
                {"name": "age", "shape": [1], "datatype": "INT64", "data": [1]},
                {"name": "income", "shape": [1, 1], "datatype": "FP32", "data": [2]},
            ]
        },
        '[{"age": 1, "income": 2}]',
    ],
)
def test_requests_of_every_shape_become_rows(body: Any) -> None:
    assert Reader(NAMES).event({"data": body}) == [ROW]


@pytest.mark.parametrize(
    "body",
    [
        [0, 1],
        "[0, 1]",
        {"result": [0, 1]},
        {"predictions": [0, 1]},
        {"outputs": [{"name": "predict", "shape": [2], "datatype": "INT64", "data": [0, 1]}]},
        {"outputs": [{"name": "predict", "shape": [2, 1], "datatype": "INT64", "data": [0, 1]}]},
    ],
)
def test_answers_become_a_column_called_like_the_target(body: Any) -> None:
    assert Reader(NAMES, answers=True).event({"data": body}) == [{"label": 0}, {"label": 1}]
    assert Reader(["a"], ["score"], answers=True).body([0.5]) == [{"score": 0.5}]
    assert Reader(["a", "b"], answers=True).body([0.5]) == [{"prediction": 0.5}]
    # As many probabilities as there are features are no features.
    assert Reader(NAMES, answers=True).body([[0.1, 0.9]]) == [{"0": 0.1, "1": 0.9}]


def test_what_is_no_row_is_said_to_be_none() -> None:
    reader = Reader(NAMES)
    deep: Any = []
    for _ in range(2_000):
        deep = [deep]
    events: list[Any] = [
        *(7, {}, {"data_base64": "AAAA"}, {"data": "no JSON"}, {"data": [1, [2]]}, {"data": {"a": {}}}),
        {"data": [[1, 2]], "truncated": True},
        {"data": {"inputs": [{"name": "x", "shape": [], "data": [1]}]}},
        {"data": {"inputs": [{"name": "x", "shape": [3], "data": [1, 2, 3, 4]}]}},
        {"data": {"columns": ["a"], "data": [[1, 2]]}},
        {"data": [deep]},
    ]
    for event in events:
        with pytest.raises(Unreadable):
            reader.event(event)
    assert reader.event({"data": {"error": "no"}, "statuscode": 500}) == []
    assert reader.body([]) == []


def write(folder: Path, kind: str) -> Path:
    """The same three rows, of age and income, as a file of this kind."""
    path = folder / f"data.{kind}"
    records = [{"age": 30 + i, "income": 1.5 * i} for i in range(3)]
    table = np.array([[record["age"], record["income"]] for record in records])
    text = "age,income\n" + "".join(f"{r['age']},{r['income']}\n" for r in records)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    events = "".join(
        json.dumps({"specversion": "1.0", "source": "/x", "data": [record]}) + "\n" for record in records
    )
    match kind:
        case "csv":
            path.write_text("\ufeff" + text)
        case "index.csv":
            path.write_text("".join(f"{i - 1 if i else ''},{t}\n" for i, t in enumerate(text.splitlines())))
        case "tsv":
            path.write_text(text.replace(",", "\t"))
        case "semicolons.csv":
            path.write_text(text.replace(",", ";"))
        case "bare.csv":
            path.write_text(text.partition("\n")[2])
        case "csv.gz":
            path.write_bytes(gzip.compress(text.encode()))
        case "jsonl":
            path.write_text(lines)
        case "events.jsonl":
            path.write_text(events)
        case "parquet":
            parquet.write_table(Table.from_pylist(records), path)
        case "npy":
            np.save(path, table)
        case "npz":
            np.savez(path, x=table)
    return path


@pytest.mark.parametrize(
    "kind", ["csv", "index.csv", "tsv", "semicolons.csv", "csv.gz", "jsonl", "events.jsonl", "parquet"]
)
def test_files_with_names_of_columns(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    rows = [{name: float(value) for name, value in row.items()} for row in baseline.read(path.name, path)]
    assert rows == [{"age": 30 + i, "income": 1.5 * i} for i in range(3)]
    assert set(baseline.names(path.name, path)) == {"age", "income"}


@pytest.mark.parametrize("kind", ["bare.csv", "npy", "npz"])
def test_files_without_names_of_columns(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    rows = [{name: float(value) for name, value in row.items()} for row in baseline.read(path.name, path)]
    assert rows == [{"0": 30 + i, "1": 1.5 * i} for i in range(3)]
    assert set(baseline.names(path.name, path)) == {"0", "1"}


def test_arrays_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    np.savez(path, x=np.arange(12).reshape(3, 2, 2), y=np.array([7, 8, 9]))
    rows = list(baseline.read("train.npz", path))
    assert rows[1] == {"0": 4, "1": 5, "2": 6, "3": 7, "y": 8}


@pytest.mark.parametrize("name", ["a.parquet", "a.npy", "a.npz", "a.jsonl", "a.csv.gz"])
def test_a_file_that_is_none_of_its_kind_has_a_reason(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8bthis is nothing" if name.endswith("gz") else b"this is nothing")
    with pytest.raises(CheckFailed) as failed:
        list(baseline.read(name, path))
    assert failed.value.code == "BASELINE_UNREADABLE"
    with pytest.raises(CheckFailed, match=name):
        list(baseline.names(name, path))
    assert name in failed.value.message


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet", "npy", "npz"])
def test_damaged_files_are_read_or_have_a_reason(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    whole, draw = path.read_bytes(), random.Random(6)
    for _ in range(60):
        damaged = bytearray(whole[: draw.randrange(1, len(whole) + 1)])
        for _ in range(draw.randrange(4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            list(baseline.read(path.name, path))
        except CheckFailed as failed:
            assert failed.code == "BASELINE_UNREADABLE"  # noqa: PT017  # both outcomes are right


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckFailed):
        list(baseline.read("a.npy", path))


def test_each_row_is_drawn_with_the_same_chance() -> None:
    drawn: Counter[Any] = Counter()
    for seed in range(300):
        sample = Sample(10, seed)
        for number in range(100):
            sample.add({"n": number} if number < 50 else {"n": number, "late": 1})
        assert (sample.row_count, sample.seen_count) == (10, 100)
        assert sample.columns == ["n", "late"]
        drawn.update(sample.values("n"))
    assert len(drawn) == 100
    assert stats.chisquare([drawn[number] for number in range(100)]).pvalue > 0.001


def test_wide_rows_are_fewer() -> None:
    sample = Sample(1_000_000, 0)
    sample._rows = [[0]] * 20_000
    sample.seen_count = 20_000
    sample.add({str(index): index for index in range(1_000)})
    assert sample.row_count == 8_000
    with pytest.raises(CheckFailed, match="columns"):
        sample.add({"one more": 1})


def test_columns_that_are_named_are_kept_of_however_many() -> None:
    sample = Sample(10, 0, frozenset({"7", "5"}))
    sample.add({str(index): index for index in range(2_000)})
    assert (sample.columns, len(sample.names)) == (["5", "7"], 2_000)
    assert sample.values("7") == [7]


def blob(path: Path) -> Blob:
    return Blob(path.name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())


def collected(folder: Path, bodies: list[Any], name: str = "c.jsonl") -> Blob:
    path = folder / name
    path.write_text("".join(json.dumps({"time": NOON, "data": body}) + "\n" for body in bodies))
    return blob(path)


def request(before: Blob, now: Blob, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "collection": "request",
        "start": datetime(2026, 11, 23, tzinfo=UTC),
        "end": datetime(2026, 11, 24, tzinfo=UTC),
        "baseline": [before],
        "collected": [now],
        "columns": [],
        "thresholds": [Threshold(PSI, "", 0.2)],
        "min_rows": 10,
        "max_rows": 100_000,
        "seed": 1,
    }
    return Request(**{**values, **changes})


def training(folder: Path, width: int = 3, rows: int = 200) -> Blob:
    draw = np.random.default_rng(3)
    path = folder / "train.csv"
    header = ",".join([*(f"x{index}" for index in range(width)), "target"])
    np.savetxt(path, draw.normal(size=(rows, width + 1)), delimiter=",", header=header, comments="")
    return blob(path)


def drawn(rows: int, width: int = 3, moved: int | None = None) -> list[Any]:
    table = np.random.default_rng(4).normal(size=(rows, width))
    if moved is not None:
        table[:, moved] += 3
    return [{"data": [row]} for row in table.tolist()]


def test_the_column_that_moved_comes_first(tmp_path: Path) -> None:
    found = compare(request(training(tmp_path), collected(tmp_path, drawn(200, moved=1))), tmp_path)
    assert (found["baselineRowCount"], found["rowCount"], found["unreadableCount"]) == (200, 200, 0)
    assert [entry["column"] for entry in found["columns"] if entry["drifted"]] == ["x1"]
    assert found["columns"][0]["column"] == "x1"
    assert sum(found["columns"][0]["baselineShares"]) == pytest.approx(1, abs=1e-4)
    assert len(found["columns"]) == 3


def test_300_columns_and_more_metrics(tmp_path: Path) -> None:
    thresholds = [
        Threshold(metric, "", 0.4) for metric in (PSI, JENSEN_SHANNON, KOLMOGOROV_SMIRNOV, CHI_SQUARE)
    ]
    asked = request(
        training(tmp_path, 300), collected(tmp_path, drawn(100, 300, moved=7)), thresholds=thresholds
    )
    found = compare(asked, tmp_path)["columns"]
    assert len(found) == 900
    assert {entry["column"] for entry in found if entry["drifted"]} == {"x7"}
    assert found[0]["bins"]
    assert "bins" not in found[-1]
    assert len(json.dumps(found)) < 600_000


def test_a_result_fits_into_an_event_however_many_columns_there_are(tmp_path: Path) -> None:
    thresholds = [Threshold(metric, "", 0.4) for metric in (PSI, JENSEN_SHANNON, KOLMOGOROV_SMIRNOV)]
    names = [f"{'ü' * 190}{index}" for index in range(800)]
    row = dict.fromkeys(names, 1.0)
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({**row, "x" * 201: 1}) + "\n" for _ in range(20)))
    asked = request(blob(path), collected(tmp_path, [[row]] * 10), thresholds=thresholds)
    found = compare(asked, tmp_path)["columns"]
    assert 100 < len(found) < 2_400
    assert len(json.dumps(found, ensure_ascii=True)) < 600_000


def test_a_threshold_of_a_column_is_for_its_metric_alone(tmp_path: Path) -> None:
    thresholds = [
        Threshold(PSI, "", 0.2),
        Threshold(PSI, "x0", 50.0),
        Threshold(KOLMOGOROV_SMIRNOV, "x0", 0.1),
    ]
    asked = request(training(tmp_path), collected(tmp_path, drawn(200, moved=0)), thresholds=thresholds)
    found = {(entry["metric"], entry["column"]): entry for entry in compare(asked, tmp_path)["columns"]}
    assert len(found) == 4
    assert not found[PSI, "x0"]["drifted"]
    assert found[KOLMOGOROV_SMIRNOV, "x0"]["drifted"]
    assert found[KOLMOGOROV_SMIRNOV, "x0"]["pValue"] < 0.001


def test_events_beside_the_window_or_without_rows_do_not_count(tmp_path: Path) -> None:
    now = tmp_path / "c.jsonl"
    body = {"data": [[1, 2, 3]]}
    lines = [
        *[json.dumps({"time": NOON, "data": body})] * 4,
        json.dumps({"time": "2026-11-22T23:59:59.999Z", "data": body}),
        json.dumps({"time": "2026-11-24T00:00:00Z", "data": body}),
        json.dumps({"time": NOON, "data": {"data": [[1, 2]]}}),
        json.dumps({"data": body}),
        json.dumps({"time": "2026-11-23T12:00:00", "data": body}),
        '{"torn',
    ]
    now.write_text("\n".join(lines))
    found = compare(request(training(tmp_path), blob(now)), tmp_path)
    assert (found["rowCount"], found["unreadableCount"]) == (4, 4)
    assert "columns" not in found


@pytest.mark.parametrize(
    ("changes", "bodies", "code", "words"),
    [
        ({}, [[[1, 2]]] * 20, "NO_COMMON_COLUMNS", "4 columns (x0, x1, x2, target)"),
        ({"columns": ["x9"]}, [[{"x9": 1}]] * 20, "COLUMN_NOT_FOUND", "The baseline has no column 'x9'"),
        (
            {"columns": ["x0"], "thresholds": [Threshold(PSI, "x1", 0.5)]},
            drawn(20),
            "COLUMN_NOT_FOUND",
            "'x1' has a threshold, but",
        ),
        ({"columns": ["x9", "x0"]}, drawn(20), "COLUMN_NOT_FOUND", "but 4 columns (x0, x1, x2, target)"),
        ({"columns": ["x0", "x1"]}, [[{"x0": 1}]] * 20, "COLUMN_NOT_FOUND", "What was collected has no"),
        ({"thresholds": [Threshold(CHI_SQUARE, "x0", 0.5)]}, drawn(20), "METRIC_DOES_NOT_FIT", "numbers"),
        ({"thresholds": [Threshold(CHI_SQUARE, "", 0.5)]}, drawn(20), "NOTHING_COMPARED", ""),
    ],
)
def test_what_cannot_be_compared_has_a_reason(
    tmp_path: Path, changes: dict[str, Any], bodies: list[Any], code: str, words: str
) -> None:
    with pytest.raises(CheckFailed) as failed:
        compare(request(training(tmp_path), collected(tmp_path, bodies), **changes), tmp_path)
    assert failed.value.code == code
    assert words in failed.value.message
    assert failed.value.cure


def test_columns_name_rows_that_come_without_names(tmp_path: Path) -> None:
    asked = request(
        training(tmp_path), collected(tmp_path, [[row] for row in [[1.0, 2.0]] * 20]), columns=["x2", "x0"]
    )
    assert [entry["column"] for entry in compare(asked, tmp_path)["columns"]] == ["x0", "x2"]


def test_content_that_is_not_what_was_uploaded_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    wrong = Blob("c.jsonl", collected(tmp_path, drawn(20)).url, "0" * 64)
    with pytest.raises(CheckFailed) as failed:
        compare(request(training(tmp_path), wrong), tmp_path)
    assert failed.value.code == "BLOB_STORE_UNAVAILABLE"


def test_random_bodies_never_end_a_comparison(tmp_path: Path) -> None:
    draw = random.Random(5)

    def anything(depth: int) -> Any:
        kind = draw.randrange(8 if depth else 6)
        if kind == 6:
            return [anything(depth - 1) for _ in range(draw.randrange(4))]
        if kind == 7:
            keys = draw.choices(["data", "inputs", "columns", "name", "shape", "x0", "target"], k=3)
            return {key: anything(depth - 1) for key in keys}
        return [None, True, 3, 2.5, "x", ""][kind]

    now = collected(tmp_path, [anything(4) for _ in range(3_000)] + drawn(20))
    found = compare(request(training(tmp_path), now), tmp_path)
    assert found["rowCount"] >= 20
    assert found["unreadableCount"] > 100


def test_a_look_brings_no_file_more_than_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, brought, download = [], list[str](), fetch._download
    for number, names in enumerate(["a,b", "c,d", "e,f"]):
        file = tmp_path / f"{number}.csv"
        file.write_text(f"{names}\n1,2\n")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        blobs.append(Blob(file.name, file.as_uri(), digest))

    def noted(url: str, file: Path) -> str:
        brought.append(url.rpartition("/")[2])
        return download(url, file)

    monkeypatch.setattr(fetch, "_download", noted)
    assert known.look(known.Request(blobs, ["b", "c"]), tmp_path) == {}
    assert brought == ["0.csv", "1.csv"]
