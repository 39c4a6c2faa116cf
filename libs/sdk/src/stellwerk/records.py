"""What a run logged besides points, with its values as Python has them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from stellwerk import values
from stellwerk_protos.runs.v1 import ingest_pb2

_JOINED = (ingest_pb2.RECORD_KIND_LIST, ingest_pb2.RECORD_KIND_TABLE)


class LoggedRecord(NamedTuple):
    """One list, row, table, picture or chart."""

    name: str
    kind: str
    """`list`, `row`, `table`, `image`, `confusion_matrix`, `accuracy_table`, `residuals`, `predictions`."""
    step: int
    time_ms: int
    """Milliseconds since 1970-01-01 UTC."""
    value: Any
    """A list, or a dictionary of columns or of the chart's parts; None for a picture."""
    artifact: str
    """Path of a picture among the artifacts."""


def joined(found: Iterable[ingest_pb2.Record]) -> list[LoggedRecord]:
    """The records; the parts into which a long list or table was cut are one again."""
    result: list[LoggedRecord] = []
    for message in found:
        record = _unpacked(message)
        before = result[-1] if result else None
        if message.kind in _JOINED and before is not None and before[:4] == record[:4]:
            _extend(before.value, record.value)
        else:
            result.append(record)
    return result


def _unpacked(message: ingest_pb2.Record) -> LoggedRecord:
    kind = ingest_pb2.RecordKind.Name(message.kind).removeprefix("RECORD_KIND_").lower()
    value = values.load(message.value) if message.value else None
    return LoggedRecord(message.name, kind, message.step, message.time, value, message.artifact)


def _extend(before: Any, more: Any) -> None:
    if isinstance(before, list):
        before.extend(more)
        return
    for column, cells in more.items():
        before[column].extend(cells)
