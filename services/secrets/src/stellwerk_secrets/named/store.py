"""What is known of secrets, less their values, in MongoDB."""

from stellwerk_platform.errors import AlreadyExists
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Collection, Database, Transaction, stamp
from stellwerk_protos.secrets.v1.secrets_pb2 import Secret
from stellwerk_secrets.named import domain


class SecretStore(Collection[Secret]):
    """The collection `named_secrets`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "named_secrets", Secret)

    async def known(self, name: str, version: int, actor: str) -> Secret:
        """Records that Vault has this version, also of a secret that is not known yet."""
        if await self.find(name) is None:
            secret = Secret(name=name, creator=actor, version=version)
            try:
                return await self.create(secret, Fact("created", "REQUESTED", f"{actor} set it."))
            except AlreadyExists:
                pass  # another call was faster
        return await self.update(name, lambda secret: domain.set_version(secret, version, actor))

    async def remove(self, name: str, actor: str) -> None:
        """Removes a document with a last journal entry; a missing one is no error."""

        async def work(tx: Transaction) -> None:
            secret = await self.find(name, tx.session)
            if secret is None:
                return
            await self.raw.delete_one({"_id": name}, session=tx.session)
            stamp(secret)
            tx.record(secret, Fact("purged", "REQUESTED", f"{actor} removed all versions.", actor=actor))

        await self.database.commit(work)
