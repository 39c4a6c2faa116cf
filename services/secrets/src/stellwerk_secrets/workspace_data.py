"""What `secrets` keeps of a workspace: named secrets in all versions, and subscriptions to its events."""

from stellwerk_platform.mongo import Database
from stellwerk_platform.workspace_data import Found, Rules, WorkspaceData
from stellwerk_secrets.named.values import Values
from stellwerk_secrets.subscriptions.store import Subscriptions

_LABELS = {"named_secrets": "secrets"}


def workspace_data(database: Database, values: Values) -> WorkspaceData:
    """Values go before the documents that name them."""
    subscriptions = Subscriptions(database)

    async def count(workspace: str) -> Found:
        return {"subscriptions": await subscriptions.count(workspace)}, 0

    async def remove(workspace: str) -> Found:
        for secret in await values.names(workspace):
            await values.purge(f"{workspace}/secrets/{secret}")
        return {"subscriptions": await subscriptions.leave(workspace)}, 0

    return WorkspaceData(database, Rules(labels=_LABELS, count=count, remove=remove))
