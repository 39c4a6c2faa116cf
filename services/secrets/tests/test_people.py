"""People, keys and invitations, on real servers."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta

import grpc
import jwt
import pytest

from services.secrets.tests.support import Secrets, new_key
from stellwerk_platform.documents import timestamp
from stellwerk_platform.errors import from_rpc
from stellwerk_platform.journal import Event, decode
from stellwerk_protos.secrets.v1 import sessions_pb2, tokens_pb2, users_pb2
from stellwerk_secrets.revocations.events import EndedWorkloads
from stellwerk_secrets.revocations.store import Revocations


def unique(word: str) -> str:
    return f"{word}-{uuid.uuid4().hex[:8]}"


async def reason_of(call: "Awaitable[object]") -> str:
    """The reason code with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc(raised.value).reason


async def exchange(secrets: Secrets, key: str) -> tokens_pb2.Token:
    async with secrets.stub() as stub:
        return await stub.ExchangeApiKey(tokens_pb2.ExchangeApiKeyRequest(api_key=key))


async def outcome(secrets: Secrets, key: str) -> str:
    """The reason why a key does not open, "" when it does."""
    try:
        await exchange(secrets, key)
    except grpc.aio.AioRpcError as error:
        return from_rpc(error).reason
    return ""


async def events_of(secrets: Secrets, *subjects: str) -> AsyncIterator[Event]:
    """The journal from its beginning."""
    async with secrets.bus() as bus:
        subscription = await bus.jetstream.subscribe(
            bus.names.subject("journal", "_", "secrets", *subjects),
            stream=bus.names.stream("JOURNAL"),
            ordered_consumer=True,
        )
        async for message in subscription.messages:
            yield decode(message.data)


async def test_an_invitation_brings_in_a_person_once(secrets: Secrets) -> None:
    name = unique("ada")
    async with secrets.people() as owner, secrets.sessions() as sessions:
        created = await owner.CreateUser(
            users_pb2.CreateUserRequest(user_id=name, display_name="Ada", email=f"{name}@Example.org")
        )
        assert (created.user.name, created.user.email) == (f"users/{name}", f"{name}@example.org")
        accept = sessions_pb2.AcceptInvitationRequest(invitation=created.invitation, display_name="laptop")
        session = await sessions.AcceptInvitation(accept)
        assert await reason_of(sessions.AcceptInvitation(accept)) == "INVITATION_INVALID"
    async with secrets.stub(session.key) as stub:
        caller = await stub.GetCaller(tokens_pb2.GetCallerRequest())
    assert (caller.subject, caller.role, caller.administrator) == (f"users/{name}", "User", False)
    assert caller.key == session.api_key.name
    async with secrets.people(session.key) as ada:
        me = await ada.GetUser(users_pb2.GetUserRequest(name="users/me"))
        assert (me.name, me.email) == (f"users/{name}", f"{name}@example.org")
        # Others are people with names, and no more.
        other = await ada.GetUser(users_pb2.GetUserRequest(name="users/owner"))
        assert (other.display_name, other.administrator, other.revision) == ("Owner", False, 0)
        for refused in (
            ada.CreateUser(users_pb2.CreateUserRequest(user_id=unique("x"))),
            ada.DisableUser(users_pb2.DisableUserRequest(name="users/owner")),
            ada.ListApiKeys(users_pb2.ListApiKeysRequest(parent="users/owner")),
            ada.ListApiKeys(users_pb2.ListApiKeysRequest(parent="users/nobody")),
            ada.RevokeApiKey(users_pb2.RevokeApiKeyRequest(name="users/owner/keys/none")),
            ada.CreateApiKey(users_pb2.CreateApiKeyRequest(parent="users/owner")),
        ):
            assert await reason_of(refused) == "PERMISSION_DENIED"


async def test_a_person_has_several_named_keys_and_sees_when_each_was_used(secrets: Secrets) -> None:
    key = await secrets.join(name := unique("bob"))
    async with secrets.people(key) as bob:
        laptop = await bob.CreateApiKey(
            users_pb2.CreateApiKeyRequest(parent="users/me", key_id="ci", display_name="build machine")
        )
        again = users_pb2.CreateApiKeyRequest(parent="users/me", key_id="ci")
        assert await reason_of(bob.CreateApiKey(again)) == "ALREADY_EXISTS"
        assert laptop.key.startswith(laptop.api_key.prefix)
        assert len(laptop.api_key.prefix) < 12
        listed = (await bob.ListApiKeys(users_pb2.ListApiKeysRequest(parent="users/me"))).api_keys
        assert listed[0].name == f"users/{name}/keys/ci"
        assert not listed[0].HasField("last_use_time")
        await exchange(secrets, laptop.key)
        listed = (await bob.ListApiKeys(users_pb2.ListApiKeysRequest(parent="users/me"))).api_keys
        used = listed[0].last_use_time.ToDatetime(UTC)
        assert (used.second, used.microsecond) == (0, 0)
        assert datetime.now(UTC) - used < timedelta(minutes=3)
    async with secrets.people() as owner:
        # An administrator sees and ends anybody's keys, but makes none.
        found = await owner.ListApiKeys(users_pb2.ListApiKeysRequest(parent=f"users/{name}"))
        assert len(found.api_keys) == 2
        theirs = users_pb2.CreateApiKeyRequest(parent=f"users/{name}")
        assert await reason_of(owner.CreateApiKey(theirs)) == "PERMISSION_DENIED"
        await owner.RevokeApiKey(users_pb2.RevokeApiKeyRequest(name=f"users/{name}/keys/ci"))
    assert await reason_of(exchange(secrets, laptop.key)) == "KEY_INVALID"
    assert (await exchange(secrets, key)).token


async def test_a_key_ends_when_it_was_said_to(secrets: Secrets) -> None:
    key = await secrets.join(unique("eve"))
    async with secrets.people(key) as eve:
        past = users_pb2.CreateApiKeyRequest(parent="users/me", expire_time=timestamp(datetime.now(UTC)))
        assert await reason_of(eve.CreateApiKey(past)) == "INVALID_EXPIRY"
        # Long enough to be used before, on a machine that has much to do.
        for seconds in (2, 10, 60):
            ends = datetime.now(UTC) + timedelta(seconds=seconds)
            request = users_pb2.CreateApiKeyRequest(parent="users/me", expire_time=timestamp(ends))
            try:
                short = (await eve.CreateApiKey(request)).key
                token = await exchange(secrets, short)
                break
            except grpc.aio.AioRpcError:
                assert datetime.now(UTC) > ends
    assert token.expire_time.seconds <= ends.timestamp()
    async with asyncio.timeout(120):
        while (reason := await outcome(secrets, short)) == "":
            pass
    assert reason == "KEY_INVALID"


async def test_what_is_revoked_is_announced_and_listed(fresh: Secrets) -> None:
    async with fresh.run():
        key = await fresh.join("ada")
        async with fresh.people(key) as ada, fresh.as_service() as service:
            made = await ada.CreateApiKey(users_pb2.CreateApiKeyRequest(parent="users/me", key_id="old"))
            before = await exchange(fresh, made.key)
            await ada.RevokeApiKey(users_pb2.RevokeApiKeyRequest(name="users/ada/keys/old"))
            async with asyncio.timeout(60):
                async for event in events_of(fresh, "revocation", "*"):
                    assert event.type == "stellwerk.secrets.revocation.created.v1"
                    assert event.data["subject"] == "users/ada/keys/old"
                    break
            listed = (await service.ListRevocations(tokens_pb2.ListRevocationsRequest())).revocations
            assert [item.subject for item in listed] == ["users/ada/keys/old"]
            assert before.token
            assert listed[0].expire_time.seconds >= before.expire_time.seconds
            refused = ada.CreateApiKey(users_pb2.CreateApiKeyRequest(parent="users/me", key_id="old"))
            assert await reason_of(refused) == "ALREADY_EXISTS"


async def test_an_invitation_into_somebody_elses_account_leaves_a_trace(fresh: Secrets) -> None:
    async with fresh.run(), fresh.people() as owner, fresh.sessions() as sessions:
        await fresh.join("ada")
        again = await owner.EnableUser(users_pb2.EnableUserRequest(name="users/ada"))
        await sessions.AcceptInvitation(sessions_pb2.AcceptInvitationRequest(invitation=again.invitation))
        invited, keys = "", list[tuple[str, str]]()
        async with asyncio.timeout(60), fresh.bus() as bus:
            subject, stream = bus.names.subject("journal", "_", "secrets", ">"), bus.names.stream("JOURNAL")
            journal = await bus.jetstream.subscribe(subject, stream=stream, ordered_consumer=True)
            async for message in journal.messages:
                event = json.loads(message.data)
                if ".user.invited." in event["type"]:
                    invited = event["data"]["actor"]
                if event["subject"].startswith("users/ada/keys/"):
                    keys.append((event["data"]["actor"], event["data"]["address"]))
                if len(keys) == 2:
                    break
    assert invited == "users/owner"
    assert keys == [("users/ada", "127.0.0.1")] * 2


async def test_a_disabled_person_is_out_until_a_new_invitation(secrets: Secrets) -> None:
    key = await secrets.join(name := unique("mallory"))
    async with secrets.people() as owner, secrets.sessions() as sessions:
        await owner.DisableUser(users_pb2.DisableUserRequest(name=f"users/{name}"))
        assert await reason_of(exchange(secrets, key)) == "KEY_INVALID"
        enabled = await owner.EnableUser(users_pb2.EnableUserRequest(name=f"users/{name}"))
        assert await reason_of(exchange(secrets, key)) == "KEY_INVALID"
        later = await owner.EnableUser(users_pb2.EnableUserRequest(name=f"users/{name}"))
        first = sessions_pb2.AcceptInvitationRequest(invitation=enabled.invitation)
        assert await reason_of(sessions.AcceptInvitation(first)) == "INVITATION_INVALID"
        second = sessions_pb2.AcceptInvitationRequest(invitation=later.invitation)
        assert (await exchange(secrets, (await sessions.AcceptInvitation(second)).key)).token


async def test_somebody_is_always_left_to_administer(fresh: Secrets) -> None:
    async with fresh.run(), fresh.people() as owner:
        disable = users_pb2.DisableUserRequest(name="users/owner")
        assert await reason_of(owner.DisableUser(disable)) == "LAST_ADMINISTRATOR"
        demote = users_pb2.UpdateUserRequest(user=users_pb2.User(name="users/owner"))
        demote.update_mask.paths.append("administrator")
        assert await reason_of(owner.UpdateUser(demote)) == "LAST_ADMINISTRATOR"
        key = await fresh.join("ada", administrator=True)
        async with fresh.people(key) as ada:
            # Each ends the other at the same time: one of them stays.
            ends = await asyncio.gather(
                owner.DisableUser(users_pb2.DisableUserRequest(name="users/ada")),
                ada.DisableUser(disable),
                return_exceptions=True,
            )
        assert sum(isinstance(end, users_pb2.User) for end in ends) == 1


async def test_a_new_installed_key_lets_the_owner_in_again(fresh: Secrets) -> None:
    async with fresh.run():
        key = await fresh.join("ada", administrator=True)
        async with fresh.people(key) as ada:
            await ada.DisableUser(users_pb2.DisableUserRequest(name="users/owner"))
        assert await reason_of(exchange(fresh, fresh.owner_key)) == "KEY_INVALID"
    async with fresh.run():
        assert await reason_of(exchange(fresh, fresh.owner_key)) == "KEY_INVALID"
    fresh.owner_key = new_key()
    async with fresh.run(), fresh.people() as owner:
        me = await owner.GetUser(users_pb2.GetUserRequest(name="users/me"))
        assert (me.administrator, me.disabled) == (True, False)


async def test_a_change_of_administrator_ends_earlier_tokens(fresh: Secrets) -> None:
    async with fresh.run(), fresh.people() as owner, fresh.as_service() as service:
        key = await fresh.join("ada")
        before = await exchange(fresh, key)
        promote = users_pb2.UpdateUserRequest(user=users_pb2.User(name="users/ada", administrator=True))
        promote.update_mask.paths.append("administrator")
        promote.revision = 7
        assert await reason_of(owner.UpdateUser(promote)) == "REVISION_CHANGED"
        promote.revision = 1
        await owner.UpdateUser(promote)
        after = await exchange(fresh, key)
        assert after.token != before.token
        listed = (await service.ListRevocations(tokens_pb2.ListRevocationsRequest())).revocations
        assert [item.subject for item in listed] == ["users/ada"]
        ended = listed[0].before_time.ToMilliseconds() / 1_000
        issued = [
            jwt.decode(token.token, options={"verify_signature": False})["iat"] for token in (before, after)
        ]
        assert issued[0] <= ended < issued[1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"user_id": "me"}, "INVALID_NAME"),
        ({"user_id": "../owner"}, "INVALID_NAME"),
        ({"user_id": "A\0"}, "INVALID_NAME"),
        ({"user_id": "x" * 10_000}, "INVALID_NAME"),
        ({"user_id": "owner"}, "ALREADY_EXISTS"),
        ({"user_id": "zed", "email": "not an address"}, "INVALID_EMAIL"),
        ({"user_id": "zed", "email": "a@b\n"}, "INVALID_EMAIL"),
        ({"user_id": "zed", "display_name": "x" * 201}, "INVALID_DISPLAY_NAME"),
        ({"user_id": "zed", "display_name": "a\x1b[2J"}, "INVALID_DISPLAY_NAME"),
    ],
)
async def test_bad_people_are_refused(secrets: Secrets, fields: dict[str, str], reason: str) -> None:
    async with secrets.people() as owner:
        assert await reason_of(owner.CreateUser(users_pb2.CreateUserRequest(**fields))) == reason  # type: ignore[arg-type]


async def test_an_address_belongs_to_one_person_and_a_request_may_be_repeated(secrets: Secrets) -> None:
    name = unique("carol")
    async with secrets.people() as owner:
        request = users_pb2.CreateUserRequest(user_id=name, email=f"{name}@x.org", request_id=unique("r"))
        first, second = await owner.CreateUser(request), await owner.CreateUser(request)
        assert (first.user, bool(first.invitation), second.invitation) == (second.user, True, "")
        other = users_pb2.CreateUserRequest(user_id=unique("dave"), email=f"{name.upper()}@X.org")
        assert await reason_of(owner.CreateUser(other)) == "EMAIL_TAKEN"


async def test_the_tokens_of_a_run_end_with_it(fresh: Secrets) -> None:
    run = "workspaces/demo/runs/a"
    ended = Event(
        id=str(uuid.uuid4()),
        type="stellwerk.runs.run.completed.v1",
        resource=run,
        revision=7,
        actor="services/runs",
        reason={},
        data={"updateTime": datetime.now(UTC).isoformat().replace("+00:00", "Z")},
    )
    async with fresh.run(), fresh.as_service() as service, fresh.database() as database, fresh.bus() as bus:
        consumer = EndedWorkloads(bus, Revocations(database))
        for _ in range(2):
            await consumer.handle(ended)
        long_ago = {"updateTime": "2020-01-01T00:00:00Z"}
        await consumer.handle(Event("x", ended.type, "workspaces/demo/runs/b", 1, "", {}, long_ago))
        listed = (await service.ListRevocations(tokens_pb2.ListRevocationsRequest())).revocations
        assert [item.subject for item in listed] == [run]
        # By the way that it comes: from the journal.
        body = {
            "id": "other",
            "type": ended.type,
            "subject": "workspaces/demo/runs/c",
            "data": {"revision": 1, "actor": "", "reason": {}, "resource": dict(ended.data)},
        }
        subject = bus.names.subject("journal", "demo", "runs", "run", "completed")
        await bus.publish(subject, json.dumps(body).encode(), {})
        async with asyncio.timeout(60):
            async for event in events_of(fresh, "revocation", "created"):
                if event.data["subject"] == "workspaces/demo/runs/c":
                    break


async def test_neither_key_nor_digest_nor_invitation_is_in_the_journal(fresh: Secrets) -> None:
    async with fresh.run():
        key = await fresh.join("ada")
        async with fresh.people(key) as ada:
            second = (await ada.CreateApiKey(users_pb2.CreateApiKeyRequest(parent="users/me"))).key
        text = ""
        async with fresh.bus() as bus, asyncio.timeout(60):
            subscription = await bus.jetstream.subscribe(
                bus.names.subject("journal", "_", "secrets", ">"),
                stream=bus.names.stream("JOURNAL"),
                ordered_consumer=True,
            )
            async for message in subscription.messages:
                text += message.data.decode()
                if text.count('"stellwerk.secrets.api_key.created.v1"') == 3:
                    break
        async with fresh.database() as database:
            digests = [d["digest"] async for d in database.raw["keys"].find()]
        assert len(digests) == 3
        for secret in (key, second, fresh.owner_key, *digests):
            assert secret not in text
