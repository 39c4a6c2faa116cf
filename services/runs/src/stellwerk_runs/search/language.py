"""The filter language of SearchRuns: text to tree (docs/search.md has the language).

    filter     = and { OR and }
    and        = not { AND not }
    not        = NOT not | "(" filter ")" | test
    test       = key ( operator literal | [NOT] IN "(" literal { "," literal } ")"
                 | [NOT] ( LIKE | ILIKE ) text | IS [NOT] NULL )
    key        = [ group "." ] name

Every text is bounded, and whatever is wrong with it raises `InvalidArgument` that
shows the place.
"""

import math
import re
from dataclasses import dataclass

from stellwerk_platform.errors import InvalidArgument
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
    Order,
)

LENGTH = 10_000
DEPTH = 50
TESTS = 200
VALUES = 1_000
_SHOWN = 60
_OPERATORS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=")
_SAME = {"==": "=", "<>": "!="}
_GROUPS = {
    alias: group
    for group, aliases in {
        "params": "param params parameter parameters",
        "metrics": "metric metrics",
        "tags": "tag tags",
        "attributes": "attr attribute attributes run",
    }.items()
    for alias in aliases.split()
}
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<word>[+-]?[A-Za-z_][\w./:@+-]*)
    | (?P<operator><=|>=|!=|<>|==|[=<>])
    | (?P<mark>[(),.])
    | (?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`)
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int

    @property
    def upper(self) -> str:
        """For keywords, whose case does not matter; "" for what can be none."""
        return self.text.upper() if self.kind == "word" else ""


class Mistakes:
    """Makes the errors of one text, which show where in it they are."""

    def __init__(self, reason: str, text: str) -> None:
        self._reason = reason
        self._text = text

    def at(self, position: int, problem: str, cure: str = "") -> InvalidArgument:
        """The error, with the line and a caret below the place."""
        start = max(self._text.rfind("\n", 0, position) + 1, position - _SHOWN)
        line = self._text[start : position + _SHOWN].split("\n")[0]
        shown = "".join(character if character.isprintable() else " " for character in line)
        return InvalidArgument(
            self._reason,
            f"Character {position + 1}: {problem}.\n{shown}\n{' ' * (position - start)}^",
            cure or "docs/search.md has the language, with examples.",
            {"position": str(position)},
        )


def parse(text: str) -> Filter | None:
    """The tree of a filter, None for an empty one; raises `InvalidArgument` INVALID_FILTER."""
    mistakes = Mistakes("INVALID_FILTER", text)
    _check_text(text, mistakes)
    if not text.strip():
        return None
    parser = _Parser(_tokens(text, mistakes), mistakes)
    tree = parser.filter(DEPTH)
    parser.end("AND, OR or the end of the filter")
    return tree


def parse_order(text: str) -> Order | None:
    """What to sort by, None for nothing; raises `InvalidArgument` INVALID_ORDER_BY."""
    mistakes = Mistakes("INVALID_ORDER_BY", text)
    _check_text(text, mistakes)
    if not text.strip():
        return None
    parser = _Parser(_tokens(text, mistakes), mistakes)
    key = parser.key()
    descending = parser.accept("DESC")
    if not descending:
        parser.accept("ASC")
    parser.end("ASC, DESC or the end: runs are sorted by one thing")
    return Order(key, descending)


def _check_text(text: str, mistakes: Mistakes) -> None:
    if len(text) > LENGTH:
        raise mistakes.at(LENGTH, f"the text has {len(text):,} characters", f"Use up to {LENGTH:,}.")
    if "\0" in text:
        raise mistakes.at(text.index("\0"), "there is a NUL character", "Leave it out.")


def _tokens(text: str, mistakes: Mistakes) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while True:
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            position += len(text[position:]) - len(text[position:].lstrip())
            quote = text[position] in "'\"`"
            problem = "the quote is not closed" if quote else f"{text[position]!r} means nothing here"
            raise mistakes.at(position, problem)
        kind = found.lastgroup
        tokens.append(_Token(kind, found[kind], found.start(kind)))
        if kind == "end":
            return tokens
        position = found.end()


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, tokens: list[_Token], mistakes: Mistakes) -> None:
        self._tokens = tokens
        self._mistakes = mistakes
        self._index = 0
        self._tests = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._index]

    def _take(self) -> _Token:
        token = self._next
        self._index += 1
        return token

    def accept(self, *keywords: str) -> bool:
        """Takes a keyword if it is next."""
        if self._next.upper not in keywords:
            return False
        self._index += 1
        return True

    def end(self, expected: str) -> None:
        """Raises unless all is read."""
        if self._next.kind != "end":
            raise self._wrong(expected)

    def filter(self, depth: int) -> Filter:
        """The lowest binding: OR."""
        terms = [self._and(depth)]
        while self.accept("OR"):
            terms.append(self._and(depth))
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _and(self, depth: int) -> Filter:
        terms = [self._not(depth)]
        while self.accept("AND"):
            terms.append(self._not(depth))
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _not(self, depth: int) -> Filter:
        if depth == 0:
            raise self._mistakes.at(
                self._next.position, "the filter is nested too deeply", f"Nest up to {DEPTH} levels."
            )
        if self.accept("NOT"):
            return Not(self._not(depth - 1))
        if self._mark("("):
            tree = self.filter(depth - 1)
            if not self._mark(")"):
                raise self._wrong("')', AND or OR")
            return tree
        return self._test()

    def _test(self) -> Filter:
        self._tests += 1
        if self._tests > TESTS:
            cure = f"Use up to {TESTS}; IN takes many values."
            raise self._mistakes.at(self._next.position, "the filter has too many tests", cure)
        key = self.key()
        if self._next.kind == "operator":
            operator = self._take().text
            return Comparison(key, _SAME.get(operator, operator), self._literal())
        if self.accept("IS"):
            negated = self.accept("NOT")
            if not self.accept("NULL"):
                raise self._wrong("NULL")
            return Not(IsNull(key)) if negated else IsNull(key)
        negated = self.accept("NOT")
        test = self._in_or_like(key)
        return Not(test) if negated else test

    def _in_or_like(self, key: Key) -> Filter:
        if self.accept("IN"):
            return In(key, self._list())
        for keyword in ("LIKE", "ILIKE"):
            if self.accept(keyword):
                pattern = self._literal()
                if not isinstance(pattern.value, str):
                    raise self._mistakes.at(pattern.position, f"{keyword} takes a text, for example 'mlp%'")
                return Like(key, pattern, keyword == "ILIKE")
        raise self._wrong(f"one of {' '.join(_OPERATORS[::2])} < >, IN, LIKE, ILIKE or IS")

    def _list(self) -> tuple[Literal, ...]:
        if not self._mark("("):
            raise self._wrong("'(' and a list of values")
        literals = [self._literal()]
        while self._mark(","):
            literals.append(self._literal())
            if len(literals) > VALUES:
                raise self._mistakes.at(self._next.position, "the list is too long", f"Use up to {VALUES:,}.")
        if not self._mark(")"):
            raise self._wrong("',' or ')'")
        return tuple(literals)

    def key(self) -> Key:
        """`group.name` with the name in quotes or not; a name alone is an attribute."""
        token = self._take()
        if token.kind == "quoted" and token.text[0] == "`":
            return Key("attributes", _unquote(token.text), token.position)
        if token.kind != "word":
            raise self._wrong("a key such as metrics.accuracy", token)
        group, dot, name = token.text.partition(".")
        if not dot:
            if group.lower() in _GROUPS and self._mark("."):
                return self._quoted_name(_GROUPS[group.lower()], token)
            return Key("attributes", token.text, token.position)
        if group.lower() not in _GROUPS:
            raise self._mistakes.at(
                token.position, f"{group[:40]!r} is no group", "Use params, metrics, tags or attributes."
            )
        if not name:
            return self._quoted_name(_GROUPS[group.lower()], token)
        return Key(_GROUPS[group.lower()], name, token.position)

    def _quoted_name(self, group: str, first: _Token) -> Key:
        token = self._take()
        if token.kind in ("quoted", "number"):
            name = _unquote(token.text) if token.kind == "quoted" else token.text
            if name:
                return Key(group, name, first.position)
        raise self._wrong(f"a name after {first.text.rstrip('.')}., in quotes if it has other signs", token)

    def _literal(self) -> Literal:
        token = self._take()
        if token.kind == "number":
            return Literal(float(token.text), token.position)
        if token.kind == "quoted" and token.text[0] != "`":
            return Literal(_unquote(token.text), token.position)
        sign, word = (token.upper[:1], token.upper[1:]) if token.upper[:1] in "+-" else ("", token.upper)
        if word in ("INF", "INFINITY"):
            return Literal(-math.inf if sign == "-" else math.inf, token.position)
        if token.upper == "NAN":
            return Literal(math.nan, token.position)
        raise self._wrong("a number or a text in quotes", token)

    def _mark(self, mark: str) -> bool:
        if self._next.kind == "mark" and self._next.text == mark:
            self._index += 1
            return True
        return False

    def _wrong(self, expected: str, token: _Token | None = None) -> InvalidArgument:
        token = token or self._next
        found = "the text ends" if token.kind == "end" else f"there is {token.text[:40]!r}"
        return self._mistakes.at(token.position, f"{found} where {expected} is expected")


def _unquote(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])
