"""A deployment without replicas: the first request wakes it, waits, and is answered."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.gateway.tests.replica import FakeReplica, route, until
from services.gateway.tests.test_scoring import score
from stellwerk_gateway.scoring.reporter import LoadReporter
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_platform.errors import Unavailable
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import loads_pb2


class Told:
    """What `inference` was told; it may be away."""

    def __init__(self) -> None:
        self.reports: list[loads_pb2.ReportLoadRequest] = []
        self.is_away = False
        self.came = asyncio.Event()

    async def send(self, report: loads_pb2.ReportLoadRequest) -> None:
        if self.is_away:
            raise Unavailable("AWAY", "away")
        self.reports.append(report)
        self.came.set()

    async def next(self) -> loads_pb2.GatewayLoad:
        """The load in the next report that has one."""
        async with asyncio.timeout(60):
            while True:
                self.came.clear()
                await self.came.wait()
                if self.reports[-1].loads:
                    return self.reports[-1].loads[0]


@pytest.fixture
async def told(table: RouteTable) -> AsyncIterator[Told]:
    told = Told()
    task = asyncio.create_task(LoadReporter(table, told.send).run())
    yield told
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    fake = FakeReplica("a")
    await fake.start()
    yield fake
    await fake.stop()


def asleep() -> pb.Route:
    made = route(blue=(100, []))
    made.targets[0].asleep = True
    return made


async def test_the_first_request_wakes_the_deployment_and_waits(
    web: aiohttp.ClientSession, table: RouteTable, told: Told, replica: FakeReplica
) -> None:
    table.replace([asleep()])
    request = asyncio.create_task(score(web))
    await until(lambda: any(load.queued for report in told.reports for load in report.loads))
    starting = route(blue=(100, []))
    starting.targets[0].starting = True
    table.replace([starting])
    table.replace([route(blue=(100, [replica]))])
    assert (await request)[0] == 200


async def test_what_replicas_use_and_cold_starts_are_reported(
    web: aiohttp.ClientSession, table: RouteTable, told: Told, replica: FakeReplica
) -> None:
    replica.usage = (
        '{"cpu_seconds": 1.5, "memory_bytes": 1000, "calls": 4, "requests": 10, "batches": {"2": 3, "4": 1}}'
    )
    table.replace([asleep()])
    request = asyncio.create_task(score(web))
    deployment = table.endpoints[asleep().endpoint].deployments["blue"]
    await until(lambda: deployment.queued == 1)
    table.replace([route(blue=(100, [replica]))])
    assert (await request)[0] == 200

    def loads() -> list[loads_pb2.GatewayLoad]:
        return [load for report in told.reports for load in report.loads]

    await until(lambda: any(usage.calls for load in loads() for usage in load.usages))
    load = loads()[-1]
    (usage,) = load.usages
    assert (usage.replica, usage.cpu_seconds, usage.memory_bytes) == ("a", 1.5, 1000)
    assert (usage.calls, usage.requests, load.cold_starts) == (4, 10, 1)
    assert dict(usage.batches) == {2: 3, 4: 1}


@pytest.mark.parametrize("limits", [{"park_seconds": 0.3}], indirect=True)
async def test_nobody_waits_longer_than_the_limit(
    web: aiohttp.ClientSession, table: RouteTable, told: Told
) -> None:
    table.replace([asleep()])
    assert (await score(web))[0] == 503


async def test_a_wake_up_that_is_lost_is_made_good_by_the_next_report(
    web: aiohttp.ClientSession, table: RouteTable, told: Told, replica: FakeReplica
) -> None:
    told.is_away = True
    table.replace([asleep()])
    request = asyncio.create_task(score(web))
    deployment = table.endpoints[asleep().endpoint].deployments["blue"]
    await until(lambda: deployment.queued == 1)
    told.is_away = False
    assert (await told.next()).queued > 0
    table.replace([route(blue=(100, [replica]))])
    assert (await request)[0] == 200


async def test_reports_have_what_was_counted_from_the_start(
    web: aiohttp.ClientSession, table: RouteTable, told: Told, replica: FakeReplica
) -> None:
    table.replace([route(blue=(100, [replica]))])
    assert (await told.next()).arrived == 0
    for _ in range(3):
        await score(web)
    replica.gate.clear()
    request = asyncio.create_task(score(web))
    await until(lambda: told.reports[-1].loads[0].in_flight == 1)
    load = told.reports[-1].loads[0]
    assert (load.arrived, load.answered, sum(load.buckets), load.failed) == (4, 3, 3, 0)
    replica.gate.set()
    await request
