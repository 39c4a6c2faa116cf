"""Results on stdout: a table for people, or one document of proto JSON for scripts."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from stellwerk_protos.common.v1 import common_pb2

Row = Sequence[object]


def to_json(message: "Message") -> Any:
    """Proto JSON as Python values; fields without a value are there too."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, always_print_fields_with_no_presence=True)


def document(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def line(value: Any) -> None:
    """One JSON line of a stream."""
    click.echo(json.dumps(value, ensure_ascii=False))


def listing(messages: Iterable[Any], as_json: bool, header: Sequence[str], row: Callable[[Any], Row]) -> None:
    """A list of messages: a table, or an array."""
    items = list(messages)
    if as_json:
        document([to_json(item) for item in items])
    else:
        table(header, [row(item) for item in items])


def table(header: Sequence[str], rows: Sequence[Row]) -> None:
    """Columns as wide as their content; nothing is ever cut."""
    lines = [list(header), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for cells in lines:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def facts(message: "Message", as_json: bool, pairs: Iterable[tuple[str, object]]) -> None:
    """One message: its facts in lines, or an object. Empty facts are left out."""
    if as_json:
        document(to_json(message))
    else:
        lines(pairs)


def lines(pairs: Iterable[tuple[str, object]]) -> None:
    """Facts in lines; empty ones are left out."""
    shown = [(name, _text(value)) for name, value in pairs if value not in ("", None, [], {})]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        indented = value.replace("\n", "\n" + " " * (width + 1))
        click.echo(f"{name + ':':<{width}} {indented}")


def when(time: "Timestamp") -> str:
    """Local time to the second, "" when there is none."""
    if not time.seconds:
        return ""
    return datetime.fromtimestamp(time.seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def minute(time: "Timestamp") -> str:
    """Local time of what is known to the minute, "" when there is none."""
    return when(time)[: -len(":00")]


def size(count_bytes: int) -> str:
    """1536 -> 1.5 KiB"""
    value = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def reason(given: "common_pb2.Reason") -> str:
    """`CODE: message`, or what there is of it."""
    return ": ".join(part for part in (given.code, given.message) if part)


def reason_line(given: "common_pb2.Reason") -> str:
    """The first line of a reason: further ones are the end of a log."""
    return reason(given).partition("\n")[0]


def files(given: Iterable["common_pb2.File"]) -> str:
    """One line a file."""
    return "\n".join(f"{file.path}  ({size(file.size_bytes)})" for file in given)


def pairs(given: Any) -> str:
    """`a=1, b=2`"""
    return ", ".join(f"{key}={given[key]}" for key in sorted(given))


def _text(value: object) -> str:
    return "" if value is None else str(value)
