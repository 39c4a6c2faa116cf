"""The child of `test_journal`: brings two workspaces to description "5" and publishes it all."""

import asyncio
import contextlib
import os

from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import AlreadyExists
from stellwerk_platform.journal import Fact, Relay
from stellwerk_platform.mongo import Collection, Database
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace


def advance(workspace: Workspace) -> Fact | None:
    """One step towards "5"."""
    step = int(workspace.description or 0)
    if step == 5:
        return None
    workspace.description = str(step + 1)
    return Fact("updated", "TEST")


async def main() -> None:
    namespace = os.environ["TEST_NAMESPACE"]
    database = Database(os.environ["TEST_MONGODB_URI"], namespace, "registry")
    await database.open()
    workspaces = Collection(database, "workspaces", Workspace)
    async with Bus.connect(os.environ["TEST_NATS_URL"], namespace, "writer") as bus:
        relay = Relay(database, bus)
        for name in ("workspaces/a1", "workspaces/b2"):
            with contextlib.suppress(AlreadyExists):
                await workspaces.create(Workspace(name=name), Fact("created", "REQUESTED"))
        for _ in range(5):
            for name in ("workspaces/a1", "workspaces/b2"):
                await workspaces.update(name, advance)
            await relay.publish_batch()
        while await relay.publish_batch():
            pass


if __name__ == "__main__":
    asyncio.run(main())
