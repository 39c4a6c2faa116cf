"""Names, page tokens, file lists, documents, settings and the permission table: no server needed."""

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from stellwerk_platform import content, names, paging
from stellwerk_platform.documents import from_document, now, to_document
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.settings import ServiceSettings, SettingsError
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.compute.v1.computes_pb2 import ALLOCATION_STATE_RUNNING, Allocation, Compute, Node
from stellwerk_protos.registry.v1.datasets_pb2 import DatasetVersion
from stellwerk_protos.registry.v1.environments_pb2 import EnvironmentVersion
from stellwerk_protos.registry.v1.models_pb2 import ModelVersion
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace
from stellwerk_protos.runs.v1.runs_pb2 import Run
from stellwerk_protos.runs.v1.snapshots_pb2 import Snapshot

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    "bad", ["", "A b", "a/b", "../x", "a..b", "a.", "x" * 64, "a\0", "a\n", "ä", "-a", " ", "x" * 10_000]
)
def test_an_illegal_id_is_refused_with_the_rule(bad: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.check_id("models", bad)
    assert caught.value.reason == "INVALID_NAME"
    assert "1 to 63" in caught.value.cure
    assert len(caught.value.message) < 200


def test_names_are_parsed_by_pattern() -> None:
    assert names.parse("workspaces/*/runs/*", "workspaces/demo/runs/a1") == ("demo", "a1")
    assert names.parse("workspaces/*/models/*", "workspaces/demo/models/-", wildcard=True) == ("demo", "-")
    for bad in (
        "workspaces/demo",
        "workspaces/demo/models/x",
        "workspaces/demo/runs/",
        "runs/x/workspaces/y",
    ):
        with pytest.raises(InvalidArgument):
            names.parse("workspaces/*/runs/*", bad)


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner, max_size=3)))
def test_a_page_token_returns_its_position_to_its_query_only(position: object) -> None:
    token = paging.encode(position, "runs", {"a": 1})
    assert paging.decode(token, "runs", {"a": 1}) == position
    with pytest.raises(InvalidArgument):
        paging.decode(token, "runs", {"a": 2})


@pytest.mark.parametrize("token", ["x", "####", "e30", "bnVsbA"])
def test_a_made_up_page_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="page token"):
        paging.decode(token, "runs")


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\0b", "a\nb", "a\\b", "x" * 5_000, "a/"]
)
def test_a_path_that_could_escape_or_confuse_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        content.check_files([File(path=path, sha256=DIGEST)])
    assert caught.value.reason == "INVALID_PATH"


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a-b", "a/b"), ("a/b", "a/b/c")])
def test_files_that_cannot_lie_in_one_folder_are_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="collides"):
        content.check_files([File(path=path, sha256=DIGEST) for path in paths])


@given(st.permutations(["a", "b/c", "b/d"]))
def test_the_digest_does_not_depend_on_the_order_but_on_the_mode(paths: list[str]) -> None:
    files = [File(path=path, sha256=DIGEST) for path in paths]
    digest = content.digest_of(files)
    assert digest == content.digest_of(sorted(files, key=lambda file: file.path))
    files[0].executable = True
    assert digest != content.digest_of(files)


@given(st.dictionaries(st.text(min_size=1), st.text()), st.integers(0, 2**62), st.text())
def test_a_document_gives_back_its_message(tags: dict[str, str], revision: int, text: str) -> None:
    workspace = Workspace(
        name="workspaces/a", revision=revision, create_time=now(), description=text, tags=tags
    )
    document = to_document(workspace)
    assert document["_id"] == "workspaces/a"
    assert from_document(Workspace, document) == workspace


def test_a_document_keeps_nested_messages_enums_and_presence() -> None:
    allocation = Allocation(name="x", state=ALLOCATION_STATE_RUNNING, exit_code=0)
    allocation.workload.inputs.add(name="digits", resource="r")
    allocation.workload.grace.FromMilliseconds(1_500)
    allocation.phases.add(name="run_command").start_time.CopyFrom(now())
    document = to_document(allocation)
    assert document["state"] == "ALLOCATION_STATE_RUNNING"
    assert from_document(Allocation, document) == allocation
    assert not from_document(Allocation, to_document(Allocation(name="x"))).HasField("exit_code")


def test_settings_name_every_variable_that_is_missing() -> None:
    with pytest.raises(SettingsError, match=r"STELLWERK_VAULT_ROLE_ID.*STELLWERK_SECRETS_ADDRESS"):
        ServiceSettings.from_environment({"STELLWERK_VAULT_SECRET_ID": "x"})


def test_a_variable_wins_over_what_vault_keeps_and_what_is_in_neither_is_named() -> None:
    names = ("VAULT_ROLE_ID", "VAULT_SECRET_ID", "SECRETS_ADDRESS", "REGISTRY_ADDRESS")
    required = {f"STELLWERK_{name}": "x" for name in names}
    kept = {"mongodb_uri": "mongodb://kept", "nats_url": "nats://kept", "nats_seed": "SU"}
    settings = ServiceSettings.from_environment(required)
    with pytest.raises(SettingsError, match=r"STELLWERK_NATS_URL, STELLWERK_MONGODB_URI"):
        settings.completed({})
    assert vars(settings.completed(kept)).items() >= kept.items()
    own = ServiceSettings.from_environment(required | {"STELLWERK_NATS_URL": "nats://own"}).completed(kept)
    # The seed in Vault is no user of a server of one's own.
    assert (own.nats_url, own.nats_seed, own.mongodb_uri) == ("nats://own", "", "mongodb://kept")


def filled(message: Message) -> Message:
    """The message with a value in every field."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, Timestamp):
            value.CopyFrom(now())
        elif isinstance(value, Duration):
            value.FromMilliseconds(1_500)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            value["a.b"] = 7 if field.message_type.fields_by_name["value"].default_value == 0 else "c"
        elif field.message_type is not None:
            filled(value.add() if field.is_repeated else value)
        elif field.is_repeated:
            value.append("text")
        elif field.enum_type is not None:
            setattr(message, field.name, field.enum_type.values[-1].number)
        elif isinstance(value, bool):
            setattr(message, field.name, True)
        else:
            setattr(message, field.name, type(value)(b"x" if isinstance(value, bytes) else "3"))
    return message


@pytest.mark.parametrize(
    "kind",
    [Allocation, Compute, Node, DatasetVersion, EnvironmentVersion, ModelVersion, Workspace, Run, Snapshot],
)
def test_every_field_of_a_resource_survives_its_document(kind: type[Message]) -> None:
    """A field of a kind that documents do not know fails here, not in production."""
    message = filled(kind())
    assert len(message.ListFields()) == len(message.DESCRIPTOR.fields)
    assert from_document(kind, to_document(message)) == message
