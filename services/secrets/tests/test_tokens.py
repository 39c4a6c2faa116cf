"""Keys and credentials in, tokens out, on real servers."""

import asyncio
import base64
import json
import logging
import time
import uuid
from collections.abc import Awaitable

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.secrets.tests.support import Secrets, new_key
from stellwerk_platform.access import allows
from stellwerk_platform.auth import TokenVerifier
from stellwerk_platform.errors import FailedPrecondition, Unauthenticated, from_rpc
from stellwerk_platform.vault import Vault
from stellwerk_protos.secrets.v1 import tokens_pb2
from stellwerk_secrets import limits
from stellwerk_secrets.domain import Identity, key_id, signing_input
from stellwerk_secrets.issuer import KEY, SigningKeys


async def reason_of(call: "Awaitable[object]") -> str:
    """The reason code with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc(raised.value).reason


async def exchange(secrets: Secrets, key: str) -> tokens_pb2.Token:
    async with secrets.stub() as stub:
        return await stub.ExchangeApiKey(tokens_pb2.ExchangeApiKeyRequest(api_key=key))


async def test_the_owner_key_opens_everywhere(secrets: Secrets) -> None:
    async with secrets.stub(secrets.owner_key) as stub:
        caller = await stub.GetCaller(tokens_pb2.GetCallerRequest())
    assert (caller.subject, caller.role) == ("users/owner", "User")
    async with secrets.channel() as channel:
        verified = await TokenVerifier(channel).verify(secrets.owner_key)
    assert (verified.subject, verified.role) == ("users/owner", "User")
    # A key that is revoked must not live on in caches for longer.
    assert verified.expire_time <= time.time() + 61


async def test_a_token_says_what_the_contract_says(secrets: Secrets) -> None:
    token = await exchange(secrets, secrets.otlp_key)
    header = jwt.get_unverified_header(token.token)
    assert (header["alg"], header["typ"]) == ("EdDSA", "JWT")
    assert header["kid"].startswith("stellwerk-tokens:")
    claims = jwt.decode(token.token, options={"verify_signature": False})
    assert claims["iss"] == claims["aud"] == "stellwerk"
    assert (claims["sub"], claims["role"]) == ("services/telemetry-writer", "TelemetryWriter")
    assert 15 * 60 - 1 < claims["exp"] - claims["iat"] <= 15 * 60
    assert claims["exp"] == token.expire_time.seconds
    assert claims["jti"]


async def test_a_burst_of_one_identity_shares_a_token(secrets: Secrets) -> None:
    tokens = await asyncio.gather(*(exchange(secrets, secrets.owner_key) for _ in range(20)))
    assert len({token.token for token in tokens}) == 1


@pytest.mark.parametrize("key", ["", "swk_", "swk_" + "x" * 43, "not-a-key", "swk_" + "x" * 100_000])
async def test_a_wrong_key_is_refused(secrets: Secrets, key: str) -> None:
    async with secrets.stub() as stub:
        request = tokens_pb2.ExchangeApiKeyRequest(api_key=key)
        assert await reason_of(stub.ExchangeApiKey(request)) == "KEY_INVALID"


async def test_nothing_is_open_without_a_key(secrets: Secrets) -> None:
    async with secrets.stub() as stub:
        assert await reason_of(stub.GetCaller(tokens_pb2.GetCallerRequest())) == "KEY_MISSING"
        request = tokens_pb2.IssueWorkloadTokenRequest(owner="workspaces/demo/runs/a")
        assert await reason_of(stub.IssueWorkloadToken(request)) == "KEY_MISSING"


async def test_a_new_owner_key_replaces_the_old_one(fresh: Secrets) -> None:
    old = fresh.owner_key
    async with fresh.run():
        await exchange(fresh, old)
    fresh.owner_key = new_key()
    async with fresh.run():
        assert (await exchange(fresh, fresh.owner_key)).token
        assert (await exchange(fresh, fresh.otlp_key)).token
        async with fresh.stub() as stub:
            request = tokens_pb2.ExchangeApiKeyRequest(api_key=old)
            assert await reason_of(stub.ExchangeApiKey(request)) == "KEY_INVALID"


def signed(key: Ed25519PrivateKey, kid: str, identity: Identity, expire_time: int) -> str:
    payload = signing_input(kid, identity, "1", expire_time - 60, expire_time)
    return f"{payload.decode()}.{base64.urlsafe_b64encode(key.sign(payload)).decode().rstrip('=')}"


async def test_forged_and_foreign_tokens_are_refused(secrets: Secrets) -> None:
    vault = secrets.vault()
    version = max(await vault.public_keys(KEY))
    kid, owner, later = key_id(KEY, version), Identity("users/owner", "User"), int(time.time()) + 600
    genuine = signing_input(kid, owner, "1", later - 700, later)

    async def by_vault(payload: bytes) -> str:
        return f"{payload.decode()}.{await vault.sign(KEY, version, payload)}"

    def part(content: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=")

    header, claims = genuine.split(b".")
    other = {"iss": "stellwerk", "aud": "elsewhere", "sub": "users/owner", "role": "User", "exp": later}
    public = (await vault.public_keys(KEY))[version]
    bad = {
        "signed by another key": signed(Ed25519PrivateKey.generate(), kid, owner, later),
        "unknown key id": signed(Ed25519PrivateKey.generate(), f"{KEY}:999", owner, later),
        "no algorithm": (part({"alg": "none", "typ": "JWT", "kid": kid}) + b"." + claims + b".").decode(),
        "the public key as an HMAC secret": jwt.encode(
            {"iss": "stellwerk", "aud": "stellwerk", "sub": "users/owner", "exp": later},
            public,
            "HS256",
            {"kid": kid},
        ),
        "another audience": await by_vault(header + b"." + part(other)),
        "another issuer": await by_vault(header + b"." + part({**other, "aud": "stellwerk", "iss": "x"})),
        "no end": await by_vault(header + b"." + part({"iss": "stellwerk", "aud": "stellwerk", "sub": "x"})),
        "changed after signing": (await by_vault(genuine)).replace(
            claims.decode(), part({**other, "aud": "stellwerk"}).decode()
        ),
        "rubbish": "a.b.c",
        "empty": "",
    }
    async with secrets.channel() as channel:
        verifier = TokenVerifier(channel)
        assert (await verifier.verify(await by_vault(genuine))).role == "User"
        for what, token in bad.items():
            with pytest.raises(Unauthenticated) as raised:
                await verifier.verify(token)
            assert raised.value.reason == "KEY_INVALID", what
        with pytest.raises(Unauthenticated) as raised:
            await verifier.verify(await by_vault(signing_input(kid, owner, "1", 1, int(time.time()) - 1)))
        assert raised.value.reason == "TOKEN_EXPIRED"


async def test_a_rotated_key_breaks_nobody_at_work(fresh: Secrets) -> None:
    """Tokens of one replica, verified with the keys that another one publishes, under load."""
    other = Secrets(fresh.servers, fresh.owner_key, fresh.otlp_key, fresh.namespace)
    seen: set[str] = set()
    async with fresh.run(), other.run(), other.channel() as channel, fresh.stub(fresh.owner_key) as owner:
        verifier = TokenVerifier(channel)
        before = (await exchange(fresh, fresh.owner_key)).token
        ended = asyncio.Event()

        async def work() -> None:
            while not ended.is_set():
                token = (await exchange(fresh, fresh.owner_key)).token
                assert (await verifier.verify(token)).role == "User"
                seen.add(jwt.get_unverified_header(token)["kid"])

        async with asyncio.timeout(120), asyncio.TaskGroup() as workers:
            for _ in range(4):
                workers.create_task(work())
            for _ in range(2):
                newest = (await owner.RotateSigningKey(tokens_pb2.RotateSigningKeyRequest())).key_id
            published = await owner.ListSigningKeys(tokens_pb2.ListSigningKeysRequest())
            assert newest in {key.key_id for key in published.keys}
            while newest not in seen:
                await exchange(fresh, fresh.otlp_key)
            ended.set()
        assert (await TokenVerifier(channel).verify(before)).subject == "users/owner"


async def test_only_an_administrator_rotates_the_key(secrets: Secrets) -> None:
    key = await secrets.join(f"p{uuid.uuid4().hex[:8]}")
    async with secrets.stub(key) as stub:
        request = tokens_pb2.RotateSigningKeyRequest()
        assert await reason_of(stub.RotateSigningKey(request)) == "PERMISSION_DENIED"


async def test_guesses_are_bounded_and_lock_nobody_out(secrets: Secrets) -> None:
    await exchange(secrets, secrets.owner_key)

    async def guess() -> str:
        async with secrets.stub() as stub:
            request = tokens_pb2.ExchangeApiKeyRequest(api_key=new_key())
            return await reason_of(stub.ExchangeApiKey(request))

    guesses = [asyncio.create_task(guess()) for _ in range(600)]
    # Whoever has been in before comes in meanwhile, and a new key as soon as there is room.
    await asyncio.gather(*(exchange(secrets, secrets.owner_key) for _ in range(20)))
    assert set(await asyncio.gather(*guesses)) <= {"KEY_INVALID", "SECRETS_BUSY"}
    key = await secrets.join(f"p{uuid.uuid4().hex[:8]}")
    assert (await exchange(secrets, key)).token


async def test_a_service_logs_in_with_its_approle(secrets: Secrets) -> None:
    async with secrets.as_service() as stub:
        caller = await stub.GetCaller(tokens_pb2.GetCallerRequest())
    assert (caller.subject, caller.role) == ("services/secrets", "Service")


async def test_wrong_credentials_lock_nobody_out(secrets: Secrets) -> None:
    servers = secrets.servers
    async with secrets.stub() as stub:
        for _ in range(8):
            wrong = tokens_pb2.LoginServiceRequest(role_id=servers.vault_role_id, secret_id="wrong")
            assert await reason_of(stub.LoginService(wrong)) == "APPROLE_INVALID"
        await Vault(servers.vault_url, servers.vault_role_id, servers.vault_secret_id).public_keys(KEY)


async def test_a_workload_token_is_for_one_run(secrets: Secrets) -> None:
    run = "workspaces/demo/runs/a-1"
    async with secrets.as_service() as stub:
        token = await stub.IssueWorkloadToken(tokens_pb2.IssueWorkloadTokenRequest(owner=run))
    assert token.expire_time.seconds - time.time() > 23 * 3600
    async with secrets.channel() as channel:
        caller = await TokenVerifier(channel).verify(token.token)
    assert (caller.subject, caller.role) == (run, "Workload")
    assert allows(caller, "run.append", run)
    assert allows(caller, "model.read", "workspaces/demo/models/m")
    for permission, resource in (
        ("run.append", "workspaces/demo/runs/a-2"),
        ("run.read", "workspaces/other/runs/a-1"),
        ("run.write", run),
        ("internal", run),
    ):
        assert not allows(caller, permission, resource)


async def test_only_services_issue_workload_tokens(secrets: Secrets) -> None:
    request = tokens_pb2.IssueWorkloadTokenRequest(owner="workspaces/demo/runs/a")
    async with secrets.stub(secrets.owner_key) as stub:
        assert await reason_of(stub.IssueWorkloadToken(request)) == "PERMISSION_DENIED"
    vault = secrets.vault()
    version = max(await vault.public_keys(KEY))
    now = int(time.time())
    payload = signing_input(key_id(KEY, version), Identity("nodes/local", "Node"), "1", now, now + 60)
    async with secrets.stub(f"{payload.decode()}.{await vault.sign(KEY, version, payload)}") as stub:
        assert await reason_of(stub.IssueWorkloadToken(request)) == "PERMISSION_DENIED"


async def test_a_vault_without_the_key_is_explained(secrets: Secrets) -> None:
    # The AppRole of the telemetry service may log in, but not use the key.
    vault = Vault(secrets.servers.vault_url, "telemetry", secrets.servers.secret_id("telemetry"))
    with pytest.raises(FailedPrecondition) as raised:
        await SigningKeys(vault).signing_version()
    assert raised.value.reason == "SIGNING_KEY_MISSING"
    assert "transit/keys/stellwerk-tokens" in raised.value.cure


async def test_no_secret_is_written_down(fresh: Secrets, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with fresh.run():
        tokens = [(await exchange(fresh, key)).token for key in (fresh.owner_key, fresh.otlp_key)]
        async with fresh.as_service() as stub:
            tokens.append(
                (
                    await stub.IssueWorkloadToken(
                        tokens_pb2.IssueWorkloadTokenRequest(owner="workspaces/demo/runs/a")
                    )
                ).token
            )
        async with fresh.database() as database:
            stored = [
                str(document)
                for name in await database.raw.list_collection_names()
                async for document in database.raw[name].find()
            ]
    text = caplog.text + "".join(stored)
    for secret in (fresh.owner_key, fresh.otlp_key, fresh.servers.vault_secret_id, *tokens):
        assert secret not in text


async def test_a_restart_of_vault_is_waited_for(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a machine that has much to do a restart takes longer.
    monkeypatch.setattr(limits, "_PATIENCE_SECONDS", 60.0)
    servers = secrets.servers
    pid = servers.process.kill("openbao")
    async with secrets.as_service() as stub, secrets.stub() as anonymous:
        request = tokens_pb2.IssueWorkloadTokenRequest(owner="workspaces/demo/runs/a")
        await asyncio.gather(
            stub.IssueWorkloadToken(request),
            anonymous.ListSigningKeys(tokens_pb2.ListSigningKeysRequest()),
            exchange(secrets, secrets.owner_key),
        )
    await asyncio.to_thread(servers.process.wait_until_back, "openbao", pid)
