"""`inference` is killed at each step of a check that is due: there is one check, and it ends."""

import asyncio
import signal
from datetime import UTC, datetime

import pytest

from services.inference.tests.monitor_support import Data, ended, monitor_request
from services.inference.tests.support import Inference, Journal
from stellwerk_inference.monitors import domain
from stellwerk_platform.mongo import Database
from stellwerk_protos.inference.v1 import monitors_pb2 as pb

# The check is written; it is there and nobody works on it; somebody does; it is compared; its end is
# written; its end is there.
DEATHS = (
    "store.before_commit:1",
    "store.committed:1",
    "inference.check_claimed:1",
    "inference.check_compared:1",
    "store.before_commit:2",
    "store.committed:2",
)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_each_due_time_has_one_check_wherever_the_service_dies(unstarted: Inference) -> None:
    database = Database(unstarted.secrets.servers.mongodb_uri, unstarted.bus.names.namespace, "inference")
    async with Data(unstarted).run() as data, Journal().follow(unstarted.bus) as journal:
        async with unstarted.process():
            endpoint = (await unstarted.create_endpoint("monitor-deaths")).name
            request = monitor_request(endpoint, "deaths", cron="0 0 1 * *")
            monitor = (await unstarted.monitors.CreateMonitor(request, timeout=30)).name
        await data.collect(endpoint, 200)
        for number, death in enumerate(DEATHS, start=1):
            due = {"$set": {"next_check_time": LONG_AGO}}
            await database.raw["monitors"].update_one({"_id": monitor}, due)
            async with unstarted.process(death) as process, asyncio.timeout(180):
                assert await process.wait() == -signal.SIGKILL, death
            # As if the time of a lease had passed.
            over = {"$set": {"lease_until": LONG_AGO}}
            await database.raw["monitor_checks"].update_many({"lease_until": {"$exists": True}}, over)
            async with unstarted.process():
                await told(journal, f"{monitor}/checks/{number}")
                found = await unstarted.monitors.GetMonitor(pb.GetMonitorRequest(name=monitor))
                assert (found.check_count, found.state) == (number, domain.OK), death
                check = await ended(unstarted, f"{monitor}/checks/{number}")
                assert (check.state, check.row_count) == (domain.COMPLETED, 200), death
    database.close()


async def told(journal: Journal, check: str) -> None:
    """Waits until the monitor shows this check; an event comes twice when its sender was killed."""
    # The service and the process of the comparison have to start first.
    while (await journal.next("monitor.checked", seconds=120))["data"]["resource"]["lastCheck"] != check:
        pass
