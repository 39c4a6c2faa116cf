"""Composition root of `secrets`: one function for each part."""

from dataclasses import dataclass

from stellwerk_platform.access import Guard
from stellwerk_platform.app import App, open_guard, open_journal, run
from stellwerk_platform.bus import Bus
from stellwerk_platform.grpc_server import Registration
from stellwerk_platform.memberships import Registry
from stellwerk_platform.mongo import Database
from stellwerk_platform.revocations import Revocations as Ended
from stellwerk_platform.vault import Vault
from stellwerk_protos.secrets.v1 import (
    sessions_pb2,
    sessions_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from stellwerk_secrets import domain
from stellwerk_secrets.admission import Admission
from stellwerk_secrets.config import SecretsSettings
from stellwerk_secrets.issuer import Issuer, OwnCredentials, SigningKeys
from stellwerk_secrets.logins import Logins
from stellwerk_secrets.named.compose import compose as compose_named
from stellwerk_secrets.named.service import SecretService
from stellwerk_secrets.people.store import People
from stellwerk_secrets.people.users import UserService
from stellwerk_secrets.people.uses import Uses
from stellwerk_secrets.revocations.events import EndedWorkloads
from stellwerk_secrets.revocations.store import Revocations
from stellwerk_secrets.service import Exchange, TokenService
from stellwerk_secrets.sessions.accounts import Accounts
from stellwerk_secrets.sessions.oidc import IdTokens
from stellwerk_secrets.sessions.service import SessionService
from stellwerk_secrets.sessions.store import UsedTokens
from stellwerk_secrets.store import ServiceKeys
from stellwerk_secrets.subscriptions import compose as subscriptions


@dataclass(frozen=True)
class Base:
    """What every part stands on."""

    app: App
    settings: SecretsSettings
    vault: Vault
    keys: SigningKeys
    issuer: Issuer
    database: Database
    bus: Bus


async def open_base(app: App, settings: SecretsSettings) -> Base:
    """Raises `PlatformError` when MongoDB, NATS, Vault or the signing key is not there."""
    vault = Vault(settings.vault_url, settings.vault_role_id, settings.vault_secret_id)
    keys = SigningKeys(vault)
    await keys.signing_version()
    database, bus = await open_journal(app, settings)
    app.diagnosis.add(
        "vault",
        "sign with the key of the tokens and verify the signature",
        keys.probe,
        "See that the Vault server runs and is unsealed (`stellwerk logs openbao`), and that the AppRole of "
        "secrets may use the transit key.",
    )
    return Base(app, settings, vault, keys, Issuer(vault, keys), database, bus)


async def compose_revocations(base: Base) -> Revocations:
    """What ended before its time."""
    revocations = Revocations(base.database)
    await revocations.open()
    base.app.background(EndedWorkloads(base.bus, revocations).run())
    return revocations


async def compose_people(base: Base, revocations: Revocations) -> tuple[People, Uses]:
    """People and their keys."""
    people, uses = People(base.database, revocations), Uses(base.database)
    await people.open()
    await uses.open()
    await people.install_owner(base.settings.owner_key_sha256)
    base.app.background(uses.run())
    return people, uses


async def compose_tokens(
    base: Base, people: People, uses: Uses, revocations: Revocations, named: SecretService
) -> tuple[Exchange, Registration]:
    """Keys and credentials in, tokens out."""
    service_keys = ServiceKeys(base.database)
    await service_keys.open()
    await service_keys.install(domain.TELEMETRY_WRITER, base.settings.otlp_key_sha256)
    exchange = Exchange(Admission(people, service_keys, uses), base.issuer, base.keys)
    return exchange, Registration(
        TokenService(exchange, Logins(base.vault), base.issuer, revocations, named),
        tokens_pb2_grpc.add_TokenServiceServicer_to_server,
        tokens_pb2.DESCRIPTOR.services_by_name["TokenService"],
    )


def compose_users(people: People, uses: Uses) -> Registration:
    """People and keys for callers."""
    return Registration(
        UserService(people, uses),
        users_pb2_grpc.add_UserServiceServicer_to_server,
        users_pb2.DESCRIPTOR.services_by_name["UserService"],
    )


async def compose_sessions(base: Base, people: People) -> Registration:
    """Logins."""
    settings = base.settings
    used = UsedTokens(base.database)
    await used.open()
    options = sessions_pb2.LoginOptions()
    tokens = None
    if settings.oidc_issuer:
        clients = (settings.oidc_client_id, settings.oidc_device_client_id)
        tokens = IdTokens(settings.oidc_issuer, clients)
        options = sessions_pb2.LoginOptions(
            oidc_issuer=settings.oidc_issuer,
            oidc_client_id=settings.oidc_client_id,
            oidc_device_client_id=settings.oidc_device_client_id,
            oidc_scopes=settings.oidc_scopes.split(),
        )
    domains = frozenset(settings.oidc_create_users.lower().replace(",", " ").split())
    return Registration(
        SessionService(people, options, tokens, Accounts(people, domains), used, settings.session_seconds),
        sessions_pb2_grpc.add_SessionServiceServicer_to_server,
        sessions_pb2.DESCRIPTOR.services_by_name["SessionService"],
    )


async def compose_guard(base: Base, exchange: Exchange, ended: Revocations) -> Guard:
    """Who may do what here; `registry` knows the members of workspaces."""
    registry = base.app.connect("registry", base.settings.registry_address, OwnCredentials(base.issuer))
    return await open_guard(base.app, base.bus, exchange, Ended(ended.living), Registry(registry))


async def compose_subscriptions(base: Base, people: People) -> Registration:
    """Event subscribers; `registry` knows what they may read."""
    registry = base.app.connect("registry", base.settings.registry_address, OwnCredentials(base.issuer))
    return await subscriptions.compose(base.app, base.settings, base.database, base.bus, people, registry)


async def compose(app: App, settings: SecretsSettings) -> None:
    """Wires the parts."""
    base = await open_base(app, settings)
    revocations = await compose_revocations(base)
    people, uses = await compose_people(base, revocations)
    named, named_registrations = await compose_named(base.database, base.vault)
    exchange, tokens = await compose_tokens(base, people, uses, revocations, named)
    registrations = [
        tokens,
        compose_users(people, uses),
        await compose_sessions(base, people),
        *named_registrations,
        await compose_subscriptions(base, people),
    ]
    await app.serve(settings.listen, await compose_guard(base, exchange, revocations), registrations)


if __name__ == "__main__":
    run("secrets", SecretsSettings, compose)
