"""What `secrets` keeps of a workspace: named secrets in all versions, and subscriptions."""

from stellwerk_platform.mongo import Database
from stellwerk_platform.names import id_of
from stellwerk_platform.workspace_data import Found, Rules, WorkspaceData
from stellwerk_secrets.named.values import Values

_LABELS = {"named_secrets": "secrets", "subscriptions": "subscriptions"}


def workspace_data(database: Database, values: Values) -> WorkspaceData:
    """Values go before the documents that name them."""

    async def remove(workspace: str) -> Found:
        for secret in await values.names(workspace):
            await values.purge(f"{workspace}/secrets/{id_of(secret)}")
        return {}, 0

    return WorkspaceData(database, Rules(labels=_LABELS, remove=remove))
