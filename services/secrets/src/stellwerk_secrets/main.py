"""Composition root of `secrets`."""

from stellwerk_platform.app import App, run
from stellwerk_platform.auth import TokenVerifier
from stellwerk_platform.grpc_server import Registration
from stellwerk_platform.mongo import Database
from stellwerk_platform.vault import Vault
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc
from stellwerk_secrets import domain
from stellwerk_secrets.config import SecretsSettings
from stellwerk_secrets.issuer import Issuer, SigningKeys
from stellwerk_secrets.logins import Logins
from stellwerk_secrets.named.compose import compose as compose_named
from stellwerk_secrets.service import Exchange, TokenService
from stellwerk_secrets.store import ApiKeys


async def compose(app: App, settings: SecretsSettings) -> None:
    """Wires the parts; raises `PlatformError` when MongoDB, Vault or the signing key is not there."""
    vault = Vault(settings.vault_url, settings.vault_role_id, settings.vault_secret_id)
    keys = SigningKeys(vault)
    await keys.versions()
    database = Database(settings.mongodb_uri, settings.namespace, app.name)
    app.close(database.close)
    await database.open()
    api_keys = ApiKeys(database)
    await api_keys.open()
    await api_keys.install(domain.OWNER, settings.owner_key_sha256)
    await api_keys.install(domain.TELEMETRY_WRITER, settings.otlp_key_sha256)
    issuer = Issuer(vault, keys)
    exchange = Exchange(api_keys, issuer, keys)
    named, named_registration = await compose_named(database, vault)
    registration = Registration(
        TokenService(exchange, Logins(vault), issuer, named),
        tokens_pb2_grpc.add_TokenServiceServicer_to_server,
        tokens_pb2.DESCRIPTOR.services_by_name["TokenService"],
    )
    await app.serve(settings.listen, TokenVerifier(exchange).verify, [registration, named_registration])


if __name__ == "__main__":
    run("secrets", SecretsSettings, compose)
