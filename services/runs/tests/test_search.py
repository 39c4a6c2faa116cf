"""SearchRuns against an evaluator that looks at every run, on a real MongoDB."""

import math
import random
import re
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest_asyncio

from stellwerk_launcher.testing import Servers
from stellwerk_platform.documents import timestamp
from stellwerk_platform.mongo import Database
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_runs.search import fields
from stellwerk_runs.search.language import parse
from stellwerk_runs.search.query import compile_query
from stellwerk_runs.search.store import SearchStore
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
    unparse,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
RUNS = 300
FILTERS = 150
TEXTS = ["a", "b", "mlp", "MLP.v2", "0.5", "1", "1e0", "-3", "x%y", "auto", "", "10\n"]
NUMBERS = [0.0, -0.0, 0.5, 1.0, 1.5, -3.0, math.inf, -math.inf, math.nan]
# Names that would mean something else in a path.
PARAMS = ["model", "lr", "a.b", "$x", "0", "50%"]
METRICS = ["accuracy", "val.loss", "0"]
TAGS = ["owner", "a b"]
ORDERS = [
    "",
    "create_time",
    "name desc",
    "state",
    "duration_seconds desc",
    *(f"metrics.`{metric}` {direction}" for metric in METRICS for direction in ("asc", "desc")),
    *(f"params.`{param}` {direction}" for param in ("model", "lr", "0") for direction in ("asc", "desc")),
]


@dataclass(frozen=True)
class Searched:
    """Runs with their last metrics, and the store that holds them."""

    store: SearchStore
    runs: list[tuple[pb.Run, dict[str, float]]]


def make(number: int, chance: random.Random) -> tuple[pb.Run, dict[str, float]]:
    begin = START + timedelta(seconds=chance.randrange(40))
    run = pb.Run(
        name=f"workspaces/w-1/runs/r{chance.randrange(10**9)}-{number}",
        experiment=f"workspaces/w-1/experiments/E{chance.randrange(3)}",
        display_name=chance.choice(TEXTS),
        creator="users/owner",
        kind=pb.RUN_KIND_COMMAND,
        state=chance.choice([pb.RUN_STATE_COMPLETED, pb.RUN_STATE_FAILED, pb.RUN_STATE_RUNNING]),
        create_time=timestamp(begin),
        params={key: chance.choice(TEXTS) for key in PARAMS if chance.random() < 0.6},
        tags={key: chance.choice(TEXTS) for key in TAGS if chance.random() < 0.6},
    )
    if chance.random() < 0.7:
        run.start_time.CopyFrom(timestamp(begin))
        run.end_time.CopyFrom(timestamp(begin + timedelta(seconds=chance.randrange(3))))
        run.exit_code = chance.randrange(2)
    if chance.random() < 0.2:
        run.archive_time.CopyFrom(timestamp(begin))
    return run, {metric: chance.choice(NUMBERS) for metric in METRICS if chance.random() < 0.7}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def searched(servers: Servers) -> AsyncIterator[Searched]:
    """Some hundred runs of two workspaces; one is searched."""
    database = Database(servers.mongodb_uri, f"s{uuid.uuid4().hex[:8]}", "runs")
    await database.open()
    store = SearchStore(database)
    await store.open()
    chance = random.Random(7)
    runs = [make(number, chance) for number in range(RUNS)]
    for run, last in runs:
        await store.put(run, None)
        await store.put_metrics(run.name, last, 1)
        other = pb.Run()
        other.CopyFrom(run)
        other.name = run.name.replace("/w-1/", "/w-2/")
        await store.put(other, None)
    yield Searched(store, runs)
    await database.client.drop_database(database.raw.name)
    database.close()


def value_of(run: pb.Run, last: dict[str, float], key: Key) -> Any:
    if key.group == "metrics":
        return last.get(key.name)
    if key.group in ("params", "tags"):
        return dict(getattr(run, key.group)).get(key.name)
    return fields.attributes(run).get(key.name)


def compares(value: Any, operator: str, literal: Literal, key: Key) -> bool:
    if value is None:
        return False
    wanted: Any = literal.value
    if key.group in ("params", "tags") and not isinstance(wanted, str):
        number = fields.number_of(value)
        if number is None:
            return operator == "!="
        value = number
    if key.group == "attributes" and key.name.endswith("_time"):
        wanted = datetime.fromisoformat(wanted)
    equal = value == wanted or (value != value and wanted != wanted)
    results: dict[str, bool] = {
        "=": equal,
        "!=": not equal,
        "<": value < wanted,
        "<=": equal or value < wanted,
        ">": value > wanted,
        ">=": equal or value > wanted,
    }
    return results[operator]


def holds(tree: Filter, run: pb.Run, last: dict[str, float]) -> bool:
    """What the translated filter must say."""
    match tree:
        case And(terms):
            return all(holds(term, run, last) for term in terms)
        case Or(terms):
            return any(holds(term, run, last) for term in terms)
        case Not(term):
            return not holds(term, run, last)
        case IsNull(key):
            return value_of(run, last, key) is None
        case In(key, literals):
            return any(compares(value_of(run, last, key), "=", one, key) for one in literals)
        case Like(key, pattern, ignore_case):
            value = value_of(run, last, key)
            expression = ".*".join(re.escape(part) for part in str(pattern.value).split("%"))
            flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
            return value is not None and re.fullmatch(expression, value, flags) is not None
        case Comparison(key, operator, literal):
            return compares(value_of(run, last, key), operator, literal, key)


def sort_key(order: str, descending: bool) -> Callable[[tuple[pb.Run, dict[str, float]]], Any]:
    """Runs with a number, then with a text, then the rest; each by value, then by name."""

    def turn(items: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
        return sorted(items, reverse=descending)

    def rank(pair: tuple[pb.Run, dict[str, float]]) -> tuple[int, Any, str]:
        run, last = pair
        if not order:
            return 0, run.create_time.ToMilliseconds(), run.name
        key = parse(f"{order.split(' ')[0]} IS NULL")
        assert isinstance(key, IsNull)
        if key.key.name == "name":
            return 0, 0, run.name
        value = value_of(run, last, key.key)
        if key.key.group in ("params", "tags") and value is not None:
            number = fields.number_of(value)
            return (1, value, run.name) if number is None else (0, number, run.name)
        if value is None or value != value:
            return 2, 0, run.name
        return 0, value, run.name

    return rank


def expected(searched: Searched, tree: Filter | None, order: str, archived: bool) -> list[str]:
    found = [
        (run, last)
        for run, last in searched.runs
        if (archived or not run.HasField("archive_time")) and (tree is None or holds(tree, run, last))
    ]
    descending = not order or order.endswith(" desc")
    rank = sort_key(order, descending)
    by_phase: dict[int, list[tuple[Any, str]]] = {0: [], 1: [], 2: []}
    for pair in found:
        phase, value, name = rank(pair)
        by_phase[phase].append((value, name))
    return [name for phase in by_phase.values() for _, name in sorted(phase, reverse=descending)]


def random_filter(chance: random.Random, depth: int = 2) -> Filter:
    if depth and chance.random() < 0.6:
        terms = tuple(random_filter(chance, depth - 1) for _ in range(chance.randrange(2, 4)))
        shapes: list[Filter] = [And(terms), Or(terms), Not(terms[0])]
        return chance.choice(shapes)
    return random_test(chance)


def random_test(chance: random.Random) -> Filter:
    operator = chance.choice(["=", "!=", "<", "<=", ">", ">="])
    kind = chance.choice(["metrics", "params", "params", "tags", "attributes"])
    if kind == "metrics":
        key = Key("metrics", chance.choice(METRICS))
        return Comparison(key, operator, Literal(chance.choice(NUMBERS)))
    if kind == "attributes":
        attributes: list[Filter] = [
            Comparison(Key("attributes", "state"), "=", Literal(chance.choice(["failed", "completed"]))),
            Comparison(Key("attributes", "experiment"), operator, Literal("E1")),
            Comparison(Key("attributes", "exit_code"), operator, Literal(1.0)),
            Comparison(Key("attributes", "duration_seconds"), operator, Literal(1.0)),
            Comparison(Key("attributes", "create_time"), operator, Literal("2026-01-01T00:00:20+00:00")),
            IsNull(Key("attributes", "end_time")),
        ]
        return chance.choice(attributes)
    key = Key(kind, chance.choice(PARAMS if kind == "params" else TAGS))
    literal = Literal(chance.choice(TEXTS) if chance.random() < 0.5 else chance.choice(NUMBERS))
    pattern = Literal(chance.choice(["%", "m%", "%p", "%.%", "x%y", "10%", "mlp%", "1"]))
    texts: list[Filter] = [
        Comparison(key, operator, literal),
        In(key, (literal, Literal("mlp"))),
        Like(key, pattern, chance.random() < 0.5),
        IsNull(key),
    ]
    return chance.choice(texts)


async def pages(
    searched: Searched, text: str, order: str, archived: bool, size: int, most: int = 10**9
) -> list[str]:
    """All names, page by page; `most` is how many runs fit on one answer."""
    found: list[str] = []
    token = ""

    async def fitting(page: Sequence[str]) -> int:
        return min(len(page), most)

    while True:
        query = compile_query("w-1", text, order, archived)
        page, token = await searched.store.find(query, size, token, fitting, text, order, archived)
        assert len(page) == min(size, most) or not token
        found += page
        if not token:
            return found


async def test_every_filter_finds_what_looking_at_every_run_finds(searched: Searched) -> None:
    chance = random.Random(11)
    hits = 0
    for _ in range(FILTERS):
        tree = random_filter(chance)
        order, archived = chance.choice(ORDERS), chance.random() < 0.3
        size = chance.choice([7, 40, 1_000])
        text = unparse(tree)
        wanted = expected(searched, tree, order, archived)
        assert await pages(searched, text, order, archived, size) == wanted, (text, order)
        hits += bool(wanted)
    # The filters are worth something only if most find runs.
    assert hits > FILTERS / 2


async def test_every_order_has_stable_pages_of_any_size(searched: Searched) -> None:
    for order in ORDERS:
        wanted = expected(searched, None, order, True)
        assert len(wanted) == RUNS
        for size in (1, 50, 299, 300):
            if size > 1 or order in ("", "metrics.`0` desc"):
                assert await pages(searched, "", order, True, size) == wanted, (order, size)
        assert await pages(searched, "", order, True, 100, most=37) == wanted, order
