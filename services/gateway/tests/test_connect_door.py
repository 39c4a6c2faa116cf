"""What curl and a Connect client see at the HTTP door."""

import asyncio
import json
import re
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
    async with asyncio.timeout(60):
        await backend.cancelled.wait()


@pytest.mark.parametrize("patience_seconds", [0.5], indirect=True)
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


GZIP = b"content-encoding: gzip"
AS_PROTO = b"content-type: application/proto"
LONG = b"v" * 30_000


STREAM = b"content-type: application/connect+json"
ENVELOPE = struct.pack(">BI", 0, 2) + b"{}"
# Lines of a head, a body, and the statuses that are right.
ODD: list[tuple[list[bytes], bytes, set[int]]] = [
    ([b"x-request-id: \xc3\xa9"], b"{}", {200}),
    ([b"x-request-id: \xff\xfe"], b"{}", {200}),
    ([b"x-request-id: " + LONG], b"{}", {200}),
    ([b"x-request-id: a", b"x-request-id: b"], b"{}", {200}),
    ([b"x-anything: \xff"], b"{}", {200}),
    ([b"x-anything: " + LONG], b"{}", {200}),
    ([b"traceparent: garbage"], b"{}", {200}),
    ([b"traceparent: \xc3\xa9", b"tracestate: \xff"], b"{}", {200}),
    ([b"traceparent: " + LONG, b"tracestate: " + LONG], b"{}", {200}),
    ([b"authorization: Bearer \xff"], b"{}", {400}),
    ([b"authorization: Bearer " + LONG], b"{}", {400}),
    ([b"cookie: \xff; stellwerk_session=\xff"], b"{}", {200, 403}),
    ([b"accept-encoding: \xff, gzip;q=x, ,,"], b"{}", {200}),
    ([b"connect-timeout-ms: soon"], b"{}", {400}),
    ([b"connect-timeout-ms: -1"], b"{}", {400}),
    ([b"connect-timeout-ms: \xb2"], b"{}", {400}),
    ([b"connect-timeout-ms: 99999999999"], b"{}", {400}),
    ([b"connect-timeout-ms: 9999999999"], b"{}", {200}),
    ([b"connect-protocol-version: \xff"], b"{}", {400}),
    ([b"host: \xff:::"], b"{}", {200}),
    ([b"content-type: application/json; charset=\xff"], b"{}", {200}),
    ([b"content-type: APPLICATION/JSON;charset=utf-8;a=b"], b"{}", {200}),
    ([b"content-type: application/json", b"content-type: text/plain"], b"{}", {200}),
    ([b"content-type: \xff"], b"{}", {415}),
    ([b"content-type: application/grpc"], b"\0\0\0\0\0", {415}),
    ([b"content-type: application/grpc+proto"], b"\0\0\0\0\0", {415}),
    ([b"content-type: application/grpc-web", b"grpc-timeout: \xffS"], b"\0\0\0\0\0", {200, 400}),
    ([GZIP], b"no gzip", {400}),
    ([b"content-encoding: \xff"], b"{}", {501}),
    ([AS_PROTO], b"\xff\xff\xff", {400}),
    ([AS_PROTO], b"\x0a\x01\xff", {400}),
    ([STREAM, b"connect-content-encoding: \xff"], ENVELOPE, {200}),
    ([STREAM, b"connect-accept-encoding: \xff", b"connect-timeout-ms: \xff"], ENVELOPE, {200, 400}),
    ([STREAM], b"\xff\xff", {200}),
    ([STREAM], b"\x01\0\0\0\x02{}", {200}),
]


async def test_odd_requests_are_no_errors_of_the_door(web: aiohttp.ClientSession) -> None:
    wrong = []
    for head, body, statuses in ODD:
        status = await _status(web, head, body)
        if status not in statuses:
            wrong.append((status, b" | ".join(head)[:60], body[:20]))
    assert wrong == []


async def _status(web: aiohttp.ClientSession, head: list[bytes], body: bytes) -> int:
    method = b"WatchRun" if STREAM in head else b"GetRun"
    lines = [b"POST %b%b HTTP/1.1" % (SERVICE.encode(), method), b"content-length: %d" % len(body), *head]
    for usual in (b"host: x", b"content-type: application/json"):
        if not any(line.startswith(usual.split()[0]) for line in head):
            lines.append(usual)
    assert web._base_url is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", web._base_url.port)
    async with asyncio.timeout(60):
        writer.write(b"\r\n".join([*lines, b"", body]))
        status = int((await reader.readline()).split()[1])
        writer.close()
        await writer.wait_closed()
    return status


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("a-1", True), ("a" * 100, True), ("a" * 101, False), ("\u00e9", False), ("", True)],
)
async def test_an_id_that_cannot_go_on_gives_way_to_a_new_one(
    web: aiohttp.ClientSession, backend: EchoBackend, given: str, is_kept: bool
) -> None:
    headers = {**JSON, "x-request-id": given} if given else JSON
    async with web.post(SERVICE + "GetRun", data="{}", headers=headers) as response:
        assert response.status == 200
    sent = backend.metadata.get("x-request-id", "")
    assert sent == given if is_kept else re.fullmatch("[0-9a-f]{32}", str(sent))


def _messages(body: bytes) -> list[tuple[int, object]]:
    result = []
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        result.append((flags, json.loads(body[5 : 5 + length])))
        body = body[5 + length :]
    return result
