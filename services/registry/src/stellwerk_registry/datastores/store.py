"""Datastores in MongoDB."""

from collections.abc import Awaitable, Callable

from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction, stamp
from stellwerk_protos.registry.v1.datastores_pb2 import Datastore

LiesIn = Callable[[str, str], Awaitable[bool]]


class DatastoreStore(Collection[Datastore]):
    """The datastores of all workspaces."""

    def __init__(self, database: Database) -> None:
        super().__init__(
            database, "datastores", Datastore, extra=lambda d: {"workspace": names.workspace_of(d.name)}
        )

    async def delete(self, name: str, lies_in: LiesIn) -> None:
        """Removes a datastore; raises `FailedPrecondition` for the default, and while blobs lie there.

        Its workspace is written too, so that nobody makes it the default in the same moment.
        """
        workspace = names.workspace_of(name)

        async def work(tx: Transaction) -> None:
            datastore = await self.get(name, tx.session)
            lock = {"$inc": {"datastore_lock": 1}}
            held = await self.database.raw["workspaces"].find_one_and_update(
                {"_id": f"workspaces/{workspace}"}, lock, session=tx.session
            )
            if held is not None and held.get("default_datastore") == name:
                raise FailedPrecondition(
                    "DATASTORE_IS_DEFAULT",
                    f"{name} is where {workspace} puts new content.",
                    "Choose another first: `stellwerk workspace update --default-datastore NAME`.",
                )
            if await lies_in(workspace, names.id_of(name)):
                raise FailedPrecondition(
                    "DATASTORE_IN_USE",
                    f"Content of {workspace} lies in {name}.",
                    "Remove the runs, datasets and models that use it first.",
                )
            await self.raw.delete_one({"_id": name}, session=tx.session)
            stamp(datastore)
            tx.record(datastore, Fact("deleted", "REQUESTED"))

        await self.database.commit(work)
