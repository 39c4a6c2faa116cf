"""Scoring through both doors: who may, which replica, and what happens when one dies."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.tests.conftest import GATEWAY_TOKEN, OWNER_KEY, STRANGER_KEY, Door
from services.gateway.tests.replica import FakeReplica, route
from stellwerk_gateway.scoring.balance import Split
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_platform.errors import from_rpc
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as oip_grpc

URL = "/endpoints/demo/digits"
KEY = {"authorization": f"Bearer {OWNER_KEY}"}
STRANGER = {"authorization": f"Bearer {STRANGER_KEY}"}
METADATA = (("authorization", f"Bearer {OWNER_KEY}"), ("stellwerk-endpoint", "demo/digits"))


@pytest.fixture
async def replicas() -> AsyncIterator[list[FakeReplica]]:
    fakes = [FakeReplica(name) for name in ("a", "b", "c")]
    for fake in fakes:
        await fake.start()
    yield fakes
    for fake in fakes:
        await fake.stop()


async def score(web: aiohttp.ClientSession, body: str = "{}", **headers: str) -> tuple[int, Any]:
    async with web.post(f"{URL}/score", data=body, headers={**KEY, **headers}) as response:
        return response.status, await response.json()


@given(percents=st.lists(st.integers(1, 99), min_size=1, max_size=5))
def test_shares_are_exact(percents: list[int]) -> None:
    split = Split()
    split.update({str(index): percent for index, percent in enumerate(percents)})
    rounds = 4
    able = [str(index) for index in range(len(percents))]
    chosen = Counter(split.next(able) for _ in range(sum(percents) * rounds))
    assert chosen == {str(index): percent * rounds for index, percent in enumerate(percents)}


async def test_traffic_follows_the_split(
    web: aiohttp.ClientSession, table: RouteTable, replicas: list[FakeReplica]
) -> None:
    a, b, c = replicas
    table.replace([route(blue=(75, [a, b]), green=(25, [c]))])
    answers = Counter([(await score(web))[1]["by"] for _ in range(16)])
    assert answers == {"a": 6, "b": 6, "c": 4}
    table.replace([route(blue=(75, []), green=(25, [c]))])
    assert Counter([(await score(web))[1]["by"] for _ in range(4)]) == {"c": 4}


async def test_request_goes_on_as_it_came_but_for_the_key(
    web: aiohttp.ClientSession, table: RouteTable, replicas: list[FakeReplica]
) -> None:
    table.replace([route(blue=(100, replicas[:1]))])
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {**KEY, "x-request-id": "r-1", "traceparent": parent, "x-custom": "1", "content-type": "text/x"}
    async with web.post(f"{URL}/v2/models/m%2F1/infer?a=b%20c", data="body", headers=headers) as response:
        document = await response.json(content_type=None)
        assert response.headers["x-request-id"] == "r-1"
        assert response.headers["x-script"] == "yes"
    assert document == {"by": "a", "path": "/v2/models/m%2F1/infer?a=b%20c", "body": "body"}
    received = replicas[0].requests[0].headers
    assert received["authorization"] == f"Bearer {GATEWAY_TOKEN}"
    assert received["x-request-id"] == "r-1"
    assert received["traceparent"].split("-")[1] == parent.split("-")[1]
    assert (received["x-custom"], received["content-type"]) == ("1", "text/x")
    async with web.get(f"{URL}/v2/health/ready", headers=KEY) as response:
        assert len(response.headers["x-request-id"]) == 32


async def test_errors_of_the_script_and_large_answers_pass(
    web: aiohttp.ClientSession, table: RouteTable, replicas: list[FakeReplica]
) -> None:
    table.replace([route(blue=(100, replicas[:1]))])
    assert await score(web, "bad") == (400, {"error": "bad", "reason": "BAD"})
    async with web.post(f"{URL}/score", data="large", headers=KEY) as response:
        assert len(await response.read()) == 3_000_000


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        ("/endpoints/demo/digits/score", {}, 401, "KEY_MISSING"),
        ("/endpoints/demo/digits/score", {"authorization": "Basic YTpi"}, 401, "KEY_MISSING"),
        ("/endpoints/demo/digits/score", {"authorization": "Bearer wrong"}, 401, "KEY_INVALID"),
        (
            "/endpoints/demo/digits/score",
            {"authorization": f"Bearer {STRANGER_KEY}"},
            403,
            "PERMISSION_DENIED",
        ),
        ("/endpoints/demo/other/score", KEY, 404, "ENDPOINT_NOT_FOUND"),
        ("/endpoints/demo/NO/score", KEY, 404, "ENDPOINT_NOT_FOUND"),
        ("/endpoints/demo/digits/metrics", KEY, 404, "PATH_NOT_FOUND"),
        ("/endpoints/demo/idle/score", KEY, 503, "NO_READY_REPLICA"),
    ],
)
async def test_refusals(
    web: aiohttp.ClientSession,
    table: RouteTable,
    replicas: list[FakeReplica],
    path: str,
    headers: dict[str, str],
    status: int,
    reason: str,
) -> None:
    idle = pb.Route(endpoint="workspaces/demo/endpoints/idle")
    table.replace([route(blue=(100, replicas[:1])), idle])
    async with web.post(path, data="{}", headers=headers) as response:
        document = await response.json()
    assert (response.status, document["reason"]) == (status, reason)
    assert document["error"]
    assert ("stellwerk endpoint keys regenerate" in document.get("cure", "")) == (reason == "KEY_MISSING")
    assert not replicas[0].requests
    assert ("retry-after" in response.headers) == (status == 503)
    assert ("www-authenticate" in response.headers) == (status == 401)


async def test_a_browser_may_ask_before_it_shows_a_key(
    web: aiohttp.ClientSession, table: RouteTable, replicas: list[FakeReplica]
) -> None:
    table.replace([route(blue=(100, replicas[:1]))])
    asked = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    async with web.options(f"{URL}/score", headers=asked) as response:
        assert response.status == 200
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["access-control-allow-headers"] == "authorization"
    assert not replicas[0].requests, "nobody without a key gets as far as a replica"
    async with web.options(f"{URL}/score", headers={"origin": "https://a.example"}) as response:
        assert response.status == 401
    assert (await score(web))[0] == 200


async def test_before_the_first_table_nothing_is_said_to_be_missing(web: aiohttp.ClientSession) -> None:
    status, document = await score(web)
    assert (status, document["reason"]) == (503, "ROUTES_NOT_LOADED")


@pytest.mark.parametrize("limits", [{"park_seconds": 0.3}], indirect=True)
async def test_a_replica_that_cannot_be_reached_costs_no_answer(
    web: aiohttp.ClientSession, table: RouteTable, replicas: list[FakeReplica]
) -> None:
    a, b, _ = replicas
    table.replace([route(blue=(100, [a, b]))])
    await score(web)
    await a.stop()
    assert [(await score(web))[1]["by"] for _ in range(4)] == ["b"] * 4
    await b.stop()
    status, document = await score(web)
    assert (status, document["reason"]) == (503, "NO_READY_REPLICA")


@pytest.mark.parametrize("limits", [{"park_seconds": 0.3}], indirect=True)
async def test_a_replica_whose_worker_starts_is_passed_over(
    web: aiohttp.ClientSession, door: Door, table: RouteTable, replicas: list[FakeReplica]
) -> None:
    a, b, _ = replicas
    a.starting, a.ready = True, False
    table.replace([route(blue=(100, [a, b]))])
    stub = oip_grpc.GRPCInferenceServiceStub(door.channel)
    for _ in range(3):
        assert (await score(web))[1]["by"] == "b"
        assert (await stub.ModelInfer(oip.ModelInferRequest(), metadata=METADATA)).model_name == "b"
    # It never reached the script, so nobody is told of it.
    b.starting, b.ready = True, False
    status, document = await score(web)
    assert (status, document["reason"]) == (503, "NO_READY_REPLICA")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(oip.ModelInferRequest(), metadata=METADATA)
    assert from_rpc(caught.value).reason == "NO_READY_REPLICA"


async def test_grpc_goes_to_the_endpoint_of_the_metadata(
    door: Door, table: RouteTable, replicas: list[FakeReplica]
) -> None:
    a, b, _ = replicas
    table.replace([route(blue=(100, [a, b]))])
    stub = oip_grpc.GRPCInferenceServiceStub(door.channel)
    answers = [await stub.ModelInfer(oip.ModelInferRequest(id="1"), metadata=METADATA) for _ in range(4)]
    assert Counter(answer.model_name for answer in answers) == {"a": 2, "b": 2}
    assert a.metadata["authorization"] == f"Bearer {GATEWAY_TOKEN}"
    assert a.metadata["x-request-id"]
    await a.stop()
    for _ in range(3):
        assert (await stub.ModelInfer(oip.ModelInferRequest(), metadata=METADATA)).model_name == "b"


@pytest.mark.parametrize(
    ("metadata", "code", "reason"),
    [
        ((), grpc.StatusCode.INVALID_ARGUMENT, "ENDPOINT_MISSING"),
        (METADATA[1:], grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING"),
        (
            (METADATA[0], ("stellwerk-endpoint", "demo/other")),
            grpc.StatusCode.NOT_FOUND,
            "ENDPOINT_NOT_FOUND",
        ),
        ((METADATA[0], ("stellwerk-endpoint", "demo/idle")), grpc.StatusCode.UNAVAILABLE, "NO_READY_REPLICA"),
        (METADATA, grpc.StatusCode.INVALID_ARGUMENT, "BAD"),
    ],
)
async def test_grpc_refusals(
    door: Door,
    table: RouteTable,
    replicas: list[FakeReplica],
    metadata: Any,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    idle = pb.Route(endpoint="workspaces/demo/endpoints/idle")
    table.replace([route(blue=(100, replicas[:1])), idle])
    stub = oip_grpc.GRPCInferenceServiceStub(door.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(oip.ModelInferRequest(model_name="unknown"), metadata=metadata)
    assert (caught.value.code(), from_rpc(caught.value).reason) == (code, reason)


async def test_what_was_counted_is_what_was_asked(
    web: aiohttp.ClientSession, door: Door, table: RouteTable, replicas: list[FakeReplica]
) -> None:
    table.replace([route(blue=(100, replicas[:2]))])
    stub = oip_grpc.GRPCInferenceServiceStub(door.channel)
    for body in ("{}", "{}", "bad"):
        await score(web, body)
    await stub.ModelInfer(oip.ModelInferRequest(), metadata=METADATA)
    async with web.post(f"{URL}/score", data="{}", headers=STRANGER) as response:
        assert response.status == 403
    async with web.get(f"{URL}/statistics", headers=KEY) as response:
        page = await response.json()
    blue = page["deployments"]["blue"]
    assert (blue["codes"], blue["requests"], sum(blue["duration"]["buckets"])) == ({"200": 3, "400": 1}, 4, 4)
    assert (blue["in_flight"], blue["queued"], page["refused"]["codes"]) == (0, 0, {"403": 1})
    assert [replica["out"] for replica in blue["replicas"]] == [False, False]
    for headers, path, status in (
        ({}, URL, 401),
        (STRANGER, URL, 403),
        (KEY, "/endpoints/demo/none", 404),
        (KEY, "/endpoints/demo/N", 404),
    ):
        async with web.get(f"{path}/statistics", headers=headers) as response:
            assert response.status == status
