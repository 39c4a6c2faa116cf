"""How the parts that several services stand on are tried.

Their clients are imported where they are used: a scoring server has none of them, and its start is waited
for.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC
from typing import TYPE_CHECKING

import grpc

from stellwerk_platform.auth import CallerCredentials, TokenVerifier
from stellwerk_platform.diagnosis import Diagnosis
from stellwerk_platform.errors import FailedPrecondition, Unavailable
from stellwerk_platform.identity import Identity

if TYPE_CHECKING:
    from stellwerk_platform.bus import Bus
    from stellwerk_platform.mongo import Database

_SKEW_SECONDS = 2.0
_CLOCK_SECONDS = 3.0
_FREE_BYTES = 1024**3
_STREAM = "REDELIVERY"
# What is left of a certificate, of its whole life, when its renewal must have failed again and again.
_OVERDUE = 0.25


def add_store(diagnosis: Diagnosis, database: Database) -> None:
    """MongoDB, and the clock against MongoDB's."""

    async def store() -> None:
        await _store(database)

    async def clock() -> None:
        await _clock(database)

    diagnosis.add(
        "mongodb",
        "write, read and delete a document",
        store,
        "See that mongod runs as a replica set with a primary (`stellwerk logs mongod`), that there is room "
        "on its disk, and that STELLWERK_MONGODB_URI is right.",
    )
    diagnosis.add(
        "clock",
        "compare the clock with that of MongoDB",
        clock,
        "Keep the clocks of all machines in step (NTP): tokens and certificates depend on them.",
    )


async def _store(database: Database) -> None:
    probes, name = database.raw["probes"], uuid.uuid4().hex
    await probes.insert_one({"_id": name})
    try:
        if await probes.find_one({"_id": name}) is None:
            raise FailedPrecondition("MONGODB_FORGETS", "What was written could not be read.")
    finally:
        await probes.delete_one({"_id": name})
    statistics = await database.raw.command("dbStats")
    free = float(statistics.get("fsTotalSize", 0)) - float(statistics.get("fsUsedSize", 0))
    if "fsTotalSize" in statistics and free < _FREE_BYTES:
        raise FailedPrecondition(
            "DISK_NEARLY_FULL",
            f"The disk of MongoDB has {free / 1024**2:,.0f} MiB left.",
            "Make room there, or remove runs: docs/retention.md.",
        )


async def _clock(database: Database) -> None:
    from pymongo.errors import PyMongoError

    began = time.time()
    try:
        async with asyncio.timeout(_CLOCK_SECONDS):
            answer = await database.client.admin.command("hello")
    except (TimeoutError, PyMongoError) as error:
        raise FailedPrecondition(
            "CLOCK_NOT_COMPARED", "MongoDB does not say its time.", "Cure MongoDB first."
        ) from error
    ended = time.time()
    there = answer["localTime"].replace(tzinfo=UTC).timestamp()
    # Somewhere between question and answer it was that time there.
    skew = max(began - there, there - ended, 0.0)
    if skew > _SKEW_SECONDS:
        raise FailedPrecondition("CLOCK_SKEWED", f"The clock differs by {skew:.1f} s from that of MongoDB.")


def add_bus(diagnosis: Diagnosis, bus: Bus) -> None:
    """NATS and JetStream."""

    async def probe() -> None:
        await _bus(bus)

    diagnosis.add(
        "nats",
        "publish a message to JetStream, read and delete it",
        probe,
        "See that nats-server runs with JetStream (`stellwerk logs nats`), that there is room on its disk, "
        "and that STELLWERK_NATS_URL and the service's credentials are right.",
    )


async def _bus(bus: Bus) -> None:
    import nats.errors
    import nats.js.errors

    if not bus.client.is_connected:
        raise Unavailable("NATS_UNAVAILABLE", "There is no connection to NATS.")
    body, stream = uuid.uuid4().hex.encode(), bus.names.stream(_STREAM)
    # A stream of work, in which nobody waits for this subject.
    sequence = await bus.publish(bus.names.subject("redelivery", "probe"), body, {})
    try:
        found = await bus.jetstream.get_msg(stream, sequence)
        await bus.jetstream.delete_msg(stream, sequence)
    except (nats.errors.Error, nats.js.errors.Error) as error:
        raise Unavailable("NATS_UNAVAILABLE", f"JetStream does not give back a message: {error}") from error
    if found.data != body:
        raise FailedPrecondition("NATS_FORGETS", "What is read is not what was published.")


def add_certificate(diagnosis: Diagnosis, identity: Identity) -> None:
    """How long the certificate of this process is still good: it is renewed at half its life."""

    async def probe() -> None:
        left = identity.certificate.expire_time - time.time()
        if left < identity.seconds * _OVERDUE:
            raise FailedPrecondition(
                "CERTIFICATE_NOT_RENEWED",
                f"The certificate is good for {left / 60:,.0f} more minutes and should have been renewed.",
                "See that Vault answers, and that the service's AppRole may use its role of the PKI.",
            )

    diagnosis.add(
        "certificate",
        "look how long the certificate is still good",
        probe,
        "See that Vault answers (`stellwerk logs openbao`).",
    )


def add_secrets(diagnosis: Diagnosis, secrets: grpc.aio.Channel, credentials: CallerCredentials) -> None:
    """`secrets`: this service's token, verified with the keys that are published now."""

    async def probe() -> None:
        await TokenVerifier(secrets).verify(await credentials.token())

    diagnosis.add(
        "secrets",
        "show the service's token and verify it with the published keys",
        probe,
        "See that the service secrets runs and reaches Vault (`stellwerk logs secrets`).",
    )
