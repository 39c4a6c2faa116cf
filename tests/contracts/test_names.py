"""No name of a resource in a request escapes the check of its workspace."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from stellwerk_platform.access import NAME_FIELDS
from stellwerk_platform.roles import PUBLIC, TABLE
from tests.contracts.protos import methods, name_fields, permission_of

# Checked by the service: a subscription reads what its person may read, one workspace at a time.
ELSEWHERE = {("CreateSubscriptionRequest", "workspaces")}


def _messages(message: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    if message.full_name not in seen:
        seen.add(message.full_name)
        yield message
        for field in message.fields:
            if field.message_type is not None:
                yield from _messages(field.message_type, seen)


def test_every_name_of_a_resource_is_looked_at() -> None:
    missed = set()
    for method in methods():
        # Each message of a stream is handed to the check by its service.
        if permission_of(method) in (PUBLIC, "internal", "node.connect"):
            continue
        for message in _messages(method.input_type, set()):
            for field in message.fields:
                form = name_fields().get((message.name, field.name), "")
                if form.startswith("workspaces/") and field.name not in NAME_FIELDS:
                    missed.add((message.name, field.name))
    assert missed == ELSEWHERE


def test_the_comments_are_found() -> None:
    assert name_fields()["GetRunRequest", "name"] == "workspaces/{workspace}/runs/{run}"
    assert len(name_fields()) > 100


def test_every_permission_is_in_the_table_and_used() -> None:
    used = {permission_of(method) for method in methods()} - {PUBLIC}
    # What the doors ask for themselves.
    assert set(TABLE) - used == {"telemetry.write"}
    assert used <= set(TABLE)
