"""What a caller sees of the common gRPC server: keys, permissions, errors, health, reflection."""

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stellwerk_platform import errors
from stellwerk_platform.access import Guard
from stellwerk_platform.auth import Caller, current_caller
from stellwerk_platform.grpc_client import connect, open_channel
from stellwerk_platform.grpc_server import Registration, Server, permissions
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc

SUBCLASSES = errors.PlatformError.__subclasses__()


class Tokens(tokens_pb2_grpc.TokenServiceServicer):
    """Answers GetCaller, or raises what the test sets."""

    error: Exception | None = None

    async def GetCaller(self, request: tokens_pb2.GetCallerRequest, context: Any) -> tokens_pb2.Caller:
        if self.error is not None:
            raise self.error
        return tokens_pb2.Caller(subject=current_caller().subject, role=current_caller().role)

    async def ListSigningKeys(
        self, request: tokens_pb2.ListSigningKeysRequest, context: Any
    ) -> tokens_pb2.ListSigningKeysResponse:
        return tokens_pb2.ListSigningKeysResponse()

    async def ExchangeApiKey(
        self, request: tokens_pb2.ExchangeApiKeyRequest, context: Any
    ) -> tokens_pb2.Token:
        return tokens_pb2.Token()

    async def LoginService(self, request: tokens_pb2.LoginServiceRequest, context: Any) -> tokens_pb2.Token:
        return tokens_pb2.Token()

    async def ListRevocations(
        self, request: tokens_pb2.ListRevocationsRequest, context: Any
    ) -> tokens_pb2.ListRevocationsResponse:
        return tokens_pb2.ListRevocationsResponse()

    async def RotateSigningKey(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def IssueWorkloadToken(
        self, request: tokens_pb2.IssueWorkloadTokenRequest, context: Any
    ) -> tokens_pb2.Token:
        return tokens_pb2.Token()


async def verify(token: str) -> Caller:
    """Stands for the verifier, whose own tests are those of `secrets`."""
    if token == "bad":
        raise errors.Unauthenticated("KEY_INVALID", "no", "Check the key.")
    return Caller("users/owner", token, time.time() + 60)


@pytest_asyncio.fixture
async def tokens() -> AsyncIterator[tuple[Tokens, str]]:
    servicer = Tokens()
    descriptor = tokens_pb2.DESCRIPTOR.services_by_name["TokenService"]
    registration = Registration(servicer, tokens_pb2_grpc.add_TokenServiceServicer_to_server, descriptor)
    server = Server("127.0.0.1:0", Guard(verify), [registration])
    await server.start()
    yield servicer, f"127.0.0.1:{server.port}"
    await server.stop()


async def get_caller(address: str, token: str | None) -> tokens_pb2.Caller:
    # Bare, so that what is unavailable is not asked again until the time is up.
    metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
    async with open_channel(address) as channel:
        return await tokens_pb2_grpc.TokenServiceStub(channel).GetCaller(
            tokens_pb2.GetCallerRequest(), timeout=60, metadata=metadata
        )


async def failure(address: str, token: str | None) -> errors.PlatformError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await get_caller(address, token)
    return errors.from_rpc(caught.value)


async def test_a_caller_is_known_by_its_token(tokens: tuple[Tokens, str]) -> None:
    answer = await get_caller(tokens[1], "User")
    assert (answer.subject, answer.role) == ("users/owner", "User")


async def test_without_a_key_or_permission_nothing_answers(tokens: tuple[Tokens, str]) -> None:
    missing = await failure(tokens[1], None)
    assert isinstance(missing, errors.Unauthenticated)
    assert missing.reason == "KEY_MISSING"
    assert "authorization" in missing.cure
    assert (await failure(tokens[1], "bad")).reason == "KEY_INVALID"
    denied = await failure(tokens[1], "TelemetryWriter")
    assert isinstance(denied, errors.PermissionDenied)
    assert denied.metadata["permission"] == "identity.read"


@pytest.mark.parametrize("kind", SUBCLASSES, ids=lambda kind: kind.__name__)
async def test_every_error_arrives_as_it_was_raised(
    tokens: tuple[Tokens, str], kind: type[errors.PlatformError]
) -> None:
    tokens[0].error = kind("SOME_REASON", "What happened.", "What to do.", {"key": "value"})
    received = await failure(tokens[1], "User")
    assert type(received) is kind
    assert (received.reason, received.message, received.cure) == (
        "SOME_REASON",
        "What happened.",
        "What to do.",
    )
    assert received.metadata == {"key": "value"}
    assert 400 <= received.http_status < 600


async def test_an_unexpected_error_tells_nothing(tokens: tuple[Tokens, str]) -> None:
    tokens[0].error = RuntimeError("the password is hunter2")
    received = await failure(tokens[1], "User")
    assert isinstance(received, errors.Internal)
    assert "hunter2" not in received.message


async def test_public_methods_health_and_reflection_need_no_key(tokens: tuple[Tokens, str]) -> None:
    channel = connect(tokens[1])
    await tokens_pb2_grpc.TokenServiceStub(channel).ListSigningKeys(
        tokens_pb2.ListSigningKeysRequest(), timeout=60
    )
    health = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service="stellwerk.secrets.v1.TokenService"), timeout=60
    )
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    await channel.close()


async def test_a_huge_message_is_refused(tokens: tuple[Tokens, str]) -> None:
    channel = grpc.aio.insecure_channel(tokens[1], options=[("grpc.max_send_message_length", -1)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tokens_pb2_grpc.TokenServiceStub(channel).ExchangeApiKey(
            tokens_pb2.ExchangeApiKeyRequest(api_key="x" * 17 * 1024 * 1024), timeout=60
        )
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await channel.close()


def test_a_method_without_a_permission_keeps_the_service_from_starting() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="open.proto", package="open")
    file.message_type.add(name="Empty")
    file.service.add(name="Open").method.add(name="Do", input_type=".open.Empty", output_type=".open.Empty")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    with pytest.raises(ValueError, match=r"open\.Open\.Do names no permission"):
        permissions(Registration(object(), lambda *_: None, pool.FindServiceByName("open.Open")))
