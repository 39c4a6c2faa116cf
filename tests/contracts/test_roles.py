"""(identity × RPC × resource) against a real stack: what is allowed is what the role table says.

What is allowed may still fail, because there is no such resource or the request makes no sense, but never
for want of permission; what is not allowed fails for that and for nothing else.
"""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stellwerk_platform.roles import PUBLIC, TABLE, WORKSPACE_ROLES
from stellwerk_protos.registry.v1 import members_pb2, members_pb2_grpc, workspaces_pb2, workspaces_pb2_grpc
from stellwerk_protos.secrets.v1 import users_pb2, users_pb2_grpc
from stellwerk_secrets.domain import Identity
from tests.contracts.identities import Signer, Somebody
from tests.contracts.protos import methods, name_fields, permission_of

HOME, FOREIGN, MISSING = "roles-home", "roles-foreign", "roles-missing"
# A stream that is let in may say nothing for ever; one that is refused says so, when the machine finds time.
_OPEN_STREAM_SECONDS = 0.5
_SECONDS = 60.0
_REFUSED = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
_EXAMPLES = 500
IDENTITIES = (
    *WORKSPACE_ROLES,
    *(
        "administrator",
        "stranger",
        "run",
        "run elsewhere",
        "node",
        "revoked key",
        "expired",
        "forged",
        "none",
    ),
)


def _proto_role(role: str) -> "members_pb2.Role.ValueType":
    return members_pb2.Role.Value("ROLE_" + re.sub(r"(?<!^)(?=[A-Z])", "_", role).upper())


class People:
    """Makes workspaces, people and members with the owner's key."""

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._workspaces: Any = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
        self._users: Any = users_pb2_grpc.UserServiceStub(channel)
        self._members: Any = members_pb2_grpc.MemberServiceStub(channel)

    def workspace(self, workspace_id: str) -> None:
        request = workspaces_pb2.CreateWorkspaceRequest(workspace_id=workspace_id)
        self._workspaces.CreateWorkspace(request, metadata=self._metadata)

    def person(self, user_id: str, *, administrator: bool = False) -> None:
        request = users_pb2.CreateUserRequest(user_id=user_id, administrator=administrator)
        self._users.CreateUser(request, metadata=self._metadata)

    def member(self, role: str) -> str:
        """A new person with a role in HOME."""
        user_id = f"roles-{role.lower()}"
        self.person(user_id)
        name = f"workspaces/{HOME}/members/{user_id}"
        request = members_pb2.SetMemberRequest(name=name, role=_proto_role(role))
        self._members.SetMember(request, metadata=self._metadata)
        return f"users/{user_id}"

    def revoked_key(self) -> str:
        created = self._users.CreateApiKey(
            users_pb2.CreateApiKeyRequest(parent="users/me", key_id=f"k{uuid.uuid4().hex[:8]}"),
            metadata=self._metadata,
        )
        request = users_pb2.RevokeApiKeyRequest(name=created.api_key.name)
        self._users.RevokeApiKey(request, metadata=self._metadata)
        return str(created.key)


@pytest.fixture(scope="module")
def channel(stack: dict[str, Any]) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stack["grpc_address"]) as channel:
        yield channel


@pytest.fixture(scope="module")
def owner_key(stack: dict[str, Any]) -> str:
    return Path(stack["owner_key_file"]).read_text().strip()


@pytest.fixture(scope="module")
async def somebody(stack: dict[str, Any], channel: grpc.Channel, owner_key: str) -> dict[str, Somebody]:
    people = People(channel, owner_key)
    for workspace in (HOME, FOREIGN):
        people.workspace(workspace)
    people.person("roles-root", administrator=True)
    people.person("roles-stranger")
    signer = Signer(stack)
    found = []
    for role in WORKSPACE_ROLES:
        identity = Identity(people.member(role), "User")
        found.append(await signer.somebody(role, identity, {HOME: role}))
    for name, identity in (
        ("administrator", Identity("users/roles-root", "User", administrator=True)),
        ("stranger", Identity("users/roles-stranger", "User")),
        ("run", Identity(f"workspaces/{HOME}/runs/r", "Workload")),
        ("run elsewhere", Identity(f"workspaces/{FOREIGN}/runs/r", "Workload")),
        ("node", Identity("nodes/roles", "Node")),
    ):
        found.append(await signer.somebody(name, identity))
    good = found[0].token
    expired = await signer.token(Identity(found[0].subject, "User"), expires_in_seconds=-10)
    forged = good[:-8] + ("AAAAAAAA" if not good.endswith("AAAAAAAA") else "BBBBBBBB")
    for name, token in (
        ("revoked key", people.revoked_key()),
        ("expired", expired),
        ("forged", forged),
        ("none", ""),
    ):
        found.append(Somebody(name, token))
    return {each.name: each for each in found}


def name_in(form: str, workspace: str) -> str:
    """A name of the form that a proto gives, in a workspace, of things that there are not."""
    form = form.split(" or ")[0].split(", ")[0].strip().replace('"', "")
    name = form.replace("{workspace}", workspace)
    name = re.sub(r"versions/\{[^}]*\}?", "versions/1", name)
    name = re.sub(r"snapshots/\{[^}]*\}?", f"snapshots/{'0' * 64}", name)
    return re.sub(r"\{[^}]*\}?", "none", name)


def fill(message: Message, workspace: str, depth: int = 0) -> None:
    """Names resources of the workspace wherever the message takes names, and asks for nothing that lasts."""
    for field in message.DESCRIPTOR.fields:
        form = name_fields().get((message.DESCRIPTOR.name, field.name), "")
        if field.type == FieldDescriptor.TYPE_BOOL and field.name == "validate_only":
            setattr(message, field.name, True)
        elif field.type == FieldDescriptor.TYPE_STRING and form:
            name = name_in(form, workspace)
            message.MergeFrom(type(message)(**{field.name: [name] if field.is_repeated else name}))
        elif _may_be_filled(field) and depth < 2:
            fill(getattr(message, field.name), workspace, depth + 1)


def _may_be_filled(field: Any) -> bool:
    entry = field.message_type
    return entry is not None and not field.is_repeated and entry.full_name.startswith("stellwerk.")


def subject_of(message: Message) -> str:
    """What the request is about, as its names were filled in."""
    for field in ("name", "parent", "run", "owner", "endpoint"):
        found = getattr(message, field, "")
        if isinstance(found, str) and found:
            return found
    inner = [value for child, value in message.ListFields() if child.message_type and not child.is_repeated]
    return next((str(value.name) for value in inner if getattr(value, "name", "")), "")


def allowed(who: Somebody, permission: str, resource: str) -> bool:
    """The rules in short, written a second time."""
    rule = TABLE[permission]
    workspace = resource.split("/")[1] if resource.startswith("workspaces/") else ""
    if who.role == "User":
        if workspace:
            inside = who.administrator and "Administrator" in rule.workspace
            return inside or (who.roles or {}).get(workspace, "") in rule.workspace
        return (
            "AnyPerson" in rule.platform
            or (who.administrator and "Administrator" in rule.platform)
            or ("Self" in rule.platform and resource.startswith((who.subject, "users/me")))
        )
    if who.role not in rule.tokens:
        return False
    if who.role == "Node" or permission == "identity.read":
        return True
    if permission == "secret.access":
        return False  # the token names none
    if permission == "run.append":
        return resource == who.subject
    return workspace == who.subject.split("/")[1]


def is_for_children(who: Somebody, method: MethodDescriptor, resource: str) -> bool:
    """A run gives its child runs their code: the one thing beyond the table that needs no child."""
    home = "/".join(who.subject.split("/")[:2])
    return who.role == "Workload" and method.name == "CreateSnapshot" and resource == home


def is_of_a_replica(method: MethodDescriptor) -> bool:
    """What only a replica may do, and for its own deployment: beyond the table, which knows no replicas."""
    return permission_of(method) in ("collection.write", "batch.work")


def reads_all(who: Somebody, request: Message) -> bool:
    """A subscription is for workspaces whose events its person may read, each."""
    workspaces = getattr(request, "workspaces", ())
    return all(allowed(who, "event.read", workspace) for workspace in workspaces)


def is_open(who: Somebody, method: MethodDescriptor, request: Message) -> bool:
    """Whether the call is let in; what it asks for need not be there."""
    subject = subject_of(request)
    if is_for_children(who, method, subject):
        return True
    return allowed(who, permission_of(method), subject) and reads_all(who, request)


def call(
    channel: grpc.Channel, method: MethodDescriptor, request: Message, token: str, *, opens: bool = False
) -> grpc.RpcError | None:
    """The error, or None for an answer or a stream that begins; `opens` is what is expected."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    parse = message_factory.GetMessageClass(method.output_type).FromString
    serialize = type(request).SerializeToString
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    stream_seconds = _OPEN_STREAM_SECONDS if opens else _SECONDS
    try:
        if method.client_streaming:
            stream = channel.stream_stream(path, serialize, parse)
            next(stream(iter([request]), metadata=metadata, timeout=stream_seconds), None)
        elif method.server_streaming:
            next(
                channel.unary_stream(path, serialize, parse)(
                    request, metadata=metadata, timeout=stream_seconds
                ),
                None,
            )
        else:
            channel.unary_unary(path, serialize, parse)(request, metadata=metadata, timeout=_SECONDS)
    except grpc.RpcError as error:
        return error
    return None


def is_offered(method: MethodDescriptor) -> bool:
    """Public RPCs refuse for other reasons than roles."""
    return permission_of(method) != PUBLIC


OFFERED = [method for method in methods() if is_offered(method)]


@settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(IDENTITIES),
    method=st.sampled_from(OFFERED),
    workspace=st.sampled_from([HOME, FOREIGN, MISSING]),
)
def test_what_is_allowed_is_what_the_table_says(
    somebody: dict[str, Somebody],
    channel: grpc.Channel,
    name: str,
    method: MethodDescriptor,
    workspace: str,
) -> None:
    who = somebody[name]
    request = message_factory.GetMessageClass(method.input_type)()
    fill(request, workspace)
    opens = not is_of_a_replica(method) and is_open(who, method, request)
    error = call(channel, method, request, who.token, opens=opens)
    code = error.code() if error is not None else grpc.StatusCode.OK
    shown = f"{who} {method.full_name} {subject_of(request)}: {code.name} {error and error.details()}"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return  # The doors do not offer it, or nobody answers it yet: it is not open.
    elif not who.role:
        assert code is grpc.StatusCode.UNAUTHENTICATED, shown
    elif is_of_a_replica(method):
        assert code is grpc.StatusCode.PERMISSION_DENIED, shown
    elif opens:
        assert code not in _REFUSED, shown
    else:
        assert code is grpc.StatusCode.PERMISSION_DENIED, shown


def test_one_foreign_name_among_good_ones_is_enough(
    somebody: dict[str, Somebody], channel: grpc.Channel
) -> None:
    """For each RPC that takes more than one name."""
    tried = 0
    for method in OFFERED:
        request = message_factory.GetMessageClass(method.input_type)()
        fill(request, HOME)
        foreign = message_factory.GetMessageClass(method.input_type)()
        fill(foreign, FOREIGN)
        for field, value in foreign.ListFields():
            mixed = type(request)()
            mixed.CopyFrom(request)
            mixed.ClearField(field.name)
            mixed.MergeFrom(type(request)(**{field.name: value}))
            names_other = FOREIGN in str(value) and subject_of(mixed) == subject_of(request)
            if not names_other or method.client_streaming or field.name == "workspaces":
                continue
            tried += 1
            for name in ("Owner", "run"):
                error = call(channel, method, mixed, somebody[name].token)
                code = error.code() if error is not None else grpc.StatusCode.OK
                assert code is grpc.StatusCode.PERMISSION_DENIED, (
                    f"{name} {method.full_name} {field.name}: {code}"
                )
    assert tried > 5
