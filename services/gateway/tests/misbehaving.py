"""A small HTTP server that misbehaves on purpose: no real scorer does all of this on request."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Misbehaving:
    """Answers `OK`, unless `answer` says otherwise; readiness has an answer of its own.

    An answer of b"" hangs up without one; None never answers; what ends too early is cut off there.
    """

    def __init__(self, name: str = "bad") -> None:
        self.name = name
        self.answer: bytes | None = OK
        self.ready: bytes | None = OK
        self.requests: list[bytes] = []
        self.probes = 0
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    def message(self, deployment: str, endpoint: str) -> pb.Replica:
        name = f"{endpoint}/deployments/{deployment}/replicas/{self.name}"
        return pb.Replica(name=name, http_address=f"127.0.0.1:{self.port}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await _request(reader)
                is_probe = request.startswith(b"GET /v2/health/ready ")
                if is_probe:
                    self.probes += 1
                else:
                    self.requests.append(request)
                    self.arrived.set()
                answer = self.ready if is_probe else self.answer
                if answer is None:
                    await reader.read()
                    break
                writer.write(answer)
                await writer.drain()
                if answer is not OK and not answer.endswith(b"\n\n"):
                    break
        self.left.set()
        writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head + await reader.readexactly(length)


@contextlib.asynccontextmanager
async def misbehaving(name: str = "bad") -> AsyncIterator[Misbehaving]:
    """Runs one."""
    server = Misbehaving(name)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
