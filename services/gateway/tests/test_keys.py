"""Keys of endpoints at both doors, checked against the digests that the routes bring."""

import hashlib
from collections.abc import AsyncIterator

import aiohttp
import grpc
import pytest

from services.gateway.tests.conftest import GATEWAY_TOKEN, OWNER_KEY, Door
from services.gateway.tests.replica import ENDPOINT, FakeReplica, route
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_platform.errors import from_rpc
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as oip_grpc

PRIMARY, SECONDARY, THIRD = (f"swe_{'x' * 40}{index}" for index in range(3))


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    fake = FakeReplica("a")
    await fake.start()
    yield fake
    await fake.stop()


def locked(
    replica: FakeReplica, *keys: str, mode: pb.AuthMode.ValueType = pb.AUTH_MODE_KEY_AND_TOKEN
) -> pb.Route:
    made = route(blue=(100, [replica]))
    made.auth_mode = mode
    made.key_digests.extend(hashlib.sha256(key.encode()).digest() for key in keys)
    return made


async def answer(web: aiohttp.ClientSession, key: str, endpoint: str = "digits") -> tuple[int, str]:
    """The status and the reason of a refusal."""
    url, headers = f"/endpoints/demo/{endpoint}/score", {"authorization": f"Bearer {key}"}
    async with web.post(url, data="{}", headers=headers) as response:
        document = await response.json()
        return response.status, document.get("reason", document.get("code", ""))


async def test_each_key_opens_its_endpoint_and_no_other(
    web: aiohttp.ClientSession, table: RouteTable, replica: FakeReplica
) -> None:
    other = locked(replica, THIRD)
    other.endpoint = f"{ENDPOINT}-2"
    table.replace([locked(replica, PRIMARY, SECONDARY), other])
    assert [(await answer(web, key))[0] for key in (PRIMARY, SECONDARY, THIRD)] == [200, 200, 401]
    assert [(await answer(web, key, "digits-2"))[0] for key in (PRIMARY, THIRD)] == [401, 200]
    assert (await answer(web, PRIMARY, "unknown"))[0] == 401
    assert replica.requests[0].headers["authorization"] == f"Bearer {GATEWAY_TOKEN}"


async def test_a_regenerated_key_ends_at_once_and_the_other_goes_on(
    web: aiohttp.ClientSession, table: RouteTable, replica: FakeReplica
) -> None:
    table.replace([locked(replica, PRIMARY, SECONDARY)])
    assert [(await answer(web, key))[0] for key in (PRIMARY, SECONDARY)] == [200, 200]
    table.replace([locked(replica, THIRD, SECONDARY)])
    answers = [(await answer(web, key))[0] for key in (PRIMARY, SECONDARY, THIRD)]
    assert answers == [401, 200, 200]


async def test_the_mode_says_what_is_taken(
    web: aiohttp.ClientSession, table: RouteTable, replica: FakeReplica
) -> None:
    table.replace([locked(replica, PRIMARY, mode=pb.AUTH_MODE_KEY)])
    assert (await answer(web, PRIMARY))[0] == 200
    assert await answer(web, OWNER_KEY) == (401, "TOKEN_NOT_ACCEPTED")
    table.replace([locked(replica, PRIMARY, mode=pb.AUTH_MODE_TOKEN)])
    assert await answer(web, PRIMARY) == (401, "KEY_NOT_ACCEPTED")
    assert (await answer(web, OWNER_KEY))[0] == 200
    # Who may read the endpoint may see its statistics, whatever callers show.
    table.replace([locked(replica, PRIMARY, mode=pb.AUTH_MODE_KEY)])
    url = "/endpoints/demo/digits/statistics"
    for key, status in ((OWNER_KEY, 200), (PRIMARY, 401)):
        async with web.get(url, headers={"authorization": f"Bearer {key}"}) as response:
            assert response.status == status


async def test_keys_open_the_grpc_door_too(door: Door, table: RouteTable, replica: FakeReplica) -> None:
    table.replace([locked(replica, PRIMARY, mode=pb.AUTH_MODE_KEY)])
    stub = oip_grpc.GRPCInferenceServiceStub(door.channel)
    request = oip.ModelInferRequest(model_name="digits")
    for key, reason in ((PRIMARY, ""), (SECONDARY, "KEY_INVALID"), (OWNER_KEY, "TOKEN_NOT_ACCEPTED")):
        metadata = (("authorization", f"Bearer {key}"), ("stellwerk-endpoint", "demo/digits"))
        if not reason:
            assert (await stub.ModelInfer(request, metadata=metadata)).model_name == "a"
            continue
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request, metadata=metadata)
        assert from_rpc(caught.value).reason == reason
