"""A small gRPC server that stands for any backend: every kind of method, on bytes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from stellwerk_platform.errors import NotFound
from stellwerk_platform.grpc_server import OPTIONS, abort

SERVICE = "/stellwerk.runs.v1.RunService/"


class EchoBackend(grpc.GenericRpcHandler):
    """Answers what it was sent; remembers metadata and cancellations."""

    def __init__(self) -> None:
        self.metadata: dict[str, str | bytes] = {}
        self.time_remaining: float | None = None
        self.fail = False
        self.hang = False
        self.called = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.server = grpc.aio.server(options=OPTIONS)
        self.server.add_generic_rpc_handlers((self,))
        self.port = 0
        self._methods: dict[str, Any] = {
            "GetRun": grpc.unary_unary_rpc_method_handler(self._unary),
            "Missing": grpc.unary_unary_rpc_method_handler(self._missing),
            "CancelRun": grpc.unary_unary_rpc_method_handler(self._hang),
            "WatchRun": grpc.unary_stream_rpc_method_handler(self._watch),
            "Collect": grpc.stream_unary_rpc_method_handler(self._collect),
            "Chat": grpc.stream_stream_rpc_method_handler(self._chat),
            "Forever": grpc.stream_stream_rpc_method_handler(self._forever),
        }

    async def start(self, port: int = 0) -> None:
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self._health)
        self.metadata = dict(handler_call_details.invocation_metadata)
        return self._methods.get(handler_call_details.method.rsplit("/", 1)[1])

    async def _health(self, request: bytes, context: Any) -> bytes:
        return b"\x08\x01"

    async def _unary(self, request: bytes, context: Any) -> bytes:
        self.time_remaining = context.time_remaining()
        if self.fail:
            await self._missing(request, context)
        await context.send_initial_metadata((("stellwerk-initial", "1"),))
        context.set_trailing_metadata((("stellwerk-trailing", "2"), ("data-bin", b"\x00\xff")))
        return request

    async def _missing(self, request: bytes, context: Any) -> bytes:
        await abort(context, NotFound("RUN_NOT_FOUND", "There is no run.", "Create it."))
        return b""

    async def _hang(self, request: bytes, context: Any) -> bytes:
        self.called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    async def _watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        if self.hang:
            await self._hang(request, context)
        yield request * 2
        if request == b"\x0a\x04fail":
            await abort(context, NotFound("RUN_NOT_FOUND", "There is no run.", "Create it."))
        context.set_trailing_metadata((("stellwerk-trailing", "2"),))

    async def _collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b",".join([request async for request in requests])

    async def _chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
        yield b"end"

    async def _forever(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
