"""What a filter is made of, and how it is written down again.

Own code rather than a parser generator: the language is twenty lines of grammar, and
most of what there is to it is saying where a filter is wrong.
"""

import math
import re
from dataclasses import dataclass, field

GROUPS = ("params", "metrics", "tags", "attributes")
KEYWORDS = frozenset(
    "AND OR NOT IN LIKE ILIKE IS NULL ASC DESC NAN INF INFINITY".split()  # noqa: SIM905
)
BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Key:
    """`params.x`: a group of GROUPS and a name in it."""

    group: str
    name: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Literal:
    """A text or a number; NaN is always the same object, so that equal filters are equal."""

    value: str | float
    position: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Comparison:
    """`key operator literal`; the operators are = != < <= > >=."""

    key: Key
    operator: str
    literal: Literal


@dataclass(frozen=True)
class In:
    """Whether the value is one of these."""

    key: Key
    literals: tuple[Literal, ...]


@dataclass(frozen=True)
class Like:
    """Whether a text has this form; % stands for any text."""

    key: Key
    pattern: Literal
    ignore_case: bool


@dataclass(frozen=True)
class IsNull:
    """Whether the run has no such value."""

    key: Key


@dataclass(frozen=True)
class Not:
    """What the term does not hold for."""

    term: "Filter"


@dataclass(frozen=True)
class And:
    """All of two or more terms."""

    terms: "tuple[Filter, ...]"


@dataclass(frozen=True)
class Or:
    """Any of two or more terms."""

    terms: "tuple[Filter, ...]"


Filter = Comparison | In | Like | IsNull | Not | And | Or


@dataclass(frozen=True)
class Order:
    """What runs are sorted by."""

    key: Key
    descending: bool


def unparse(tree: Filter) -> str:
    """A filter in words; reading it again gives the same tree."""
    match tree:
        case Comparison(key, operator, literal):
            return f"{_key(key)} {operator} {_literal(literal)}"
        case In(key, literals):
            return f"{_key(key)} IN ({', '.join(map(_literal, literals))})"
        case Like(key, pattern, ignore_case):
            return f"{_key(key)} {'ILIKE' if ignore_case else 'LIKE'} {_literal(pattern)}"
        case IsNull(key):
            return f"{_key(key)} IS NULL"
        case Not(term):
            return f"NOT {_nested(term)}"
        case And(terms):
            return " AND ".join(map(_nested, terms))
        case Or(terms):
            return " OR ".join(map(_nested, terms))


def _nested(tree: Filter) -> str:
    return f"({unparse(tree)})" if isinstance(tree, And | Or) else unparse(tree)


def _key(key: Key) -> str:
    if BARE.fullmatch(key.name) and key.name.upper() not in KEYWORDS:
        return f"{key.group}.{key.name}"
    return f"{key.group}.{_quoted(key.name, '`')}"


def _literal(literal: Literal) -> str:
    if isinstance(literal.value, str):
        return _quoted(literal.value, "'")
    if math.isnan(literal.value):
        return "NaN"
    return repr(float(literal.value))


def _quoted(text: str, quote: str) -> str:
    return quote + text.replace(quote, quote * 2) + quote
