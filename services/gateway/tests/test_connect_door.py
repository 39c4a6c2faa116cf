"""What curl and a Connect client see at the HTTP door."""

import asyncio
import json
import struct

import aiohttp
import pytest

from services.gateway.tests.backend import SERVICE, EchoBackend
from stellwerk_protos.runs.v1 import runs_pb2

JSON = {"content-type": "application/json"}
RUN = "workspaces/demo/runs/a"


async def test_json_is_translated_both_ways(web: aiohttp.ClientSession, backend: EchoBackend) -> None:
    headers = {**JSON, "authorization": "Bearer k", "connect-timeout-ms": "40000"}
    async with web.post(SERVICE + "GetRun", data=json.dumps({"name": RUN}), headers=headers) as response:
        assert (response.status, await response.json()) == (200, {"name": RUN})
        assert response.headers["trailer-stellwerk-trailing"] == "2"
    assert backend.metadata["authorization"] == "Bearer k"
    assert backend.time_remaining is not None
    assert 0 < backend.time_remaining < 41


async def test_binary_passes_through_and_nobody_waits_for_ever(
    web: aiohttp.ClientSession, backend: EchoBackend
) -> None:
    body = runs_pb2.GetRunRequest(name=RUN).SerializeToString()
    async with web.post(
        SERVICE + "GetRun", data=body, headers={"content-type": "application/proto"}
    ) as response:
        assert (response.status, await response.read()) == (200, body)
    # The client has named no time-out.
    assert backend.time_remaining is not None
    assert backend.time_remaining < 61


async def test_error_carries_our_reason(web: aiohttp.ClientSession, backend: EchoBackend) -> None:
    backend.fail = True
    async with web.post(SERVICE + "GetRun", data="{}", headers=JSON) as response:
        error = await response.json()
    assert (response.status, error["code"], error["message"]) == (404, "not_found", "There is no run.")
    detail = error["details"][0]
    assert detail["type"] == "google.rpc.ErrorInfo"
    assert detail["debug"]["reason"] == "RUN_NOT_FOUND"
    assert detail["debug"]["metadata"] == {"cure": "Create it."}


@pytest.mark.parametrize("body", ["{", "[]", '{"nam": 1}', '{"name": 1}', "\xff", "[" * 100_000])
async def test_json_that_does_not_fit_is_refused_here(
    web: aiohttp.ClientSession, backend: EchoBackend, body: str
) -> None:
    async with web.post(SERVICE + "GetRun", data=body.encode("latin-1"), headers=JSON) as response:
        error = await response.json()
    assert (response.status, error["code"]) == (400, "invalid_argument")
    assert error["details"][0]["debug"]["reason"] == "INVALID_JSON"
    assert not backend.metadata


async def test_server_stream(web: aiohttp.ClientSession, backend: EchoBackend) -> None:
    body = json.dumps({"name": RUN}).encode()
    headers = {"content-type": "application/connect+json"}
    async with web.post(
        SERVICE + "WatchRun", data=struct.pack(">BI", 0, len(body)) + body, headers=headers
    ) as response:
        assert response.status == 200
        messages = _messages(await response.read())
    assert [message for _, message in messages[:-1]] == [{"name": RUN}, {"name": RUN}]
    assert messages[-1] == (2, {"metadata": {"stellwerk-trailing": ["2"]}})


async def test_a_client_that_hangs_up_ends_the_stream_at_the_backend(
    web: aiohttp.ClientSession, backend: EchoBackend
) -> None:
    headers = {"content-type": "application/connect+json"}
    backend.hang = True
    async with web.post(SERVICE + "WatchRun", data=struct.pack(">BI", 0, 2) + b"{}", headers=headers) as call:
        await call.content.readexactly(5)
    async with asyncio.timeout(5):
        await backend.cancelled.wait()


async def test_a_backend_that_is_down_is_named(web: aiohttp.ClientSession, backend: EchoBackend) -> None:
    await backend.server.stop(None)
    async with web.post(SERVICE + "GetRun", data="{}", headers=JSON) as response:
        error = await response.json()
    assert (response.status, error["code"]) == (503, "unavailable")
    assert error["details"][0]["debug"]["reason"] == "UPSTREAM_UNAVAILABLE"
    async with web.get("/readyz") as response:
        assert response.status == 503
        assert (await response.json())["services"]["registry"] is False


async def test_health_readiness_and_unknown_paths(web: aiohttp.ClientSession) -> None:
    async with web.get("/healthz") as response:
        assert response.status == 200
    async with web.get("/readyz") as response:
        assert (response.status, (await response.json())["ready"]) == (200, True)
    async with web.get("/nothing") as response:
        assert (response.status, (await response.json())["reason"]) == (404, "PATH_NOT_FOUND")


@pytest.mark.parametrize("method", ["GetRun", "WatchRun"])
async def test_what_the_protocol_refuses_says_what_to_send(web: aiohttp.ClientSession, method: str) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with web.post(SERVICE + method, data="{}", headers=form) as response:
        refused = await response.json()
        assert (response.status, refused["reason"]) == (415, "MEDIA_TYPE_UNSUPPORTED")
        assert "content-type: application/json" in refused["cure"]
    async with web.post(SERVICE + method, data=b"{}", skip_auto_headers=["content-type"]) as response:
        assert (response.status, (await response.json())["reason"]) == (415, "MEDIA_TYPE_UNSUPPORTED")
    async with web.get(SERVICE + method) as response:
        refused = await response.json()
        assert (response.status, refused["reason"]) == (405, "METHOD_NOT_ALLOWED")
        assert "POST" in refused["cure"]


def _messages(body: bytes) -> list[tuple[int, object]]:
    result = []
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        result.append((flags, json.loads(body[5 : 5 + length])))
        body = body[5 + length :]
    return result
