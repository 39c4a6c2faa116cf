"""The service in this process, on real servers, in a namespace of its own, once a session."""

from collections.abc import AsyncIterator

import pytest

from services.inference.tests.support import Inference, Journal, Others, Scorer
from services.secrets.tests.support import Secrets
from stellwerk_launcher.testing import Servers
from stellwerk_platform.bus import Bus
from stellwerk_platform.mongo import Database


@pytest.fixture(scope="session")
async def unstarted(servers: Servers) -> AsyncIterator[Inference]:
    """What `inference` needs, so that a test may start it itself."""
    secrets = Secrets(servers)
    others = Others()
    await others.server.start()
    async with secrets.run(), Bus.connect(servers.nats_url, secrets.namespace, "test") as bus:
        yield Inference(secrets, bus, others)
        for stream in ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY"):
            await bus.jetstream.delete_stream(bus.names.stream(stream))
    await others.server.stop(None)
    for service in ("secrets", "inference"):
        database = Database(servers.mongodb_uri, secrets.namespace, service)
        await database.client.drop_database(database.raw.name)
        database.close()


@pytest.fixture
async def inference(unstarted: Inference) -> AsyncIterator[Inference]:
    async with unstarted.run():
        yield unstarted


@pytest.fixture
async def scorer() -> AsyncIterator[Scorer]:
    async with Scorer().run() as running:
        yield running


@pytest.fixture
async def journal(inference: Inference) -> AsyncIterator[Journal]:
    async with Journal().follow(inference.bus) as following:
        yield following
