"""Wires the named secrets."""

from stellwerk_platform.grpc_server import Registration
from stellwerk_platform.mongo import Database
from stellwerk_platform.vault import Vault
from stellwerk_protos.secrets.v1 import secrets_pb2, secrets_pb2_grpc
from stellwerk_secrets.named.service import SecretService
from stellwerk_secrets.named.store import SecretStore
from stellwerk_secrets.named.values import Values
from stellwerk_secrets.workspace_data import workspace_data


async def compose(database: Database, vault: Vault) -> tuple[SecretService, list[Registration]]:
    """The servicer, and how it and what belongs to it are registered."""
    store = SecretStore(database)
    await store.open()
    values = Values(vault, database.namespace)
    service = SecretService(store, values)
    registration = Registration(
        service,
        secrets_pb2_grpc.add_SecretServiceServicer_to_server,
        secrets_pb2.DESCRIPTOR.services_by_name["SecretService"],
    )
    return service, [registration, workspace_data(database, values).registration()]
