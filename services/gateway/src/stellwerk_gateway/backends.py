"""Raw channels to the services behind the doors: bytes in, bytes out, no interceptor.

Each backend has two connections, so that a long stream with much data in flight never
holds up a short call.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc

from stellwerk_platform.errors import Unavailable
from stellwerk_platform.grpc_client import OPTIONS, open_channel
from stellwerk_platform.identity import Identity

# A service that was killed is back within moments; its callers wait that long before they see an error.
_PATIENCE_SECONDS = 3.0
_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    *OPTIONS,
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class Backend:
    """One address, with a connection for unary calls and one for streams."""

    def __init__(
        self,
        name: str,
        address: str,
        patience_seconds: float = _PATIENCE_SECONDS,
        identity: Identity | None = None,
    ) -> None:
        self.name = name
        self._patience_seconds = patience_seconds
        self._address = address
        self._unary, self._streams = (
            open_channel(address, _CHANNEL_OPTIONS, identity=identity, service=name) for _ in range(2)
        )
        self._calls: dict[tuple[str, bool], Any] = {}

    async def unary(self, method: str) -> Any:
        """A unary call of bytes; raises `Unavailable` if the backend is not there."""
        await self._connected(self._unary)
        key = (method, False)
        if key not in self._calls:
            self._calls[key] = self._unary.unary_unary(method)
        return self._calls[key]

    async def stream(self, method: str) -> Any:
        """A call of bytes that streams both ways; raises `Unavailable` if the backend is not there."""
        await self._connected(self._streams)
        key = (method, True)
        if key not in self._calls:
            self._calls[key] = self._streams.stream_stream(method)
        return self._calls[key]

    def unavailable(self, details: str = "") -> Unavailable:
        """The error for a backend that does not answer."""
        return Unavailable(
            "UPSTREAM_UNAVAILABLE",
            f"{self.name} does not answer{': ' + details if details else '.'}",
            "Try again; `stellwerk status` shows which service is down.",
            {"service": self.name},
        )

    async def close(self) -> None:
        """Closes the connections; running calls are cancelled."""
        await asyncio.gather(self._unary.close(), self._streams.close())

    async def _connected(self, channel: grpc.aio.Channel) -> None:
        state = channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return
        try:
            async with asyncio.timeout(self._patience_seconds):
                while state is not grpc.ChannelConnectivity.READY:
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise self.unavailable(f"no connection to {self._address}") from None


class Backends:
    """All backends by name."""

    def __init__(
        self,
        addresses: Mapping[str, str],
        patience_seconds: float = _PATIENCE_SECONDS,
        identity: Identity | None = None,
    ) -> None:
        self._backends = {
            name: Backend(name, address, patience_seconds, identity) for name, address in addresses.items()
        }

    def __getitem__(self, name: str) -> Backend:
        return self._backends[name]

    async def ready(self) -> dict[str, bool]:
        """By name, whether the backend's health service answers SERVING within two seconds."""
        backends = self._backends.values()
        answers = await asyncio.gather(*(_serving(backend) for backend in backends))
        return {backend.name: answer for backend, answer in zip(backends, answers, strict=True)}

    async def close(self) -> None:
        """Closes all connections."""
        await asyncio.gather(*(backend.close() for backend in self._backends.values()))


# grpc.health.v1.HealthCheckResponse{status: SERVING}, and an empty request.
_SERVING = b"\x08\x01"


async def _serving(backend: Backend) -> bool:
    try:
        async with asyncio.timeout(2):
            check = await backend.unary("/grpc.health.v1.Health/Check")
            return bool(await check(b"", timeout=2) == _SERVING)
    except (grpc.aio.AioRpcError, Unavailable, TimeoutError):
        return False
