"""A scorer process as a test sees it, and the keys to call it.

`secrets` needs a Vault server; here a TokenService with one method stands for it, which
publishes the key that the tests sign their tokens with.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc

# An interpreter without our packages: the worker must do with the standard library.
BARE_PYTHON = str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))
_KEY_ID = "test:1"


class Keys(tokens_pb2_grpc.TokenServiceServicer):
    """Signs tokens, and publishes the key over gRPC."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.address = ""

    def token(self, role: str = "Service", *, expires_in_seconds: float = 300) -> str:
        """A token as `secrets` would sign it."""
        now = time.time()
        claims = {"iss": "stellwerk", "aud": "stellwerk", "sub": "services/gateway", "role": role, "iat": now}
        claims["exp"] = now + expires_in_seconds
        return jwt.encode(claims, self._private, algorithm="EdDSA", headers={"kid": _KEY_ID})

    async def ListSigningKeys(
        self, request: tokens_pb2.ListSigningKeysRequest, context: Any
    ) -> tokens_pb2.ListSigningKeysResponse:
        """The one key."""
        public = self._private.public_key().public_bytes_raw()
        return tokens_pb2.ListSigningKeysResponse(
            keys=[tokens_pb2.SigningKey(key_id=_KEY_ID, public_key=public)]
        )

    async def _refuse(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in this test")

    ExchangeApiKey = LoginService = IssueWorkloadToken = _refuse
    ListRevocations = GetCaller = RotateSigningKey = _refuse


@dataclass
class Scorer:
    """A running scorer process."""

    process: asyncio.subprocess.Process
    token: str
    lines: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    http_address: str = ""
    grpc_address: str = ""
    reader: asyncio.Task[None] | None = None

    @property
    def log(self) -> str:
        """All that the process has written."""
        return "\n".join(self.lines)

    async def line(self, text: str, *, count: int = 1) -> str:
        """Waits for the `count`-th line of the log that has the text, or the end of the log."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self._with(text)) >= count or self._ended())
        found = self._with(text)
        assert len(found) >= count, self.log
        return found[count - 1]

    def _with(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    def _ended(self) -> bool:
        return self.reader is not None and self.reader.done()

    async def read(self) -> None:
        """Collects the log."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self.changed:
                self.lines.append(line.decode().rstrip())
                self.changed.notify_all()

    def http(self, **options: Any) -> httpx.AsyncClient:
        """A client that shows a token."""
        options.setdefault("headers", {"authorization": f"Bearer {self.token}"})
        return httpx.AsyncClient(base_url=f"http://{self.http_address}", timeout=30, **options)

    def channel(self) -> grpc.aio.Channel:
        """A channel to the scorer."""
        limit = ("grpc.max_receive_message_length", 64 << 20)
        return grpc.aio.insecure_channel(self.grpc_address, options=[limit])

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a gRPC call needs to be let in."""
        return (("authorization", f"Bearer {self.token}"),)

    async def health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        """Waits until the health service tells this status."""
        async with self.channel() as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            async for answer in watch:
                if answer.status == status:
                    watch.cancel()
                    return
        raise AssertionError(f"the health service ended: {self.log}")

    async def ready(self) -> "Scorer":
        """Waits until the scorer takes requests."""
        await self.health(health_pb2.HealthCheckResponse.SERVING)
        return self


StartScorer: TypeAlias = Callable[..., AbstractAsyncContextManager[Scorer]]
