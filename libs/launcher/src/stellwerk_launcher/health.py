"""Is a process ready? Checks are data, so that `stellwerk status` can repeat what the supervisor waited for.

All checks are blocking calls with a short deadline: `status` is called from plain scripts, and the
supervisor runs them in threads.
"""

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from stellwerk_launcher.vault import Certificate

CHECK_TIMEOUT_SECONDS = 2.0
_LONGEST_GREETING_BYTES = 65_536


@dataclass(frozen=True)
class Check:
    """How to ask one process for its health: `kind` is http, grpc, mongod, nats or file."""

    kind: str
    target: str

    def passes(self, timeout_seconds: float = CHECK_TIMEOUT_SECONDS) -> bool:
        """True when the process says in time that it serves."""
        return _CHECKS[self.kind](self.target, timeout_seconds)


def _http(target: str, timeout_seconds: float) -> bool:
    """`target` is host:port/path; any answer of 200 is health."""
    address, _, path = target.partition("/")
    connection = http.client.HTTPConnection(address, timeout=timeout_seconds)
    try:
        connection.request("GET", "/" + path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _grpc(target: str, timeout_seconds: float) -> bool:
    """`target` is host:port, the name in the server's certificate, and the file with our own, for
    grpc.health.v1 over mutual TLS."""
    address, name, file = target.split(" ", 2)
    try:
        own = Certificate.read(Path(file))
    except (OSError, ValueError, TypeError):
        return False
    credentials = grpc.ssl_channel_credentials(own.authority.encode(), own.key.encode(), own.chain.encode())
    options = [("grpc.ssl_target_name_override", name)]
    with grpc.secure_channel(address, credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _mongod(target: str, timeout_seconds: float) -> bool:
    """A mongod that answers and, once its replica set exists, is the primary."""
    timeout_milliseconds = int(timeout_seconds * 1000)
    client: MongoClient[dict[str, object]] = MongoClient(
        f"mongodb://{target}/?directConnection=true",
        serverSelectionTimeoutMS=timeout_milliseconds,
        connectTimeoutMS=timeout_milliseconds,
        socketTimeoutMS=timeout_milliseconds,
    )
    try:
        hello = client.admin.command("hello")
    except PyMongoError:
        return False
    finally:
        client.close()
    return bool(hello.get("isWritablePrimary")) or "setName" not in hello


def _nats(target: str, timeout_seconds: float) -> bool:
    """A server that greets with its INFO, with JetStream on."""
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_seconds) as connection:
            verb, _, body = connection.makefile("rb").readline(_LONGEST_GREETING_BYTES).partition(b" ")
        return verb == b"INFO" and bool(json.loads(body).get("jetstream"))
    except (OSError, ValueError):
        return False


def _file(target: str, timeout_seconds: float) -> bool:
    """A process without a port writes this file when it is ready."""
    return Path(target).exists()


_CHECKS = {"http": _http, "grpc": _grpc, "mongod": _mongod, "nats": _nats, "file": _file}
