"""The servers of `rpc.unary`, `rpc.tls` and `auth.check`, each a process: prints its port and a token.

`bare` and `full` answer `GetCaller` from memory: the thinnest RPC there is, so that what is
measured is all that lies around one. `checked` and `unchecked` answer `GetWorkspace` in the same
way behind the same interceptors; only the first asks who calls, whether the token still stands,
and for the caller's role in the workspace. `tls` is `full` with the certificate that it reads.
"""

import asyncio
import base64
import sys
import time
from collections.abc import Mapping
from typing import Any

import grpc
import jwt
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from stellwerk_launcher.testing import guard_without_registry
from stellwerk_platform import telemetry
from stellwerk_platform.access import Guard
from stellwerk_platform.auth import ISSUER, TokenVerifier, current_caller
from stellwerk_platform.grpc_server import Registration, Server
from stellwerk_platform.identity import Certificate, Identity
from stellwerk_platform.revocations import Revocations
from stellwerk_platform.roles import PUBLIC
from stellwerk_platform.settings import Settings
from stellwerk_protos.registry.v1 import workspaces_pb2
from stellwerk_protos.secrets.v1 import tokens_pb2
from tests.bench import certificates


class FullCaller:
    """Answers from the verified token."""

    async def GetCaller(self, request: tokens_pb2.GetCallerRequest, context: Any) -> tokens_pb2.Caller:
        caller = current_caller()
        return tokens_pb2.Caller(subject=caller.subject, role=caller.role)


class BareCaller:
    """Answers the same without looking at anything."""

    async def GetCaller(self, request: tokens_pb2.GetCallerRequest, context: Any) -> tokens_pb2.Caller:
        return tokens_pb2.Caller(subject="users/owner", role="User")


class OneKey:
    """Stands for `secrets`, which is not on the path of a verified token."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    async def signing_keys(self) -> Mapping[str, bytes]:
        return {"bench:1": self._key}

    async def exchange(self, api_key: str) -> str:
        raise NotImplementedError


def _handlers(servicer: Any, server: grpc.aio.Server) -> None:
    method = grpc.unary_unary_rpc_method_handler(
        servicer.GetCaller,
        request_deserializer=tokens_pb2.GetCallerRequest.FromString,
        response_serializer=tokens_pb2.Caller.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler("stellwerk.secrets.v1.TokenService", {"GetCaller": method})
    server.add_generic_rpc_handlers((handler,))


async def bare() -> None:
    server = grpc.aio.server()
    _handlers(BareCaller(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, "none", flush=True)
    await server.wait_for_termination()


def signed() -> tuple[OneKey, str]:
    """A key, and a token of a person that it has signed."""
    private = Ed25519PrivateKey.generate()
    now = time.time()
    claims = {"iss": ISSUER, "aud": ISSUER, "sub": "users/owner", "role": "User", "iat": now}
    claims["exp"] = now + 3_600
    token = jwt.encode(claims, private, algorithm="EdDSA", headers={"kid": "bench:1"})
    return OneKey(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)), token


class Workspaces:
    """Answers from memory."""

    async def GetWorkspace(self, request: workspaces_pb2.GetWorkspaceRequest, context: Any) -> Any:
        return workspaces_pb2.Workspace(name=request.name)


def _add_workspaces(servicer: Any, server: grpc.aio.Server) -> None:
    method = grpc.unary_unary_rpc_method_handler(
        servicer.GetWorkspace,
        request_deserializer=workspaces_pb2.GetWorkspaceRequest.FromString,
        response_serializer=workspaces_pb2.Workspace.SerializeToString,
    )
    name = "stellwerk.registry.v1.WorkspaceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"GetWorkspace": method}),))


async def _nothing_revoked() -> list[tokens_pb2.Revocation]:
    return []


async def check(permission: str) -> None:
    """With the permission of the proto (""), or one that everybody has."""
    key, token = signed()
    revocations = Revocations(_nothing_revoked)
    verify = TokenVerifier(key, revocations).verify
    memberships = guard_without_registry(verify).memberships
    descriptor = workspaces_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
    registration = Registration(Workspaces(), _add_workspaces, descriptor, permission)
    server = Server("127.0.0.1:0", Guard(verify, memberships, revocations), [registration])
    await server.start()
    print(server.port, token, flush=True)
    await asyncio.Event().wait()


async def full(identity: Identity | None = None) -> None:
    key, token = signed()
    verifier = TokenVerifier(key)
    descriptor = tokens_pb2.DESCRIPTOR.services_by_name["TokenService"]
    registration = Registration(FullCaller(), _handlers, descriptor)
    server = Server("127.0.0.1:0", Guard(verifier.verify), [registration], identity=identity)
    await server.start()
    print(server.port, token, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    # Spans are made as in production; the sink is not there, and is never waited for.
    telemetry.start("bench", Settings(otlp_endpoint="http://127.0.0.1:9", otlp_key="none", log_level="ERROR"))
    if sys.argv[1] == "tls":
        chain, key, authorities = (base64.b64decode(part) for part in sys.stdin.readline().split())
        uvloop.run(full(certificates.of("secrets", Certificate(chain, key, authorities, 0.0))))
    elif sys.argv[1] in ("checked", "unchecked"):
        uvloop.run(check("" if sys.argv[1] == "checked" else PUBLIC))
    else:
        uvloop.run(full() if sys.argv[1] == "full" else bare())
