"""Wires the named secrets."""

from stellwerk_platform.grpc_server import Registration
from stellwerk_platform.mongo import Database
from stellwerk_platform.vault import Vault
from stellwerk_protos.secrets.v1 import secrets_pb2, secrets_pb2_grpc
from stellwerk_secrets.named.service import SecretService
from stellwerk_secrets.named.store import SecretStore
from stellwerk_secrets.named.values import Values


async def compose(database: Database, vault: Vault) -> tuple[SecretService, Registration]:
    """The servicer and how it is registered."""
    store = SecretStore(database)
    await store.open()
    service = SecretService(store, Values(vault, database.namespace))
    registration = Registration(
        service,
        secrets_pb2_grpc.add_SecretServiceServicer_to_server,
        secrets_pb2.DESCRIPTOR.services_by_name["SecretService"],
    )
    return service, registration
