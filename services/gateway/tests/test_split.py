"""Which deployment answers: shares, sticky requests, a wanted one; and copies for others."""

from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.tests.conftest import OWNER_KEY
from services.gateway.tests.replica import ENDPOINT, FakeReplica, route, until
from stellwerk_gateway.scoring.balance import Copies, Split
from stellwerk_gateway.scoring.mirror import MAX_QUEUED, MAX_RUNNING
from stellwerk_gateway.scoring.routes import RouteTable

URL = "/endpoints/demo/digits/score"
KEY = {"authorization": f"Bearer {OWNER_KEY}"}


@pytest.fixture
async def blue() -> AsyncIterator[FakeReplica]:
    replica = FakeReplica("blue")
    await replica.start()
    yield replica
    replica.gate.set()
    await replica.stop()


@pytest.fixture
async def green() -> AsyncIterator[FakeReplica]:
    replica = FakeReplica("green")
    await replica.start()
    yield replica
    replica.gate.set()
    await replica.stop()


async def who(web: aiohttp.ClientSession, **headers: str) -> str:
    async with web.post(URL, data="{}", headers={**KEY, **headers}) as response:
        assert response.status == 200, await response.text()
        answer = (await response.json())["by"]
        assert response.headers["azureml-model-deployment"] == answer
        return str(answer)


@given(percents=st.lists(st.integers(1, 99), min_size=2, max_size=5), value=st.binary(min_size=1))
def test_a_sticky_value_always_leads_to_the_same_place(percents: list[int], value: bytes) -> None:
    shares = {str(index): percent for index, percent in enumerate(percents)}
    one, other = Split(), Split()
    one.update(shares)
    other.update(shares)
    able = list(one.shares())
    assert one.sticky(able, value) == other.sticky(able, value) == one.sticky(able, value)


@given(percent=st.integers(1, 100))
def test_copies_are_exact(percent: int) -> None:
    copies = Copies()
    copies.percent = percent
    assert sum(copies.due() for _ in range(200)) == 2 * percent


async def test_sticky_requests_stay_and_follow_the_shares(
    web: aiohttp.ClientSession, table: RouteTable, blue: FakeReplica, green: FakeReplica
) -> None:
    split = route(blue=(80, [blue]), green=(20, [green]))
    split.sticky_header = "X-User"
    table.replace([split])
    await who(web)
    users = {f"user-{number}" for number in range(60)}
    first = {user: await who(web, **{"x-user": user}) for user in users}
    assert {user: await who(web, **{"x-user": user}) for user in users} == first
    counts = Counter(first.values())
    assert 0 < counts["green"] < counts["blue"]
    # The platform's own header does so at every endpoint.
    assert await who(web, **{"x-stellwerk-sticky": "user-1"}) == first["user-1"]


async def test_a_deployment_can_be_asked_for_even_without_traffic(
    web: aiohttp.ClientSession, table: RouteTable, blue: FakeReplica, green: FakeReplica
) -> None:
    table.replace([route(blue=(100, [blue]), green=(0, [green]))])
    assert {await who(web) for _ in range(5)} == {"blue"}
    assert await who(web, **{"azureml-model-deployment": "green"}) == "green"
    headers = {**KEY, "azureml-model-deployment": "red"}
    async with web.post(URL, data="{}", headers=headers) as response:
        assert (response.status, (await response.json())["reason"]) == (404, "DEPLOYMENT_NOT_FOUND")


async def test_copies_go_to_the_mirror_and_change_nothing(
    web: aiohttp.ClientSession, table: RouteTable, blue: FakeReplica, green: FakeReplica
) -> None:
    mirrored = route(blue=(100, [blue]), green=(0, [green]))
    mirrored.targets[1].mirror_percent = 50
    table.replace([mirrored])
    green.gate.clear()
    for number in range(10):
        async with web.post(URL, data=f"body {number}", headers=KEY) as response:
            assert (await response.json())["by"] == "blue"
    await until(lambda: green.arrived == 5)
    green.gate.set()
    counters = table.endpoints[ENDPOINT].deployments["green"].counters
    assert (counters.mirrored, counters.mirror_dropped, sum(counters.codes.values())) == (5, 0, 0)
    assert {request.headers["x-stellwerk-mirrored"] for request in green.requests} == {"true"}
    assert set(green.bodies) <= {f"body {number}".encode() for number in range(10)}


async def test_copies_that_find_no_room_are_dropped(
    web: aiohttp.ClientSession, table: RouteTable, blue: FakeReplica, green: FakeReplica
) -> None:
    mirrored = route(blue=(100, [blue]), green=(0, [green]))
    mirrored.targets[1].mirror_percent = 100
    table.replace([mirrored])
    green.gate.clear()
    extra = 5
    for _ in range(MAX_RUNNING + MAX_QUEUED + extra):
        assert await who(web) == "blue"
    assert table.endpoints[ENDPOINT].deployments["green"].counters.mirror_dropped == extra
    async with web.post(URL, data=b"x" * 20_000, headers=KEY) as response:
        assert response.status == 200
    assert table.endpoints[ENDPOINT].deployments["green"].counters.mirror_dropped == extra + 1


async def test_a_mirror_that_is_broken_is_not_noticed(
    web: aiohttp.ClientSession, table: RouteTable, blue: FakeReplica, green: FakeReplica
) -> None:
    mirrored = route(blue=(100, [blue]), green=(0, [green]))
    mirrored.targets[1].mirror_percent = 100
    table.replace([mirrored])
    await green.stop()
    assert {await who(web) for _ in range(5)} == {"blue"}
