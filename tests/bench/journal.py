"""How soon a committed transition reaches a subscriber, and how many the relay moves."""

import asyncio
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stellwerk_platform.bus import Bus, ensure_streams
from stellwerk_platform.journal import Fact, Relay
from stellwerk_platform.mongo import Collection, Database, Transaction
from stellwerk_protos.registry.v1.workspaces_pb2 import Workspace
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark, percentile

TRANSITIONS = 2_000
BACKLOG = 5_000
BATCH = 250
ROUNDS = 5


@asynccontextmanager
async def journal(resources: Resources) -> AsyncIterator[tuple[Collection[Workspace], Relay, Bus]]:
    """A store, its relay (not running) and a bus in a namespace of their own."""
    servers, namespace = resources.servers, f"b{uuid.uuid4().hex[:8]}"
    database = Database(servers.mongodb_uri, namespace, "registry")
    await database.open()
    workspaces = Collection(database, "workspaces", Workspace)
    await workspaces.open()
    async with Bus.connect(servers.nats_url, namespace, "bench") as bus:
        await ensure_streams(bus)
        relay = Relay(database, bus)
        database.on_commit(relay.wake)
        yield workspaces, relay, bus
        for stream in ("JOURNAL", "DEADLETTER", "REDELIVERY", "ACTIVITY"):
            await bus.jetstream.delete_stream(bus.names.stream(stream))
    await database.client.drop_database(database.raw.name)
    database.close()


@benchmark(
    "journal.commit_to_subscriber",
    unit="ms (p99)",
    better="lower",
    peer="bare JetStream publish to subscriber",
)
async def commit_to_subscriber(resources: Resources) -> Measurement:
    """From the start of the transaction to the subscriber's callback, 2,000 transitions in a row,
    in turns with a message of the same size that is only published."""
    async with journal(resources) as (workspaces, relay, bus):
        running = asyncio.create_task(relay.run())
        arrived = asyncio.Queue[float]()

        async def callback(message: object) -> None:
            arrived.put_nowait(time.perf_counter())

        await bus.jetstream.subscribe(bus.names.subject("journal", ">"), cb=callback, ordered_consumer=True)
        await workspaces.create(Workspace(name="workspaces/a1"), Fact("created", "BENCH"))
        await arrived.get()
        ours, theirs = [], []
        subject, body = bus.names.subject("journal", "x", "peer", "x", "x"), b"x" * 600

        def touch(workspace: Workspace) -> Fact:
            return Fact("updated", "BENCH")

        for _ in range(TRANSITIONS):
            begin = time.perf_counter()
            await workspaces.update("workspaces/a1", touch)
            ours.append(await arrived.get() - begin)
            begin = time.perf_counter()
            await bus.publish(subject, body, {})
            theirs.append(await arrived.get() - begin)
        running.cancel()
    return Measurement(percentile(ours, 99) * 1e3, TRANSITIONS, percentile(theirs, 99) * 1e3)


@benchmark("journal.relay_rate", unit="transitions/s", better="higher")
async def relay_rate(resources: Resources) -> Measurement:
    """A backlog of 5,000 transitions of as many resources, from the store into JetStream."""
    async with journal(resources) as (workspaces, relay, _):
        rates = []
        for number in range(ROUNDS):
            for start in range(0, BACKLOG, BATCH):
                names = [f"workspaces/r{number}-{start + i}" for i in range(BATCH)]

                async def work(tx: Transaction, names: list[str] = names) -> None:
                    for name in names:
                        await workspaces.create_in(tx, Workspace(name=name), Fact("created", "BENCH"))

                await workspaces.database.commit(work)
            begin = time.perf_counter()
            while await relay.publish_batch():
                pass
            rates.append(BACKLOG / (time.perf_counter() - begin))
    return Measurement(statistics.median(rates), ROUNDS)
