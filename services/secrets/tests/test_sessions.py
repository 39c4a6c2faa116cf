"""Logins with a real OpenID provider."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import grpc
import jwt
import pytest

from services.secrets.tests.support import Secrets
from services.secrets.tests.test_people import exchange, reason_of
from stellwerk_launcher.testing import Servers
from stellwerk_platform.errors import from_rpc
from stellwerk_platform.settings import SettingsError
from stellwerk_protos.secrets.v1 import sessions_pb2, users_pb2
from stellwerk_secrets.config import SecretsSettings
from tests.oidc.provider import CLIENT, DEVICE_CLIENT, OpenIdProvider, device_id_token, new_key

MakeProvider = Callable[..., OpenIdProvider]


@pytest.fixture(scope="module")
async def provider(openid: MakeProvider) -> AsyncIterator[OpenIdProvider]:
    with openid("http://127.0.0.1:9/login/callback").run() as running:
        yield running


@pytest.fixture(scope="module")
async def secrets(servers: Servers, provider: OpenIdProvider) -> AsyncIterator[Secrets]:
    """A service that knows Ada by her address, and takes anybody of one domain."""
    settings = {**provider.settings, "oidc_create_users": "example.org, other.example"}
    service = Secrets(servers, settings=settings)
    async with service.run():
        await service.join("countess", email="Ada@Example.org")
        yield service
    async with service.database() as database:
        await database.client.drop_database(database.raw.name)


async def login(secrets: Secrets, token: str, nonce: str = "") -> sessions_pb2.Session:
    async with secrets.sessions() as sessions:
        request = sessions_pb2.ExchangeIdTokenRequest(id_token=token, nonce=nonce, display_name="test")
        return await sessions.ExchangeIdToken(request)


async def outcome(secrets: Secrets, token: str) -> str:
    """Who has signed in, or the reason why nobody has."""
    try:
        return (await login(secrets, token)).user.name
    except grpc.aio.AioRpcError as error:
        return from_rpc(error).reason


async def test_who_signs_in_gets_a_key_that_ends(secrets: Secrets, provider: OpenIdProvider) -> None:
    async with secrets.sessions() as sessions:
        options = await sessions.GetLoginOptions(sessions_pb2.GetLoginOptionsRequest())
    assert (options.oidc_issuer, options.oidc_device_client_id) == (provider.issuer, DEVICE_CLIENT)
    token = await device_id_token(provider, "ada")
    session = await login(secrets, token)
    assert (session.user.name, session.user.oidc_subject) == ("users/countess", "ada")
    left = session.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(days=6) < left <= timedelta(days=7)
    assert (await exchange(secrets, session.key)).token
    assert await reason_of(login(secrets, token)) == "ID_TOKEN_USED"
    # From now on it is the account that counts: another address makes nobody else of her.
    async with secrets.people(session.key) as ada:
        me = await ada.GetUser(users_pb2.GetUserRequest(name="users/me"))
    assert me.name == "users/countess"
    again = await login(secrets, provider.forged(email="somebody@else.example", jti="2"))
    assert again.user.name == "users/countess"
    # Nor does another account with her address become her.
    other = provider.forged(sub="other", email="ada@example.org")
    assert await reason_of(login(secrets, other)) == "LOGIN_NOT_ALLOWED"


async def test_only_known_addresses_and_domains_come_in(secrets: Secrets, provider: OpenIdProvider) -> None:
    session = await login(secrets, await device_id_token(provider, "new"))
    assert (session.user.name, session.user.email) == ("users/new-person", "new.person@example.org")
    assert not session.user.administrator
    stranger = await device_id_token(provider, "stranger")
    assert await reason_of(login(secrets, stranger)) == "LOGIN_NOT_ALLOWED"
    async with secrets.people() as owner:
        request = users_pb2.UpdateUserRequest(
            user=users_pb2.User(name="users/owner", email="owner@example.org")
        )
        request.update_mask.paths.append("email")
        await owner.UpdateUser(request)
        unproven = await device_id_token(provider, "unproven")
        assert await reason_of(login(secrets, unproven)) == "LOGIN_NOT_ALLOWED"
        await owner.DisableUser(users_pb2.DisableUserRequest(name="users/new-person"))
    # With an id of its own: the provider makes the same token twice in a second.
    token = provider.forged(sub="new", jti=uuid.uuid4().hex)
    assert await reason_of(login(secrets, token)) == "LOGIN_NOT_ALLOWED"


async def test_names_that_are_taken_or_reserved_are_not_given_again(
    secrets: Secrets, provider: OpenIdProvider
) -> None:
    for address, name in (("owner@other.example", "users/owner-2"), ("me@other.example", "users/me-2")):
        token = provider.forged(sub=uuid.uuid4().hex, email=address, email_verified=True)
        assert (await login(secrets, token)).user.name == name


async def test_forged_tokens_are_refused(secrets: Secrets, provider: OpenIdProvider) -> None:
    now, own = int(time.time()), {"sub": uuid.uuid4().hex, "email": "x@example.org"}
    usual = {"iss": provider.issuer, "aud": CLIENT, "iat": now, "exp": now + 60, **own}
    kid = {"kid": provider.keys[0]["kid"]}
    stranger = jwt.PyJWK(new_key())
    bad = {
        "expired": provider.forged(**own, exp=now - 60, iat=now - 120),
        "no end": provider.forged(**own, exp=None),
        "too old": provider.forged(**own, iat=now - 3_600),
        "another audience": provider.forged(**own, aud="somebody"),
        "several audiences": provider.forged(**own, aud=[CLIENT, "somebody"], azp="somebody"),
        "another issuer": provider.forged(**own, iss="https://accounts.example.org"),
        "another nonce": provider.forged(**own, nonce="of another login"),
        "no algorithm": jwt.encode(usual, "", "none", kid),
        "another key": jwt.encode(usual, stranger, "RS256", kid),
        "unknown key": jwt.encode(usual, stranger, "RS256", {"kid": "?"}),
        "a shared secret": jwt.encode(usual, "x" * 32, "HS256", kid),
        "rubbish": "a.b.c",
        "empty": "",
        "huge": "x" * 100_000,
    }
    for what, token in bad.items():
        assert await reason_of(login(secrets, token)) == "ID_TOKEN_INVALID", what
    good = provider.forged(**own, aud=CLIENT, nonce="n")
    assert await reason_of(login(secrets, good)) == "ID_TOKEN_INVALID"
    assert (await login(secrets, good, "n")).key


async def test_keys_of_the_provider_may_change(openid: MakeProvider, fresh: Secrets) -> None:
    provider = openid("http://127.0.0.1:9/login/callback")
    fresh.settings = {**provider.settings, "oidc_create_users": "example.org"}
    async with fresh.run():
        # Before it was ever reached: a clear answer, and keys work.
        assert await reason_of(login(fresh, provider.forged())) == "OIDC_UNAVAILABLE"
        assert (await exchange(fresh, fresh.owner_key)).token
        with provider.run():
            assert (await login(fresh, await device_id_token(provider, "bob"))).key
        provider.keys = [new_key(), *provider.keys]
        with provider.run():
            # A key that is new is asked for at once, but not twice in a second.
            async with asyncio.timeout(20):
                while await outcome(fresh, await device_id_token(provider, "bob")) == "ID_TOKEN_INVALID":
                    pass
            assert await outcome(fresh, provider.forged(sub="bob", jti="new")) == "users/bob"
        # Its keys are known: tokens are verified while it is away.
        assert (await login(fresh, provider.forged(sub="bob", jti="later"))).key


async def test_without_a_provider_the_cure_is_named(fresh: Secrets) -> None:
    async with fresh.run():
        assert await reason_of(login(fresh, "x")) == "OIDC_NOT_CONFIGURED"


@pytest.mark.parametrize("issuer", ["http://accounts.example.org", "ftp://127.0.0.2/"])
def test_an_issuer_that_anybody_could_play_is_refused(issuer: str) -> None:
    with pytest.raises(SettingsError, match="STELLWERK_OIDC_ISSUER"):
        SecretsSettings(
            mongodb_uri="",
            nats_url="",
            vault_url="",
            vault_role_id="",
            vault_secret_id="",
            registry_address="",
            owner_key_sha256="",
            oidc_issuer=issuer,
            oidc_client_id="x",
        )
