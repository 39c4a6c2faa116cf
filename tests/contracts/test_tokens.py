"""Tokens that are not what they say open nothing; what ends, ends at every service, and in streams."""

import base64
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from stellwerk_platform.errors import from_rpc
from stellwerk_platform.roles import PUBLIC
from stellwerk_protos.registry.v1 import members_pb2, members_pb2_grpc, workspaces_pb2, workspaces_pb2_grpc
from stellwerk_protos.secrets.v1 import sessions_pb2, sessions_pb2_grpc, users_pb2, users_pb2_grpc
from stellwerk_protos.telemetry.v1 import telemetry_pb2, telemetry_pb2_grpc
from stellwerk_secrets.domain import Identity
from tests.contracts.identities import Signer
from tests.contracts.protos import methods, permission_of

WORKSPACE = "workspaces/tokens"
# Within which everybody knows of an end; on a busy machine that is not the moment that it is elsewhere.
_PATIENCE_SECONDS = 60.0


def one_of_each_service() -> list[MethodDescriptor]:
    """A unary RPC of each service that the doors offer."""
    found: dict[str, MethodDescriptor] = {}
    for method in methods():
        unary = not method.client_streaming and not method.server_streaming
        if unary and permission_of(method) not in (PUBLIC, "internal"):
            found.setdefault(str(method.containing_service.full_name), method)
    return list(found.values())


@pytest.fixture(scope="module")
def channel(stack: dict[str, Any]) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stack["grpc_address"]) as channel:
        yield channel


@pytest.fixture(scope="module")
def owner(stack: dict[str, Any]) -> tuple[tuple[str, str]]:
    return bearer(Path(stack["owner_key_file"]).read_text().strip())


def bearer(key: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {key}"),)


def reason_of(channel: grpc.Channel, method: MethodDescriptor, token: str) -> tuple[str, str]:
    """Status and reason of a call."""
    request = message_factory.GetMessageClass(method.input_type)()
    parse = message_factory.GetMessageClass(method.output_type).FromString
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        channel.unary_unary(path, type(request).SerializeToString, parse)(
            request, metadata=bearer(token), timeout=_PATIENCE_SECONDS
        )
    except grpc.RpcError as error:
        failure: Any = error
        return failure.code().name, from_rpc(failure).reason
    return "OK", ""


def claims(**changed: object) -> dict[str, object]:
    now = time.time()
    usual = {"iss": "stellwerk", "aud": "stellwerk", "sub": "users/owner", "role": "Service"}
    return {**usual, "iat": now, "exp": now + 600, "jti": "1", **changed}


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


async def test_tokens_that_are_not_what_they_say(stack: dict[str, Any], channel: grpc.Channel) -> None:
    signer, owner = Signer(stack), Identity("users/owner", "User", administrator=True)
    good = await signer.token(owner)
    header, payload, signature = good.split(".")
    kid = jwt.get_unverified_header(good)["kid"]
    own_key = Ed25519PrivateKey.generate()
    public = own_key.public_key().public_bytes_raw()
    tokens = {
        "expired": await signer.token(owner, expires_in_seconds=-5),
        "signed by another key": jwt.encode(claims(), own_key, algorithm="EdDSA", headers={"kid": kid}),
        "unknown key": jwt.encode(claims(), own_key, algorithm="EdDSA", headers={"kid": "mine:1"}),
        "no algorithm": f"{part({'alg': 'none', 'kid': kid})}.{part(claims())}.",
        "symmetric": jwt.encode(claims(), public, algorithm="HS256", headers={"kid": kid}),
        "other claims": f"{header}.{part(claims())}.{signature}",
        "other header": f"{part({'alg': 'EdDSA', 'kid': kid, 'typ': 'x'})}.{payload}.{signature}",
        "wrong audience": await signer.token_of(claims(aud="elsewhere")),
        "wrong issuer": await signer.token_of(claims(iss="elsewhere")),
        "no end": await signer.token_of({k: v for k, v in claims().items() if k != "exp"}),
        "nonsense": "x.y.z",
        "a key that there is not": "swk_" + "x" * 43,
        "endless": "x" * 7_000,
    }
    wrong = [
        f"{name} at {method.full_name}: {answer}"
        for name, token in tokens.items()
        for method in one_of_each_service()
        if (answer := reason_of(channel, method, token))[0] not in ("UNAUTHENTICATED", "UNIMPLEMENTED")
    ]
    assert not wrong, "\n".join(wrong)


class Person:
    """Somebody new with a key and a role in the workspace."""

    def __init__(self, channel: grpc.Channel, owner: Any) -> None:
        users: Any = users_pb2_grpc.UserServiceStub(channel)
        sessions: Any = sessions_pb2_grpc.SessionServiceStub(channel)
        self._members: Any = members_pb2_grpc.MemberServiceStub(channel)
        user_id = f"t{uuid.uuid4().hex[:8]}"
        invited = users.CreateUser(users_pb2.CreateUserRequest(user_id=user_id), metadata=owner)
        accept = sessions_pb2.AcceptInvitationRequest(invitation=invited.invitation)
        self.session = sessions.AcceptInvitation(accept)
        self.name, self.member = f"users/{user_id}", f"{WORKSPACE}/members/{user_id}"
        request = members_pb2.SetMemberRequest(name=self.member, role=members_pb2.ROLE_READER)
        self._members.SetMember(request, metadata=owner)

    @property
    def metadata(self) -> tuple[tuple[str, str]]:
        return bearer(self.session.key)

    def watch(self, channel: grpc.Channel) -> Any:
        """A stream of the workspace's events that has begun, and never ends by itself."""
        stub: Any = telemetry_pb2_grpc.TelemetryServiceStub(channel)
        request = telemetry_pb2.WatchEventsRequest(parent=WORKSPACE, start_sequence=1)
        call = stub.WatchEvents(request, metadata=self.metadata, timeout=_PATIENCE_SECONDS)
        next(call)
        return call


@pytest.fixture(scope="module")
def workspace(channel: grpc.Channel, owner: Any) -> str:
    stub: Any = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
    stub.CreateWorkspace(workspaces_pb2.CreateWorkspaceRequest(workspace_id="tokens"), metadata=owner)
    return WORKSPACE


def end_of(call: Any) -> tuple[str, str]:
    """Status and reason with which a stream ends."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call:
            pass
    failure: Any = caught.value
    return failure.code().name, from_rpc(failure).reason


def refused_soon(channel: grpc.Channel, method: MethodDescriptor, key: str) -> None:
    """Returns once a service refuses a key: each hears of its end by itself."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while reason_of(channel, method, key)[0] not in ("UNAUTHENTICATED", "UNIMPLEMENTED"):
        assert time.monotonic() < deadline, method.full_name
        time.sleep(0.05)


def test_a_member_who_is_removed_in_the_middle_of_a_stream(
    channel: grpc.Channel, owner: Any, workspace: str
) -> None:
    person = Person(channel, owner)
    call = person.watch(channel)
    members: Any = members_pb2_grpc.MemberServiceStub(channel)
    members.RemoveMember(members_pb2.RemoveMemberRequest(name=person.member), metadata=owner)
    assert end_of(call) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    with pytest.raises(grpc.RpcError, match=r"may not event\.read"):
        person.watch(channel)


def test_a_key_that_is_revoked_in_the_middle_of_a_stream(
    channel: grpc.Channel, owner: Any, workspace: str
) -> None:
    person = Person(channel, owner)
    call = person.watch(channel)
    # Known at every service before.
    for method in one_of_each_service():
        assert reason_of(channel, method, person.session.key)[0] != "UNAUTHENTICATED"
    users: Any = users_pb2_grpc.UserServiceStub(channel)
    revoke = users_pb2.RevokeApiKeyRequest(name=person.session.api_key.name)
    users.RevokeApiKey(revoke, metadata=person.metadata)
    assert end_of(call)[0] == "UNAUTHENTICATED"
    for method in one_of_each_service():
        refused_soon(channel, method, person.session.key)
