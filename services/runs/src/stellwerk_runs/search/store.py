"""The collection `run_search`: what SearchRuns looks at, one document a run.

Attributes, parameters and tags are written in the transaction that changes the run;
the last values of metrics follow within about a second of what was logged
(`projector.py`).
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import ExecutionTimeout

from stellwerk_platform import names, paging
from stellwerk_platform.documents import Document
from stellwerk_platform.errors import DeadlineExceeded, InvalidArgument
from stellwerk_platform.mongo import Database, Session
from stellwerk_protos.runs.v1.runs_pb2 import Run
from stellwerk_runs.search import fields
from stellwerk_runs.search.query import Phase, Query

_TIMEOUT_MILLISECONDS = 10_000


Fitting = Callable[[Sequence[str]], Awaitable[int]]


class SearchStore:
    """Written by `RunStore` and the projector, read by SearchRuns."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.raw = database.raw["run_search"]

    async def open(self) -> None:
        """Creates collection and indexes."""
        newest = [("workspace", ASCENDING), ("create_time", DESCENDING), ("_id", DESCENDING)]
        await self._database.ensure(
            "run_search", [IndexModel(newest), IndexModel([("v.$**", ASCENDING)])], ["workspace", "archived"]
        )

    async def put(self, run: Run, session: Session | None) -> None:
        """Stores all but the metrics of a run, in the transaction that changes it."""
        await self.raw.update_one(
            {"_id": run.name}, {"$set": fields.changes(run)}, upsert=True, session=session
        )

    async def remove(self, runs: Iterable[str], session: Session | None) -> None:
        """Forgets runs that are removed for good."""
        await self.raw.delete_many({"_id": {"$in": list(runs)}}, session=session)

    async def put_metrics(self, run: str, last: Mapping[str, float], version: int) -> None:
        """Stores the last values at a version of the run's points, unless newer ones are there."""
        path = f"{fields.root(names.workspace_of(run))}.m"
        await self.raw.update_one(
            {"_id": run, "metrics_version": {"$not": {"$gte": version}}},
            {"$set": {path: fields.metrics(last), "metrics_version": version}},
        )

    async def last(
        self, workspace: str, runs: Iterable[str], metrics: Iterable[str]
    ) -> dict[str, dict[str, float]]:
        """The last values of some metrics, by run."""
        wanted = [fields.field_name(metric) for metric in metrics]
        return await self._last(workspace, runs, wanted) if wanted else {}

    async def all_last(self, workspace: str, runs: Iterable[str], most: int) -> dict[str, dict[str, float]]:
        """The last values of so many metrics of each run, by run."""
        found = await self._last(workspace, runs, [])
        return {run: dict(sorted(values.items())[:most]) for run, values in found.items()}

    async def _last(
        self, workspace: str, runs: Iterable[str], wanted: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        root = fields.root(workspace)
        group = root.split(".")[1]
        shown = {f"{root}.m.{key}": 1 for key in wanted} or {f"{root}.m": 1}
        return {
            document["_id"]: {
                fields.key_of(key): value
                for key, value in document.get("v", {}).get(group, {}).get("m", {}).items()
            }
            async for document in self.raw.find({"_id": {"$in": list(runs)}}, shown)
        }

    async def find(
        self, query: Query, size: int, token: str, fitting: Fitting, *identity: object
    ) -> tuple[list[str], str]:
        """One page of names and the token of the next page, which belongs to `identity`.

        `fitting` says how many of the names fit on one answer, at least one.
        """
        size = paging.page_size(size)
        phase, after = _position(paging.decode(token, "search", *identity), query)
        found: list[Document] = []
        ends: list[int] = []
        try:
            for number in range(phase, len(query.phases)):
                part = await self._phase(query, query.phases[number], after, size + 1 - len(found))
                found += part
                ends += [number] * len(part)
                after = None
                if len(found) > size:
                    break
        except ExecutionTimeout as error:
            raise DeadlineExceeded(
                "SEARCH_TOO_SLOW",
                f"The search took more than {_TIMEOUT_MILLISECONDS // 1000} s.",
                "Add a test that fewer runs meet; LIKE with a leading % looks at every run.",
            ) from error
        page = [document["_id"] for document in found[:size]]
        fits = await fitting(page)
        if fits == len(page) and len(found) <= size:
            return page, ""
        page, size = page[:fits], fits
        last = found[size - 1]
        path = query.phases[ends[size - 1]].path
        position = [ends[size - 1], _to_token(_at(last, path)), last["_id"]]
        return page, paging.encode(position, "search", *identity)

    async def _phase(
        self, query: Query, phase: Phase, after: tuple[Any, str] | None, limit: int
    ) -> list[Document]:
        """Up to `limit` runs of a phase that come after a value and name.

        The index sorts by value alone. So runs of equal value are read apart, by name,
        where a page begins or ends within them.
        """
        direction, comparison = (DESCENDING, "$lt") if query.descending else (ASCENDING, "$gt")
        where = {"$and": [query.where, phase.where]}
        if not phase.path:
            beyond = [{"_id": {comparison: after[1]}}] if after else []
            return await self._read({"$and": [where, *beyond]}, [("_id", direction)], "", limit)
        if phase.path == "create_time":
            return await self._by_time(where, after, direction, limit)
        found: list[Document] = []
        if after is not None:
            value, name = after
            ties = [{phase.path: {"$eq": value}}, {"_id": {comparison: name}}]
            found = await self._read({"$and": [where, *ties]}, [("_id", direction)], phase.path, limit)
            where = {"$and": [where, {phase.path: {comparison: value}}]}
        room = limit - len(found)
        if room == 0:
            return found
        rest = await self._read(where, [(phase.path, direction)], phase.path, room)
        groups = [list(group) for _, group in groupby(rest, key=lambda document: _at(document, phase.path))]
        if len(rest) == room:
            same = {phase.path: {"$eq": _at(groups.pop()[0], phase.path)}}
            room -= sum(map(len, groups))
            groups.append(await self._read({"$and": [where, same]}, [("_id", direction)], phase.path, room))
        for group in groups:
            found += sorted(group, key=lambda document: str(document["_id"]), reverse=query.descending)
        return found

    async def _by_time(
        self, where: Document, after: tuple[Any, str] | None, direction: int, limit: int
    ) -> list[Document]:
        comparison = "$lt" if direction == DESCENDING else "$gt"
        if after is not None:
            later = [
                {"create_time": {comparison: after[0]}},
                {"create_time": after[0], "_id": {comparison: after[1]}},
            ]
            where = {"$and": [where, {"$or": later}]}
        return await self._read(where, [("create_time", direction), ("_id", direction)], "create_time", limit)

    async def _read(
        self, where: Document, sort: list[tuple[str, int]], path: str, limit: int
    ) -> list[Document]:
        cursor = self.raw.find(where, {path: 1} if path else {"_id": 1})
        cursor = cursor.sort(sort).limit(limit).max_time_ms(_TIMEOUT_MILLISECONDS)
        return [dict(document) async for document in cursor]


def _at(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for part in path.split(".") if path else ():
        value = value[part]
    return value if path else None


def _to_token(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _position(token: Any, query: Query) -> tuple[int, tuple[Any, str] | None]:
    """Phase, and value and name after which to go on."""
    if token is None:
        return 0, None
    try:
        number, value, name = token
        phase = query.phases[number]
        if phase.path and phase.kind == fields.TIME:
            value = datetime.fromisoformat(value)
        elif phase.path and not isinstance(value, str | int | float):
            raise TypeError
        if not isinstance(name, str):
            raise TypeError
        return number, (value, name)
    except (ValueError, TypeError, IndexError):
        raise InvalidArgument(
            "INVALID_PAGE_TOKEN", "The page token cannot be read.", "Use the token from the last answer."
        ) from None
