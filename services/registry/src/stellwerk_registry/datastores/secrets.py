"""Reads the keys of datastores."""

from collections.abc import Awaitable, Callable

import grpc

from stellwerk_platform.errors import FailedPrecondition, from_rpc
from stellwerk_protos.secrets.v1 import secrets_pb2, secrets_pb2_grpc

_ASK_SECONDS = 10.0


def secret_reader(channel: grpc.aio.Channel) -> Callable[[str], Awaitable[str]]:
    """A function that returns the newest value of a secret; it raises `PlatformError`."""
    stub = secrets_pb2_grpc.SecretServiceStub(channel)

    async def read(name: str) -> str:
        try:
            answer = await stub.AccessSecret(secrets_pb2.AccessSecretRequest(name=name), timeout=_ASK_SECONDS)
            return answer.value.decode().strip()
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        except UnicodeDecodeError:
            raise FailedPrecondition(
                "SECRET_NOT_TEXT", f"{name} is no text.", "Set it to the key as your S3 server gave it."
            ) from None

    return read
