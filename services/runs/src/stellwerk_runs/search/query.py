"""A filter and an order as MongoDB queries over `run_search` (`fields.py` has its documents).

Tests have two values: what compares with something that a run does not have is false,
and NOT turns it around. NaN equals NaN and is neither above nor below anything.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stellwerk_platform.documents import Document
from stellwerk_protos.runs.v1.runs_pb2 import RunKind, RunState
from stellwerk_runs.search import fields
from stellwerk_runs.search.fields import NUMBER, TEXT, TIME
from stellwerk_runs.search.language import Mistakes, parse, parse_order
from stellwerk_runs.search.syntax import (
    And,
    Comparison,
    Filter,
    In,
    IsNull,
    Key,
    Like,
    Literal,
    Not,
    Or,
)

_OPERATORS = {"<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}
_LOWEST: dict[str, Any] = {
    TEXT: "",
    NUMBER: -math.inf,
    TIME: datetime(1, 1, 1, tzinfo=UTC),
}
_VERBS = [name.removeprefix("RUN_STATE_").lower() for name in RunState.keys()[1:]]
_STATES = {verb.replace("_", ""): verb for verb in _VERBS}
_KINDS = {name.removeprefix("RUN_KIND_").lower() for name in RunKind.keys()[1:]}


@dataclass(frozen=True)
class Phase:
    """A part of the sorted runs: those that meet `where`, by the values of `path`, or by name without one.

    The runs that have the value come first, in both directions: numbers, texts, the rest.
    """

    where: Document
    path: str = ""
    kind: str = TEXT


@dataclass(frozen=True)
class Query:
    """What is asked for: every phase meets `where`."""

    where: Document
    phases: tuple[Phase, ...]
    descending: bool


def compile_query(workspace: str, filter_text: str, order_by: str, include_archived: bool) -> Query:
    """The query of a request; raises `InvalidArgument` INVALID_FILTER or INVALID_ORDER_BY."""
    where: list[Document] = [{"workspace": workspace}]
    if not include_archived:
        where.append({"archived": False})
    if (tree := parse(filter_text)) is not None:
        where.append(Translator(workspace, Mistakes("INVALID_FILTER", filter_text)).filter(tree))
    order = parse_order(order_by)
    phases: tuple[Phase, ...]
    if order is None:
        phases, descending = (Phase({}, "create_time", TIME),), True
    else:
        translator = Translator(workspace, Mistakes("INVALID_ORDER_BY", order_by))
        phases, descending = translator.phases(order.key), order.descending
    return Query({"$and": where}, phases, descending)


class Translator:
    """Turns the tests of one filter, or the key of an order, into queries."""

    def __init__(self, workspace: str, mistakes: Mistakes) -> None:
        self._root = fields.root(workspace)
        self._mistakes = mistakes

    def filter(self, tree: Filter) -> Document:
        """The query of a tree."""
        match tree:
            case And(terms):
                return {"$and": [self.filter(term) for term in terms]}
            case Or(terms):
                return {"$or": [self.filter(term) for term in terms]}
            case Not(term):
                return {"$nor": [self.filter(term)]}
            case IsNull(key):
                return {self._path(key): {"$exists": False}}
            case Like(key, pattern, ignore_case):
                return self._like(key, pattern, ignore_case)
            case In(key, literals):
                return {"$or": [self._compare(key, "=", literal) for literal in literals]}
            case Comparison(key, operator, literal):
                return self._compare(key, operator, literal)

    def phases(self, key: Key) -> tuple[Phase, ...]:
        """In which parts runs are sorted by a key."""
        path, kind = self._path(key), self._kind(key)
        if path == "create_time":
            return (Phase({}, path, TIME),)
        if path == "_id":
            return (Phase({}),)
        if key.group in ("params", "tags"):
            number = self._number_path(key)
            return (
                Phase({number: {"$gte": -math.inf}}, number, NUMBER),
                Phase({path: {"$gte": ""}, number: {"$exists": False}}, path, TEXT),
                Phase({path: {"$exists": False}}),
            )
        has = {path: {"$gte": _LOWEST[kind]}}
        return (Phase(has, path, kind), Phase({"$nor": [has]}))

    def _compare(self, key: Key, operator: str, literal: Literal) -> Document:
        if key.group in ("params", "tags") and not isinstance(literal.value, str):
            return self._compare_number(key, operator, literal.value)
        value, path = self._value(key, literal), self._path(key)
        if operator == "=":
            return {path: {"$eq": value}}
        if operator == "!=":
            return {path: {"$exists": True, "$ne": value}}
        return {path: {_OPERATORS[operator]: value}} if not _is_nan(value) else _nothing(path, operator)

    def _compare_number(self, key: Key, operator: str, value: float) -> Document:
        """A parameter or tag and a number: a text that is no number differs from every number."""
        path = self._number_path(key)
        if operator == "!=":
            return {self._path(key): {"$exists": True}, path: {"$ne": value}}
        if _is_nan(value):
            return _nothing(path, operator)
        return {path: {"$eq" if operator == "=" else _OPERATORS[operator]: value}}

    def _like(self, key: Key, pattern: Literal, ignore_case: bool) -> Document:
        if self._kind(key) != TEXT:
            raise self._mistakes.at(key.position, f"{key.group}.{key.name[:80]} is no text, as LIKE needs")
        parts = str(pattern.value).split("%")
        # Without a wildcard at an end the text begins or ends there; \z, not $, which allows a line break.
        expression = r"\A" + ".*".join(map(re.escape, parts)) + r"\z"
        return {self._path(key): {"$regex": expression, "$options": "si" if ignore_case else "s"}}

    def _value(self, key: Key, literal: Literal) -> Any:
        """A literal as the field holds it; raises for one of another kind."""
        kind, value = self._kind(key), literal.value
        if kind == NUMBER:
            if isinstance(value, str):
                raise self._mistakes.at(literal.position, f"{key.name[:80]} is compared with numbers")
            return value
        if not isinstance(value, str):
            raise self._mistakes.at(literal.position, f"{key.name[:80]} is compared with texts in quotes")
        if kind == TIME:
            return self._time(value, literal.position)
        return self._attribute_text(key, value, literal.position) if key.group == "attributes" else value

    def _attribute_text(self, key: Key, value: str, position: int) -> str:
        name = self._attribute(key)
        if name in fields.RESOURCES:
            return value.rsplit("/", 1)[-1]
        if name == "state":
            known = _STATES.get(value.replace("_", "").lower())
            if known is None:
                raise self._mistakes.at(
                    position, f"there is no state {value[:40]!r}", _one_of(_STATES.values())
                )
            return known
        if name == "kind" and value.lower() not in _KINDS:
            raise self._mistakes.at(position, f"there is no kind {value[:40]!r}", _one_of(_KINDS))
        return value.lower() if name == "kind" else value

    def _time(self, text: str, position: int) -> datetime:
        try:
            moment = datetime.fromisoformat(text.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise self._mistakes.at(
                position,
                f"{text[:40]!r} is no time",
                "Write '2026-01-31', or '2026-01-31T18:30:00+01:00'; without a zone it is UTC.",
            ) from None

    def _attribute(self, key: Key) -> str:
        name = fields.SAME_ATTRIBUTE.get(key.name.lower(), key.name.lower())
        if name not in fields.ATTRIBUTES:
            raise self._mistakes.at(
                key.position,
                f"there is no attribute {key.name[:80]!r}",
                f"{_one_of(fields.ATTRIBUTES)} Others begin with params., metrics. or tags.",
            )
        return name

    def _kind(self, key: Key) -> str:
        if key.group == "attributes":
            return fields.ATTRIBUTES[self._attribute(key)]
        return NUMBER if key.group == "metrics" else TEXT

    def _path(self, key: Key) -> str:
        if key.group == "attributes":
            name = self._attribute(key)
            return name if name == "create_time" else f"{self._root}.a.{name}"
        return f"{self._root}.{key.group[0]}.{fields.field_name(key.name)}"

    def _number_path(self, key: Key) -> str:
        return f"{self._root}.{key.group[0]}n.{fields.field_name(key.name)}"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _nothing(path: str, operator: str) -> Document:
    """NaN is neither above nor below anything, but as good as itself."""
    return {path: {"$eq": math.nan}} if operator in ("<=", ">=", "=") else {"_id": {"$in": []}}


def _one_of(values: Any) -> str:
    return f"Use one of {', '.join(sorted(values))}."
