"""Proto messages as MongoDB documents.

The proto message is the entity (docs/decisions/002): its document has the same
field names, so that anything can be indexed and queried. `name` becomes `_id`,
timestamps become dates (milliseconds, as BSON has them), enums their names, and
maps become lists of `{k, v}` because keys may hold dots and can then be indexed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

Document = dict[str, Any]
M = TypeVar("M", bound=Message)


def now() -> Timestamp:
    """The current time with the precision that MongoDB keeps: milliseconds."""
    return timestamp(datetime.now(UTC))


def timestamp(moment: datetime) -> Timestamp:
    """A moment as a proto, cut to milliseconds."""
    result = Timestamp()
    result.FromDatetime(moment.replace(microsecond=moment.microsecond // 1000 * 1000))
    return result


def to_document(message: Message) -> Document:
    """The document of a message; fields with default values are left out."""
    document: Document = {}
    for field, value in message.ListFields():
        key = "_id" if field.name == "name" else field.name
        if _is_map(field):
            kind = _value_field(field)
            document[key] = [{"k": k, "v": _to_value(kind, value[k])} for k in sorted(value)]
        elif field.is_repeated:
            document[key] = [_to_value(field, item) for item in value]
        else:
            document[key] = _to_value(field, value)
    return document


def from_document(kind: type[M], document: Mapping[str, Any]) -> M:
    """The message of a document; fields that the message does not have are ignored."""
    message = kind()
    _fill(message, document)
    return message


def _fill(message: Message, document: Mapping[str, Any]) -> None:
    for key, value in document.items():
        field = message.DESCRIPTOR.fields_by_name.get("name" if key == "_id" else key)
        if field is None:
            continue
        if _is_map(field):
            _fill_map(getattr(message, field.name), _value_field(field), value)
        elif field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                container = getattr(message, field.name)
                _fill_message(container.add() if field.is_repeated else container, item)
        elif field.is_repeated:
            getattr(message, field.name).extend(_from_scalar(field, item) for item in value)
        else:
            setattr(message, field.name, _from_scalar(field, value))


def _fill_map(target: Any, kind: Any, items: Any) -> None:
    for item in items:
        if kind.message_type is not None:
            _fill_message(target[item["k"]], item["v"])
        else:
            target[item["k"]] = _from_scalar(kind, item["v"])


def _fill_message(target: Message, value: Any) -> None:
    if isinstance(target, Timestamp):
        target.FromDatetime(value)
    elif isinstance(target, Duration):
        target.FromMicroseconds(value)
    else:
        target.SetInParent()
        _fill(target, value)


def _to_value(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToDatetime(UTC)
    if isinstance(value, Duration):
        return value.ToMicroseconds()
    if isinstance(value, Message):
        return to_document(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value


def _from_scalar(field: Any, value: Any) -> Any:
    return field.enum_type.values_by_name[value].number if field.enum_type is not None else value


def _value_field(field: Any) -> Any:
    return field.message_type.fields_by_name["value"]


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)
