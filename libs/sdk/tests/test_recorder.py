"""What may be logged besides points, and what is refused at once."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stellwerk import recorder, records, values, wal
from stellwerk.log_text import Plain, Stamper, clean, last_lines
from stellwerk.recorder import Recorder
from stellwerk_protos.runs.v1 import ingest_pb2


class Figure:
    """What matplotlib has."""

    def savefig(self, place: Path) -> None:
        place.write_bytes(b"drawn")


@pytest.fixture
def run(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "wal", tmp_path)


def notes(run: Recorder) -> list[wal.Note]:
    (path,) = (run.outputs.parent / "wal").glob("*.wal")
    return [record.note for record in wal.read(path, 0, 1 << 30)[0] if record.note is not None]


def read(run: Recorder) -> list[records.LoggedRecord]:
    """As the platform gives it back."""
    return records.joined(
        ingest_pb2.Record(name=note.name, kind=note.kind, step=note.step, value=note.value)  # type: ignore[arg-type]
        for note in notes(run)
    )


def test_the_kinds_are_those_of_the_contract() -> None:
    for name in ("LIST", "ROW", "TABLE", "IMAGE", "CONFUSION_MATRIX", "ACCURACY_TABLE", "RESIDUALS"):
        assert getattr(recorder, name) == ingest_pb2.RecordKind.Value(f"RECORD_KIND_{name}")
    assert (recorder.PREDICTIONS, recorder.PARAM, recorder.TAG) == (8, 9, 10)


def test_lists_rows_and_tables_of_any_length(run: Recorder) -> None:
    run.log_list("list", np.array([1.5, math.nan, -math.inf]))
    run.log_list("list", [True, 2], step=7)
    run.log_row("row", a=np.int64(3), b="x", c=None)
    run.log_table("table", {"x": np.arange(60_000), "größe": ["ü" * 10] * 60_000})
    run.log_list("empty", [])
    first, second, row, table, empty = read(run)
    assert json.loads(notes(run)[0].value) == [1.5, "NaN", "-Infinity"]
    assert math.isnan(first.value[1])
    assert (first.value[2], first.step) == (-math.inf, 0)
    assert (second.value, second.step) == ([1, 2], 7)
    assert row.value == {"a": 3, "b": "x", "c": None}
    assert table.value == {"x": list(range(60_000)), "größe": ["ü" * 10] * 60_000}
    assert empty.value == []
    assert all(len(note.value.encode()) <= values.LARGEST_VALUE_BYTES for note in notes(run))
    assert len(notes(run)) > 6, "a long table is cut into parts"


def test_charts_in_the_shapes_of_azure(run: Recorder) -> None:
    matrix = {"class_labels": ["a", "b"], "matrix": [[1, 2], [3, 4]]}
    run.log_confusion_matrix("m", json.dumps({"schema_type": "confusion_matrix", "data": matrix}))
    run.log_confusion_matrix("m", {"class_labels": ["a", "b"], "matrix": np.array([[1, 2], [3, 4]])})
    run.log_residuals("r", {"bin_edges": [0, 1], "bin_counts": [5]})
    run.log_predictions("p", {"bin_averages": [1], "bin_errors": [0.5]})
    run.log_accuracy_table("a", {"probability_tables": [], "percentile_tables": []})
    found = read(run)
    assert [item.kind for item in found] == [
        *("confusion_matrix", "confusion_matrix", "residuals", "predictions", "accuracy_table")
    ]
    assert [(item.step, item.value) for item in found[:2]] == [(0, matrix), (1, matrix)]


def test_pictures_are_kept_under_names_of_their_own(run: Recorder, tmp_path: Path) -> None:
    (tmp_path / "in.JPG").write_bytes(b"photo")
    run.log_image("a/b c", path=tmp_path / "in.JPG")
    run.log_image("a/b c", plot=Figure())
    assert [(note.kind, note.artifact) for note in notes(run)] == [
        (recorder.IMAGE, "outputs/images/a_b_c_0.jpg"),
        (recorder.IMAGE, "outputs/images/a_b_c_0.png"),
    ]
    assert (tmp_path / "outputs/images/a_b_c_0.png").read_bytes() == b"drawn"


def test_parameters_and_tags_are_text(run: Recorder) -> None:
    run.log_params({"rate": 0.1, "layers": [1, 2], "flag": True, "none": None, "np": np.float32(0.5)})
    run.set_tag("stage", "one")
    assert [(note.name, note.value) for note in notes(run)] == [
        ("rate", "0.1"),
        ("layers", "[1,2]"),
        ("flag", "True"),
        ("none", "None"),
        ("np", "0.5"),
        ("stage", "one"),
    ]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("log_list", ("x" * 10_000, [1])),
        ("log_list", ("l", "text")),
        ("log_list", ("l", [1, "text"])),
        ("log_list", ("l", 3)),
        ("log_table", ("t", {"a": [1], "b": [1, 2]})),
        ("log_table", ("t", {})),
        ("log_table", ("t", {"a": "text"})),
        ("log_table", ("t", {"a": [object()]})),
        ("log_confusion_matrix", ("m", "not json")),
        ("log_confusion_matrix", ("m", {"class_labels": ["a"], "matrix": [[1, 2]]})),
        ("log_confusion_matrix", ("m", {"class_labels": ["a"], "matrix": [["x"]]})),
        ("log_residuals", ("r", {"bin_edges": [1]})),
        ("log_predictions", ("p", [1])),
        ("log_accuracy_table", ("a", {"probability_tables": {}, "percentile_tables": []})),
        ("log_residuals", ("r", {"bin_edges": list(range(200_000)), "bin_counts": []})),
        ("log_image", ("i",)),
        ("log_image", ("i", "none.png")),
        ("log_image", ("i", None, "no figure")),
        ("log_param", ("", 1)),
        ("log_param", ("x" * 251, 1)),
        ("log_param", ("p", "x" * 8_001)),
        ("set_tag", ("t", b"bytes")),
        ("set_tag", ("t", "a\0b")),
    ],
)
def test_what_cannot_be_logged_is_refused_at_once(
    run: Recorder, tmp_path: Path, method: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        getattr(run, method)(*arguments)
    with pytest.raises(ValueError, match="column"):
        run.log_row("r", a=[1])
    assert not (tmp_path / "wal").exists(), "nothing of it was written"


def test_a_terminal_is_played_for_pipes() -> None:
    assert clean("\x1b[1;31mred\x1b[0m\x1b]0;title\x07") == "red"
    assert clean("10 %\r100 %\r99") == "990 %"
    assert clean("abc\b\bX") == "aX"
    plain = Plain()
    pieces = ["\r 1 of 3", "\r 2 of", " 3\r 3 of 3\nnext\r\n", "last \x1b[", "32mone\x1b[0m"]
    assert "".join(map(plain.feed, pieces)) + plain.end() == " 3 of 3\nnext\nlast one"


def test_times_stand_before_lines_however_they_are_cut() -> None:
    stamper = Stamper()
    text = stamper.stamp("a\nb", 0) + stamper.stamp("c\n\n", 1_500)
    assert text == ("1970-01-01T00:00:00.000Z a\n1970-01-01T00:00:00.000Z bc\n1970-01-01T00:00:01.500Z \n")


@pytest.mark.parametrize(
    ("data", "lines", "position"),
    [(b"a\nb\nc\n", 1, 4), (b"a\nb\nc", 2, 2), (b"a\nb\n", 2, None), (b"", 1, None), (b"\n\n\n", 1, 2)],
)
def test_the_last_lines(data: bytes, lines: int, position: int | None) -> None:
    assert last_lines(data, lines) == position
