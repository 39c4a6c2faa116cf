"""The filter language: what is written can be read, and what is wrong is shown where it is wrong."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stellwerk_platform.errors import InvalidArgument
from stellwerk_runs.search.language import DEPTH, LENGTH, TESTS, VALUES, parse, parse_order
from stellwerk_runs.search.query import compile_query
from stellwerk_runs.search.syntax import (
    GROUPS,
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
    unparse,
)

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
KEYS = st.builds(Key, st.sampled_from(GROUPS), TEXTS.filter(bool))
NUMBERS = st.one_of(st.floats(allow_nan=False), st.just(math.nan))
LITERALS = st.builds(Literal, TEXTS | NUMBERS)
TESTS_ = st.one_of(
    st.builds(Comparison, KEYS, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), LITERALS),
    st.builds(In, KEYS, st.lists(LITERALS, min_size=1, max_size=3).map(tuple)),
    st.builds(Like, KEYS, st.builds(Literal, TEXTS), st.booleans()),
    st.builds(IsNull, KEYS),
)


def _larger(trees: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(trees, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, trees), st.builds(And, several), st.builds(Or, several))


FILTERS: st.SearchStrategy[Filter] = st.recursive(TESTS_, _larger, max_leaves=6)
# What comes near to a filter finds more mistakes than any characters.
PIECES = ["params.", "metrics.a", "tags.`x y`", "status", "=", "!=", "<", "(", ")", ",", "'a'", '"b"']
PIECES += ["1", "-2.5e3", "nan", "AND", "OR", "NOT", "IN", "LIKE", "IS", "NULL", "'", "`", "$", "é"]
NEARLY = st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)


@given(FILTERS)
def test_a_filter_that_is_written_is_read_as_the_same(tree: Filter) -> None:
    assert parse(unparse(tree)) == tree


@given(st.text(max_size=60) | NEARLY)
@example("(" * 200)
@example("NOT " * 2_000)
@example("params.a = '\u2028")
@example("metrics.a > ²")
@example("create_time > '0001-01-01T00:00:00+14:00'")
@example("create_time > '9999-12-31T23:59:59-14:00'")
def test_whatever_is_written_is_read_or_refused_as_a_filter(text: str) -> None:
    assert reason_of(text, "") in ("", "INVALID_FILTER")
    assert reason_of("", text) in ("", "INVALID_ORDER_BY")


def reason_of(text: str, order_by: str) -> str:
    """Why they are refused; "" when they are not."""
    try:
        compile_query("demo", text, order_by, include_archived=False)
    except InvalidArgument as error:
        return error.reason
    return ""


def key(text: str) -> Key:
    group, _, name = text.partition(".")
    return Key(group, name)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("metrics.f1-score>.5", Comparison(key("metrics.f1-score"), ">", Literal(0.5))),
        ("metric.val/loss <= 1e-3", Comparison(key("metrics.val/loss"), "<=", Literal(1e-3))),
        ("params.model.depth = '3'", Comparison(key("params.model.depth"), "=", Literal("3"))),
        ('params."a ""b""" <> "it\'s"', Comparison(Key("params", 'a "b"'), "!=", Literal("it's"))),
        ("tags.`x.y` is not null", Not(IsNull(key("tags.x.y")))),
        ("status == 'FAILED'", Comparison(key("attributes.status"), "=", Literal("FAILED"))),
        ("tags.x not in (1, 'a')", Not(In(key("tags.x"), (Literal(1.0), Literal("a"))))),
        ("params.m ilike '%net%'", Like(key("params.m"), Literal("%net%"), True)),
        ("metrics.a = -inf", Comparison(key("metrics.a"), "=", Literal(-math.inf))),
        (
            "metrics.a > 1 AND NOT tags.b = 'x' OR status = 'failed'",
            Or(
                (
                    And(
                        (
                            Comparison(key("metrics.a"), ">", Literal(1.0)),
                            Not(Comparison(key("tags.b"), "=", Literal("x"))),
                        )
                    ),
                    Comparison(key("attributes.status"), "=", Literal("failed")),
                )
            ),
        ),
    ],
)
def test_the_language_is_read_as_documented(text: str, tree: Filter) -> None:
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("metrics.acc >> 0.9", 13, "a number or a text in quotes"),
        ("metrics.acc > ", 14, "the text ends"),
        ("metric.acc > 'high'", 13, "compared with numbers"),
        ("model.acc > 1", 0, "no group"),
        ("(status = 'failed'", 18, "')', AND or OR"),
        ("status = 'gone'", 9, "no state"),
        ("colour = 'red'", 0, "no attribute"),
        ("params.a = 'x", 11, "not closed"),
        ("params.a LIKE 3", 14, "takes a text"),
        ("create_time > 'soon'", 14, "no time"),
        ("duration_seconds LIKE '1%'", 0, "no text"),
        ("params.a = 'x' params.b = 'y'", 15, "AND, OR or the end"),
        ("params.a = '\0'", 12, "NUL"),
    ],
)
def test_a_mistake_is_shown_at_its_place(text: str, position: int, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        compile_query("demo", text, "", include_archived=False)
    error = caught.value
    assert (error.reason, error.metadata["position"]) == ("INVALID_FILTER", str(position))
    assert problem in error.message
    assert error.message.split("\n")[-1] == " " * position + "^"
    assert error.cure


def test_the_caret_stays_below_its_place_in_a_long_filter_of_several_lines() -> None:
    text = "params.a = 'x' AND\n" + "params.b = 'y' AND " * 20 + "oops.c = 1"
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    line, caret = caught.value.message.split("\n")[-2:]
    assert line[caret.index("^") :].startswith("oops.c")


@pytest.mark.parametrize(
    "text",
    [
        "a" * (LENGTH + 1),
        "(" * (DEPTH + 1),
        " AND ".join(["status = 'failed'"] * (TESTS + 1)),
        f"params.a IN ({','.join(['1'] * (VALUES + 2))})",
    ],
)
def test_a_filter_is_bounded(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert caught.value.reason == "INVALID_FILTER"


def test_an_order_is_a_key_and_a_direction() -> None:
    assert parse_order("metrics.accuracy DESC") == Order(key("metrics.accuracy"), True)
    assert parse_order("create_time") == Order(key("attributes.create_time"), False)
    assert parse_order("  ") is None
    with pytest.raises(InvalidArgument) as caught:
        parse_order("metrics.a desc, metrics.b")
    assert caught.value.reason == "INVALID_ORDER_BY"
