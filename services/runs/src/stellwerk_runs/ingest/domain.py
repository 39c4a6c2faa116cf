"""Appends: what may be sent, and the pieces in which it goes to the stream."""

import hashlib
from collections.abc import Iterator, Sequence

from stellwerk_platform import names
from stellwerk_platform.content import check_path
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.runs.v1.ingest_pb2 import (
    AppendRequest,
    LogChunk,
    MetricBatch,
    MetricColumns,
    Record,
    RecordBatch,
)
from stellwerk_runs.ingest.sequence import Arrival
from stellwerk_runs.logs.domain import Written
from stellwerk_runs.logs.replicas import RUN, check_owner
from stellwerk_runs.metrics.domain import ITEM_BYTES, Points
from stellwerk_runs.records import domain as records

METRICS, LOGS, RECORDS = "metrics", "logs", "records"
_KINDS = {"metrics": METRICS, "log": LOGS, "records": RECORDS}
# Small enough for any NATS server (1 MB), and to bound what the writer holds at a time.
PIECE_BYTES = 256 * 1024
_PIECE_POINTS = PIECE_BYTES // (3 * ITEM_BYTES)
# Each metric of a piece costs the store two documents, however few points it has.
PIECE_COLUMNS = 500
_METRIC_LENGTH = 500
_SOURCE_LENGTH = 100
_LOG_BYTES = 1024 * 1024
# Keys in MongoDB hold positions as 16 digits.
_MAXIMUM_POSITION = 10**15


def kind_of(request: AppendRequest) -> str:
    """`metrics`, `logs` or `records`: the stream that it belongs to."""
    return _KINDS[request.WhichOneof("payload") or "metrics"]


def source_of(request: AppendRequest) -> str:
    """The write-ahead file that it comes from; empty for log text."""
    return request.metrics.source or request.records.source


def check(request: AppendRequest) -> None:
    """Raises `InvalidArgument` for the first thing that cannot be stored."""
    payload = request.WhichOneof("payload")
    if payload == "log":
        check_owner(request.run)
    else:
        names.parse(RUN, request.run)
    if payload is None:
        raise InvalidArgument(
            "NOTHING_TO_APPEND", "The request carries neither metrics nor log text nor records."
        )
    if payload == "log":
        _check_log(request.log)
    elif payload == "records":
        _check_records(request.records)
    else:
        _check_metrics(request.metrics)


def _check_source(source: str) -> None:
    if not 0 < len(source) <= _SOURCE_LENGTH:
        raise InvalidArgument(
            "INVALID_SOURCE", "The source is empty or too long.", f"Use 1 to {_SOURCE_LENGTH} characters."
        )


def _check_records(batch: RecordBatch) -> None:
    _check_source(batch.source)
    _check_position(batch.first_sequence)
    for record in batch.records:
        records.check(record)


def _check_metrics(batch: MetricBatch) -> None:
    _check_source(batch.source)
    for column in batch.columns:
        if not 0 < len(column.metric) <= _METRIC_LENGTH:
            raise InvalidArgument(
                "INVALID_METRIC",
                f"A metric name of {len(column.metric):,} characters.",
                f"Use 1 to {_METRIC_LENGTH} characters.",
            )
        sizes = {len(column.steps), len(column.times), len(column.values)}
        if len(sizes) != 1 or sizes.pop() % ITEM_BYTES:
            raise InvalidArgument(
                "COLUMNS_DISAGREE",
                f"The columns of {column.metric!r} have {len(column.steps)}, {len(column.times)} and "
                f"{len(column.values)} bytes.",
                f"Send {ITEM_BYTES} bytes a point in each of the three.",
            )
        _check_position(column.first_sequence)


def _check_log(chunk: LogChunk) -> None:
    check_path(chunk.log)
    if len(chunk.data) > _LOG_BYTES:
        raise InvalidArgument(
            "CHUNK_TOO_LARGE",
            f"{len(chunk.data):,} bytes of log text in one request.",
            f"Send up to {_LOG_BYTES:,}.",
        )
    _check_position(chunk.offset)


def _check_position(position: int) -> None:
    if not 0 <= position < _MAXIMUM_POSITION:
        raise InvalidArgument("INVALID_POSITION", f"Position {position} is out of range.", "Count from 0.")


def pieces(request: AppendRequest) -> Iterator[AppendRequest]:
    """The request in messages of about 256 KiB and 500 metrics, or one record; without empty columns."""
    kind = kind_of(request)
    if kind == LOGS:
        yield from _log_pieces(request)
    elif kind == RECORDS:
        yield from _record_pieces(request)
    else:
        yield from _metric_pieces(request)


def _log_pieces(request: AppendRequest) -> Iterator[AppendRequest]:
    log = request.log
    for start in range(0, len(log.data), PIECE_BYTES):
        data = log.data[start : start + PIECE_BYTES]
        part = LogChunk(log=log.log, offset=log.offset + start, data=data, time=log.time)
        yield AppendRequest(run=request.run, log=part)


def _record_pieces(request: AppendRequest) -> Iterator[AppendRequest]:
    source, first = request.records.source, request.records.first_sequence
    part: list[Record] = []
    size = 0
    for record in request.records.records:
        if part and size + record.ByteSize() > PIECE_BYTES:
            yield _record_piece(request.run, source, first, part)
            first, part, size = first + len(part), [], 0
        part.append(record)
        size += record.ByteSize()
    if part:
        yield _record_piece(request.run, source, first, part)


def _record_piece(run: str, source: str, first: int, part: Sequence[Record]) -> AppendRequest:
    return AppendRequest(run=run, records=RecordBatch(source=source, first_sequence=first, records=part))


def _metric_pieces(request: AppendRequest) -> Iterator[AppendRequest]:
    batch, size = MetricBatch(source=request.metrics.source), 0
    for column in _cut(request.metrics):
        if size and (size + column.ByteSize() > PIECE_BYTES or len(batch.columns) == PIECE_COLUMNS):
            yield AppendRequest(run=request.run, metrics=batch)
            batch, size = MetricBatch(source=request.metrics.source), 0
        batch.columns.append(column)
        size += column.ByteSize()
    if size:
        yield AppendRequest(run=request.run, metrics=batch)


def _cut(batch: MetricBatch) -> Iterator[MetricColumns]:
    for column in batch.columns:
        points = Points(column.steps, column.times, column.values)
        if 0 < len(points) <= _PIECE_POINTS:
            yield column
            continue
        for start in range(0, len(points), _PIECE_POINTS):
            part = points.slice(start, start + _PIECE_POINTS)
            yield part.columns(column.metric, column.first_sequence + start)


def message_id(body: bytes) -> str:
    """The id under which JetStream knows a piece that is sent again.

    Over all of the piece: one with the same beginning and more points is another one.
    """
    return hashlib.sha256(body).hexdigest()


def arrivals(piece: AppendRequest, origin: str) -> list[Arrival]:
    """What a piece brings, sequence by sequence."""
    kind = kind_of(piece)
    if kind == LOGS:
        log = piece.log
        return [Arrival((log.log,), log.offset, len(log.data), Written(log.data, log.time), origin)]
    if kind == RECORDS:
        batch = piece.records
        some = tuple(batch.records)
        return [Arrival((batch.source,), batch.first_sequence, len(some), some, origin)]
    source = piece.metrics.source
    result: list[Arrival] = []
    for column in piece.metrics.columns:
        points = Points(column.steps, column.times, column.values)
        result.append(Arrival((column.metric, source), column.first_sequence, len(points), points, origin))
    return result


def piece_of(run: str, arrival: Arrival) -> AppendRequest:
    """A piece with nothing but this arrival."""
    if isinstance(arrival.payload, Points):
        metric, source = arrival.key
        column = arrival.payload.columns(metric, arrival.position)
        return AppendRequest(run=run, metrics=MetricBatch(source=source, columns=[column]))
    if isinstance(arrival.payload, tuple):
        return _record_piece(run, arrival.key[0], arrival.position, arrival.payload)
    assert isinstance(arrival.payload, Written)
    written = arrival.payload
    chunk = LogChunk(log=arrival.key[0], offset=arrival.position, data=written.data, time=written.time)
    return AppendRequest(run=run, log=chunk)
