"""The doors' way to a replica: calls as HTTP requests, on a unix socket, pipelined."""

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from google.rpc import error_details_pb2, status_pb2

from services.scorer.tests.support import BARE_PYTHON, StartScorer
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb

SCRIPT = """
    import json, time

    def init():
        pass

    def run(raw):
        data = json.loads(raw)["data"]
        if data == [0.0]:
            time.sleep(60)
        return [value * 2 for value in data]
"""
PROTO = {"content-type": "application/proto"}
METHODS = "/inference.GRPCInferenceService/"


def request_of(*values: float, raw: bool = False) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits", model_version="3", id="7")
    tensor = request.inputs.add(name="x", datatype="FP64", shape=[len(values)])
    if raw:
        request.raw_input_contents.append(struct.pack(f"<{len(values)}d", *values))
    else:
        tensor.contents.fp64_contents.extend(values)
    return request


async def test_grpc_calls_over_a_unix_socket(scorer: StartScorer, tmp_path: Path) -> None:
    path = tmp_path / "sockets" / "replica"
    listen = {"STELLWERK_SCORER_HTTP_LISTEN": f"unix:{path},127.0.0.1:0"}
    async with scorer(SCRIPT, BARE_PYTHON, **listen) as running:
        await running.ready()
        assert running.http_address.startswith(f"unix:{path},127.0.0.1:")
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        token = {"authorization": f"Bearer {running.token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://replica", timeout=30) as http:

            async def call(method: str, message: bytes, **headers: str) -> httpx.Response:
                everything = {**PROTO, **token, **headers}
                return await http.post(f"{METHODS}{method}", content=message, headers=everything)

            for raw in (False, True):
                answer = await call("ModelInfer", request_of(1, 2, raw=raw).SerializeToString())
                assert (answer.status_code, answer.headers["content-type"]) == (200, "application/proto")
                response = pb.ModelInferResponse.FromString(answer.content)
                assert (response.id, response.model_name, response.model_version) == ("7", "digits", "3")
                assert bool(response.raw_output_contents) == raw
                doubled = (
                    struct.unpack("<2d", response.raw_output_contents[0])
                    if raw
                    else tuple(response.outputs[0].contents.fp64_contents)
                )
                assert doubled == (2.0, 4.0)
            ready = await call("ModelReady", pb.ModelReadyRequest(name="digits").SerializeToString())
            assert pb.ModelReadyResponse.FromString(ready.content).ready
            asked = pb.ModelMetadataRequest(name="digits").SerializeToString()
            described = await call("ModelMetadata", asked)
            assert list(pb.ModelMetadataResponse.FromString(described.content).versions) == ["3"]
            server = await call("ServerMetadata", b"")
            assert pb.ServerMetadataResponse.FromString(server.content).name == "stellwerk"

            slow = request_of(0).SerializeToString()
            unknown = pb.ModelInferRequest(model_name="letters").SerializeToString()
            failures = [
                (await call("ModelInfer", unknown), 404, 5, "MODEL_NOT_FOUND"),
                (await call("ModelInfer", b"\xff\xff"), 400, 3, "INVALID_REQUEST"),
                (await call("Nothing", b""), 404, 5, "PATH_NOT_FOUND"),
                (await call("ServerLive", b"", authorization="Bearer x"), 401, 16, "KEY_INVALID"),
                (
                    await call("ModelInfer", slow, **{"connect-timeout-ms": "50"}),
                    500,
                    4,
                    "SCORING_TIMEOUT",
                ),
            ]
            for answer, http_status, code, reason in failures:
                status = status_pb2.Status.FromString(answer.content)
                info = error_details_pb2.ErrorInfo()
                assert status.details[0].Unpack(info)
                assert (answer.status_code, status.code, info.reason) == (http_status, code, reason)
    assert not path.exists()


async def test_answers_to_pipelined_requests_come_in_order(scorer: StartScorer) -> None:
    script = "def init(): pass\ndef run(raw): return int(raw)\n"
    async with scorer(script, BARE_PYTHON) as running:
        await running.ready()
        reader, writer = await asyncio.open_connection(*running.http_address.split(":"))
        key = f"authorization: Bearer {running.token}\r\n"
        health = "GET /v2/health/live HTTP/1.1\r\n\r\n"
        for number in range(200):
            body = str(number)
            writer.write(f"POST /score HTTP/1.1\r\n{key}content-length: {len(body)}\r\n\r\n{body}".encode())
            writer.write(health.encode())
        found = []
        for _ in range(400):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            found.append(await reader.readexactly(length))
        assert found[::2] == [str(number).encode() for number in range(200)]
        assert set(found[1::2]) == {b'{"live":true}'}
        # HTTP/1.0 and `connection: close` end with the answer.
        writer.write(f"GET / HTTP/1.0\r\n{key}\r\n".encode())
        last = await reader.read()
        assert last.endswith(b"Healthy")
        writer.close()


async def test_what_is_no_request_is_refused(scorer: StartScorer) -> None:
    script = "def init(): pass\ndef run(raw): return 1\n"
    cases = [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /v2/health/live HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", b"200"),
        (b"POST /score HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 9\r\n\r\n", b"400"),
        (b"POST /score HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"400"),
    ]
    async with scorer(script, BARE_PYTHON) as running:
        await running.ready()
        for sent, status in cases:
            reader, writer = await asyncio.open_connection(*running.http_address.split(":"))
            writer.write(sent)
            first = await reader.readline()
            assert first.split()[1] == status, (sent[:40], first)
            writer.close()
        async with running.http() as http:
            chunks = [b"1", b"2", b"3"]

            async def body() -> AsyncIterator[bytes]:
                for chunk in chunks:
                    yield chunk

            assert (await http.post("/score", content=body())).json() == 1
