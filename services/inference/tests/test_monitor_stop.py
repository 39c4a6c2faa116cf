"""A place for checks that is to stop stops, whatever else happens at that moment.

The moment in which a lease is lost and the process stops has no event that a test could wait for in the
running service: here the store only says that the lease is lost, and the work is one that takes long to end.
"""

import asyncio
import sys
from typing import Any, cast

import pytest
import uvloop

from stellwerk_inference.monitors import checker, process
from stellwerk_inference.monitors.compare.failures import CheckFailed
from stellwerk_protos.inference.v1 import monitors_pb2 as pb


class LostLeases:
    """What a checker asks of the store while it works."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def renew(self, check: str, owner: str) -> bool:
        return False

    async def release(self, check: str, owner: str) -> None:
        self.released.set()


class LongEnd(checker.Checker):
    """Its work takes until `ending` has been seen and another cancel comes."""

    def __init__(self, store: LostLeases) -> None:
        nothing = cast(Any, None)
        super().__init__(cast(Any, store), nothing, nothing, nothing, nothing, 1)
        self.ending = asyncio.Event()
        self.may_end = asyncio.Event()

    async def _outcome(self, check: pb.MonitorCheck, tries: int) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            self.ending.set()
            await self.may_end.wait()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stops", [True, False])
async def test_a_place_that_loses_a_lease_goes_on_unless_it_is_to_stop(
    stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "LEASE_SECONDS", 0.0)
    store = LostLeases()
    place = LongEnd(store)
    working = asyncio.create_task(
        place._work(pb.MonitorCheck(name="workspaces/a/monitors/b/checks/1"), 1, "o")
    )
    await place.ending.wait()
    if stops:
        working.cancel()
    else:
        place.may_end.set()
    await asyncio.wait([working])
    assert (working.cancelled(), store.released.is_set()) == (stops, stops)


async def test_a_comparison_that_ends_at_once_is_told_as_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the loop of services, which says so with an error of its own."""
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def look() -> set[str]:
        told = set()
        for _ in range(100):
            with pytest.raises(CheckFailed) as caught:
                await process.look({})
            told.add(caught.value.code)
        return told

    assert await asyncio.to_thread(uvloop.run, look()) == {"COMPARISON_DIED"}
