"""What is behind a live endpoint dies under load: no wrong answer, and nothing lost without an error."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

import stellwerk
from stellwerk_launcher.testing import StackProcess
from tests.faults.processes import scorers

pytestmark = pytest.mark.timeout(600)
CALLERS = 8
SCRIPT = """
import json, time

def init():
    pass

def run(raw):
    time.sleep(0.002)
    return {"answer": json.loads(raw)["x"] * 2}
"""


class Load:
    """Callers that go on asking, and what they were answered."""

    def __init__(self, url: str, key: str) -> None:
        self.codes: Counter[int] = Counter()
        self.unanswered = 0
        self.wrong: list[Any] = []
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._stopped = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Asks until the end of the block; every request that was sent has ended then."""
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(self._url, headers=self._headers, timeout=timeout) as session:
            callers = [asyncio.create_task(self._call(session, number)) for number in range(CALLERS)]
            try:
                yield self
            finally:
                self._stopped = True
                await asyncio.gather(*callers)

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        x = number
        while not self._stopped:
            x += CALLERS
            try:
                async with session.post("score", json={"x": x}) as response:
                    document = await response.json()
            except aiohttp.ClientError:
                self.unanswered += 1
                await asyncio.sleep(0.05)
                continue
            self.codes[response.status] += 1
            if response.status == 200 and document != {"answer": 2 * x}:
                self.wrong.append((x, document))

    async def more(self, count: int = 200) -> None:
        """Returns after so many more right answers."""
        target = self.codes[200] + count
        async with asyncio.timeout(240):
            while self.codes[200] < target:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    @property
    def errors(self) -> int:
        """Answers that are none."""
        return sum(number for code, number in self.codes.items() if code != 200)


class Endpoint:
    """A deployment with two replicas, and its processes."""

    def __init__(self, stack: StackProcess, url: str, key: str) -> None:
        self.stack = stack
        self.url = url
        self.key = key

    def load(self) -> Load:
        """Callers of its own."""
        return Load(f"{self.url}/", self.key)

    async def counted(self) -> Counter[int]:
        """What the gateway has answered, by code."""
        headers = {"authorization": f"Bearer {self.key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{self.url}/statistics") as response,
        ):
            page = await response.json()
        counts = [page["refused"], *page["deployments"].values()]
        return sum(
            (Counter({int(code): number for code, number in item["codes"].items()}) for item in counts),
            Counter(),
        )

    def scorers(self) -> list[psutil.Process]:
        """The scoring servers of this stack."""
        return scorers(self.stack.data_dir)


@pytest.fixture(scope="module")
def endpoint(
    breakable: StackProcess, workspace: stellwerk.Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("endpoint")
    (folder / "code").mkdir()
    (folder / "code" / "score.py").write_text(SCRIPT)
    (folder / "model.txt").write_text("none")
    workspace.environments.create_version("bare", packages=[])
    workspace.models.register("none", path=folder / "model.txt")
    created = workspace.endpoints.create("live")
    workspace.deployments.create(
        *("blue",),
        endpoint="live",
        models=["none:1"],
        environment="bare",
        code=folder / "code",
        script="score.py",
        replicas=2,
    )
    last = list(workspace.deployments.watch("live", "blue"))[-1]
    assert last.ready_replica_count == 2, last.reason
    key = Path(breakable.status()["owner_key_file"]).read_text().strip()
    yield Endpoint(breakable, created.url.removesuffix("/score"), key)
    workspace.endpoints.delete("live")


def kill_worker(endpoint: Endpoint) -> None:
    """The process with the user's code, of one of the replicas."""
    children = endpoint.scorers()[0].children()
    assert children
    os.kill(children[0].pid, signal.SIGKILL)


def kill_scorer(endpoint: Endpoint) -> None:
    """One of the replicas."""
    os.kill(endpoint.scorers()[0].pid, signal.SIGKILL)


def service(name: str) -> Callable[[Endpoint], None]:
    """Kills a service."""

    def kill(endpoint: Endpoint) -> None:
        endpoint.stack.kill(name)

    return kill


@pytest.mark.parametrize(
    ("kill", "lost"),
    [
        (kill_worker, CALLERS),
        (kill_scorer, CALLERS),
        # Nobody who asks notices.
        (service("agent"), 0),
        (service("inference"), 0),
    ],
    ids=["worker", "scorer", "agent", "inference"],
)
async def test_a_death_behind_the_door_costs_at_most_what_the_dead_one_had(
    endpoint: Endpoint, kill: Callable[[Endpoint], None], lost: int
) -> None:
    before = await endpoint.counted()
    async with endpoint.load().running() as load:
        await load.more()
        await asyncio.to_thread(kill, endpoint)
        await load.more(1_000)
    assert (load.wrong, load.unanswered) == ([], 0)
    assert load.errors <= lost, load.codes
    assert await endpoint.counted() - before == load.codes


async def test_callers_of_a_gateway_that_dies_know_it_and_find_it_again(endpoint: Endpoint) -> None:
    async with endpoint.load().running() as load:
        await load.more()
        old = await asyncio.to_thread(endpoint.stack.kill, "gateway")
        await asyncio.to_thread(endpoint.stack.wait_until_back, "gateway", old)
        await load.more()
    assert load.wrong == []
    assert load.unanswered >= 1
    assert set(load.codes) <= {200, 503}, load.codes


async def test_a_replica_that_hangs_is_not_asked_for_long(endpoint: Endpoint) -> None:
    async with asyncio.timeout(120):
        while len(endpoint.scorers()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    hanging = endpoint.scorers()[0]
    async with endpoint.load().running() as load:
        await load.more()
        hanging.suspend()
        try:
            # Callers whose request hangs wait; the others go on, and all do once it is taken out.
            await load.more(300)
        finally:
            hanging.resume()
        await load.more()
    assert (load.wrong, load.unanswered) == ([], 0)
