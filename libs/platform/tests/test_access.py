"""Who may do what, as the table says: roles, requests that name several resources, and what is remembered."""

import time
from types import SimpleNamespace

import pytest
from google.protobuf.message import Message

from stellwerk_platform import memberships
from stellwerk_platform.access import Guard, allows, denied
from stellwerk_platform.auth import Caller
from stellwerk_platform.errors import InvalidArgument, PermissionDenied, PlatformError, Unavailable
from stellwerk_platform.memberships import Memberships
from stellwerk_platform.revocations import Revocations
from stellwerk_platform.roles import PLATFORM_ROLES, TABLE, TOKEN_ROLES, WORKSPACE_ROLES
from stellwerk_protos.compute.v1 import computes_pb2, workloads_pb2
from stellwerk_protos.registry.v1 import members_pb2
from stellwerk_protos.runs.v1 import runs_pb2
from stellwerk_protos.secrets.v1 import tokens_pb2, users_pb2

ALICE, BOB, ROOT = "users/alice", "users/bob", "users/root"


class Registry:
    """Alice is a data scientist in `demo` and a reader in `other`."""

    def __init__(self) -> None:
        self.roles = {(ALICE, "workspaces/demo"): "DataScientist", (ALICE, "workspaces/other"): "Reader"}
        self.asked = 0
        self.is_away = False

    async def role(self, user: str, workspace: str) -> str:
        self.asked += 1
        if self.is_away:
            raise Unavailable("REGISTRY_UNAVAILABLE", "away")
        return self.roles.get((user, workspace), "")


async def nobody(token: str) -> Caller:
    raise AssertionError


def person(name: str, administrator: bool = False) -> Caller:
    return Caller(name, "User", time.time() + 60, administrator=administrator)


def machine(role: str, subject: str = "workspaces/demo/runs/a", secrets: tuple[str, ...] = ()) -> Caller:
    return Caller(subject, role, time.time() + 60, secrets=secrets)


async def refusal(guard: Guard, caller: Caller, permission: str, request: Message) -> PlatformError | None:
    try:
        await guard.authorise(caller, permission, request)
    except PlatformError as error:
        return error
    return None


def test_a_run_appends_to_itself_only_and_reads_its_workspace_only() -> None:
    run = machine("Workload")
    assert allows(run, "run.append", "workspaces/demo/runs/a")
    assert allows(run, "dataset.read", "workspaces/demo/datasets/d/versions/1")
    assert allows(run, "identity.read", "")
    for permission, resource in (
        ("run.append", "workspaces/demo/runs/b"),
        ("collection.write", "workspaces/demo/endpoints/e/deployments/d/replicas/r"),
        ("run.append", "workspaces/other/runs/a"),
        ("dataset.read", "workspaces/other/datasets/d/versions/1"),
        ("run.write", "workspaces/demo"),
        ("event.read", "workspaces/-"),
        # Nodes, for example, lie in no workspace.
        ("compute.read", ""),
        ("internal", ""),
    ):
        assert not allows(run, permission, resource)


def test_a_run_reads_the_secrets_that_its_token_names() -> None:
    run = machine("Workload", secrets=("workspaces/demo/secrets/token/versions/3",))
    assert allows(run, "secret.access", "workspaces/demo/secrets/token")
    assert allows(run, "secret.access", "workspaces/demo/secrets/token/versions/3")
    for name in ("token/versions/2", "tok", "other"):
        assert not allows(run, "secret.access", f"workspaces/demo/secrets/{name}")


def test_what_the_gateway_shows_to_a_scorer_opens_one_endpoint_and_nothing_else() -> None:
    invoker = machine("Invoker", "workspaces/demo/endpoints/a")
    assert allows(invoker, "endpoint.invoke", "workspaces/demo/endpoints/a")
    assert not allows(invoker, "endpoint.invoke", "workspaces/demo/endpoints/b")
    assert not allows(invoker, "run.read", "workspaces/demo")


@pytest.mark.parametrize("role", ["User", "Node", "TelemetryWriter", "Workload", "Invoker", "", "Nobody"])
def test_what_is_internal_is_for_services(role: str) -> None:
    assert not allows(machine(role), "internal", "")
    assert allows(machine("Service", "services/runs"), "internal", "")


def test_the_table_names_roles_that_there_are() -> None:
    for permission, rule in TABLE.items():
        assert rule.workspace <= {*WORKSPACE_ROLES, "Administrator"}, permission
        assert rule.platform <= set(PLATFORM_ROLES), permission
        assert rule.tokens <= set(TOKEN_ROLES), permission


async def test_a_person_has_a_role_in_each_workspace() -> None:
    guard = Guard(nobody, Memberships(Registry()))
    create = runs_pb2.CreateRunRequest(parent="workspaces/demo")
    assert await refusal(guard, person(ALICE), "run.write", create) is None
    create.parent = "workspaces/other"
    assert isinstance(await refusal(guard, person(ALICE), "run.write", create), PermissionDenied)
    read = runs_pb2.GetRunRequest(name="workspaces/other/runs/a")
    assert await refusal(guard, person(ALICE), "run.read", read) is None
    # Administrators are no exception.
    assert isinstance(await refusal(guard, person(ROOT, True), "run.read", read), PermissionDenied)


async def test_who_has_no_role_cannot_tell_whether_a_workspace_exists() -> None:
    guard = Guard(nobody, Memberships(Registry()))
    answers = set()
    for workspace in ("demo", "missing", "-"):
        request = runs_pb2.ListRunsRequest(parent=f"workspaces/{workspace}")
        answer = await refusal(guard, person(BOB), "run.read", request)
        assert isinstance(answer, PermissionDenied)
        assert answer.message.endswith(", or it does not exist.")
        answers.add((answer.reason, answer.message.replace(workspace, "W"), answer.cure))
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("permission", "who"),
    [
        ("run.write", "An owner of the workspace can make you owner, contributor or data-scientist."),
        ("workspace.delete", "Only an owner of the workspace may."),
        ("quota.write", "Only administrators of the platform may."),
        ("key.write", "Only administrators of the platform may, and the person themselves."),
        ("key.create", "Only the person themselves may."),
    ],
)
def test_who_may_not_is_told_who_may(permission: str, who: str) -> None:
    assert (
        denied(Caller("users/ada", "User", 0.0), permission, "").cure == f"Check the name and the key. {who}"
    )


@pytest.mark.parametrize("name", ["", "runs/a", "workspaces", "workspaces/", "workspaces/UP/runs/a", "\0"])
async def test_what_is_no_name_is_no_reason_to_look_for_a_role(name: str) -> None:
    registry = Registry()
    answer = await refusal(
        Guard(nobody, Memberships(registry)), person(BOB), "run.read", runs_pb2.GetRunRequest(name=name)
    )
    assert isinstance(answer, InvalidArgument)
    assert registry.asked == 0


async def test_every_resource_of_a_request_is_checked() -> None:
    guard = Guard(nobody, Memberships(Registry()))
    foreign = "workspaces/foreign"
    for request in (
        runs_pb2.CompareRunsRequest(parent="workspaces/demo", runs=[f"{foreign}/runs/a"]),
        runs_pb2.CreateRunRequest(
            parent="workspaces/demo", environment=f"{foreign}/environments/e/versions/1"
        ),
        runs_pb2.CreateRunRequest(
            parent="workspaces/demo",
            inputs=[workloads_pb2.Input(name="x", resource=f"{foreign}/datasets/d/versions/1")],
        ),
        runs_pb2.CreateRunRequest(parent="workspaces/demo", secrets=[f"{foreign}/secrets/s"]),
        runs_pb2.UpdateRunRequest(run=runs_pb2.Run(name=f"{foreign}/runs/a")),
    ):
        for caller in (person(ALICE), machine("Workload")):
            assert isinstance(await refusal(guard, caller, "run.read", request), PermissionDenied)
    # With a role in both it is still not one request.
    both = runs_pb2.CompareRunsRequest(parent="workspaces/demo", runs=["workspaces/other/runs/a"])
    mixed = await refusal(guard, person(ALICE), "run.read", both)
    assert mixed is not None
    assert mixed.reason == "WORKSPACE_MISMATCH"


async def test_what_a_service_allows_beside_the_table_keeps_to_one_workspace() -> None:
    async def always(caller: Caller, request: Message) -> bool:
        return bool(getattr(request, "parent", "") == "workspaces/demo")

    guard = Guard(nobody, Memberships(Registry()))
    guard.allow_also(always)
    child = runs_pb2.CreateRunRequest(parent="workspaces/demo")
    assert await refusal(guard, machine("Workload"), "run.write", child) is None
    child.environment = "workspaces/foreign/environments/e/versions/1"
    assert await refusal(guard, machine("Workload"), "run.write", child) is not None


async def test_people_see_themselves_and_administrators_all_people() -> None:
    guard = Guard(nobody, Memberships(Registry()))
    for name in ("users/me", ALICE):
        assert (
            await refusal(guard, person(ALICE), "key.read", users_pb2.ListApiKeysRequest(parent=name)) is None
        )
    other = users_pb2.ListApiKeysRequest(parent="users/alice2")
    assert isinstance(await refusal(guard, person(ALICE), "key.read", other), PermissionDenied)
    assert await refusal(guard, person(ROOT, True), "key.read", other) is None
    # But nobody makes a key that is somebody else.
    key = users_pb2.CreateApiKeyRequest(parent=ALICE)
    assert isinstance(await refusal(guard, person(ROOT, True), "key.create", key), PermissionDenied)
    assert await refusal(guard, person(ALICE), "compute.read", computes_pb2.ListNodesRequest()) is None


async def test_a_refusal_is_never_old(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    roles = Memberships(registry)
    guard = Guard(nobody, roles)
    request = runs_pb2.GetRunRequest(name="workspaces/demo/runs/a")
    assert await refusal(guard, person(BOB), "run.read", request) is not None
    assert await refusal(guard, person(ALICE), "run.read", request) is None
    registry.roles[BOB, "workspaces/demo"] = "Reader"
    monkeypatch.setattr(memberships, "_REFUSAL_SECONDS", 0.0)
    asked = registry.asked
    assert await refusal(guard, person(BOB), "run.read", request) is None
    # What is allowed is not asked again.
    assert await refusal(guard, person(ALICE), "run.read", request) is None
    assert registry.asked == asked + 1


async def test_a_change_that_an_answer_has_missed_is_not_forgotten() -> None:
    class Slow(Registry):
        async def role(self, user: str, workspace: str) -> str:
            found = await super().role(user, workspace)
            # Taken away while the answer is on its way.
            if self.roles.pop((user, workspace), None):
                roles.forget(user, workspace)
            return found

    roles = Memberships(Slow())
    assert await roles.role(ALICE, "workspaces/demo") == "DataScientist"
    assert await roles.role(ALICE, "workspaces/demo") == ""


async def test_entries_age_out_but_outlive_a_registry_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    roles = Memberships(registry)
    assert await roles.role(ALICE, "workspaces/demo") == "DataScientist"
    registry.roles.clear()
    assert await roles.role(ALICE, "workspaces/demo") == "DataScientist"
    now = time.monotonic()
    # The clock of this module alone: the event loop has services of other tests on it.
    monkeypatch.setattr(memberships, "time", SimpleNamespace(monotonic=lambda: now + 11))
    registry.is_away = True
    assert await roles.role(ALICE, "workspaces/demo") == "DataScientist"
    registry.is_away = False
    assert await roles.role(ALICE, "workspaces/demo") == ""


def test_roles_are_named_as_in_the_proto() -> None:
    named = {memberships.role_name(value) for value in members_pb2.Role.values()} - {""}
    assert named == set(WORKSPACE_ROLES)


async def test_who_remembers_answers_is_told_of_every_change() -> None:
    async def none() -> list[tokens_pb2.Revocation]:
        return []

    memberships, revocations, told = Memberships(Registry()), Revocations(none), []
    Guard(nobody, memberships, revocations).listen(lambda: told.append(1))
    memberships.forget(ALICE, "workspaces/demo")
    revocation = tokens_pb2.Revocation(subject=ALICE)
    revocation.before_time.GetCurrentTime()
    for _ in range(2):  # the second time it is known
        revocations.add(revocation)
    assert len(told) == 2
