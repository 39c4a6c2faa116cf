"""The four real servers: what each user may do, and what nobody may."""

import asyncio
import json
import os
import re
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import hvac
import nats
import psutil
import pytest
from botocore.config import Config
from hvac.exceptions import Forbidden
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from stellwerk_launcher.credentials import VAULT_ROLES, Credentials
from stellwerk_launcher.servers import mongod
from stellwerk_launcher.testing import Servers


@pytest.fixture
def credentials(servers: Servers) -> Credentials:
    return Credentials.load_or_create(servers.data_dir / "credentials.json")


def _as(url: str, user: str, password: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{password}@{rest.rpartition('@')[2]}"


@pytest.fixture
async def journal(servers: Servers) -> AsyncIterator[Any]:
    """The JOURNAL stream with one fact in it, and its context with all rights."""
    connection = await nats.connect(servers.nats_url)
    stream = connection.jetstream()
    await stream.add_stream(name="JOURNAL", subjects=["stellwerk.journal.>"])
    await stream.publish("stellwerk.journal.demo.runs.run.created", b"{}")
    yield stream
    await stream.delete_stream("JOURNAL")
    await connection.close()


async def _denied(url: str, subject: str) -> bool:
    """True when the server refuses a publish: the reason comes only by the error callback.

    A second subject that everybody is refused marks the end of the errors of the first.
    """
    errors: asyncio.Queue[str] = asyncio.Queue()

    async def remember(error: Exception) -> None:
        await errors.put(str(error).lower())

    connection = await nats.connect(url, error_cb=remember)
    try:
        await connection.publish(subject, b"{}")
        await connection.publish("refused.to.all", b"{}")
        async with asyncio.timeout(10):
            first = await errors.get()
        assert "permissions violation" in first
        return "refused.to.all" not in first
    finally:
        await connection.close()


async def test_nats_service_publishes_only_in_its_own_name(
    servers: Servers, credentials: Credentials, journal: Any
) -> None:
    url = _as(servers.nats_url, "runs", credentials.nats["runs"])
    assert not await _denied(url, "stellwerk.journal.demo.runs.run.completed")
    assert not await _denied(url, "stellwerk.metrics.demo.abc")
    assert not await _denied(url, "stellwerk.stored.run")
    assert await _denied(url, "stellwerk.journal.demo.registry.model.created")
    assert await _denied(url, "$JS.API.STREAM.DELETE.JOURNAL")
    assert await _denied(url, "$JS.API.STREAM.PURGE.JOURNAL")


async def test_nats_inspector_reads_the_journal_and_changes_nothing(
    servers: Servers, credentials: Credentials, journal: Any
) -> None:
    url = servers.process.status()["nats_url"]
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream()
        subscription = await stream.pull_subscribe("stellwerk.journal.>", stream="JOURNAL")
        [message] = await subscription.fetch(1, timeout=5)
        assert message.subject == "stellwerk.journal.demo.runs.run.created"
        await message.ack()
        assert (await stream.stream_info("JOURNAL")).state.messages == 1
    finally:
        await connection.close()
    for subject in (
        "stellwerk.journal.demo.runs.run.created",
        "$JS.API.STREAM.DELETE.JOURNAL",
        "$JS.API.STREAM.MSG.DELETE.JOURNAL",
        "$JS.API.CONSUMER.DELETE.JOURNAL.any",
        "$JS.API.STREAM.CREATE.OTHER",
    ):
        assert await _denied(url, subject), subject


async def test_nats_inspector_takes_no_delivery_from_a_service(servers: Servers) -> None:
    errors: asyncio.Queue[Exception] = asyncio.Queue()
    connection = await nats.connect(servers.process.status()["nats_url"], error_cb=errors.put)
    try:
        await connection.subscribe("stellwerk.deliver.runs", queue="runs")
        async with asyncio.timeout(10):
            assert "permissions violation" in str(await errors.get()).lower()
    finally:
        await connection.close()


async def test_nats_refuses_strangers(servers: Servers) -> None:
    # On a plain socket: a refused nats-py client leaves its connection open.
    host, _, port = servers.nats_url.rpartition("@")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert (await reader.readline()).startswith(b"INFO")
    writer.write(b'CONNECT {"verbose":false,"user":"runs","pass":"wrong"}\r\nPING\r\n')
    assert b"Authorization Violation" in await reader.readline()
    writer.close()
    await writer.wait_closed()


def test_servers_listen_on_loopback_and_nats_without_its_monitor(servers: Servers) -> None:
    for process in servers.process.status()["processes"]:
        found = psutil.Process(process["pid"]).net_connections("inet")
        listening = {(item.laddr.ip, item.laddr.port) for item in found if item.status == psutil.CONN_LISTEN}
        assert {ip for ip, _ in listening} == {"127.0.0.1"}, process["name"]
        if process["name"] == "nats":
            assert [f"{ip}:{port}" for ip, port in listening] == [process["address"]]


async def test_mongodb_service_is_limited_to_its_database(servers: Servers, credentials: Credentials) -> None:
    uri = _as(servers.mongodb_uri, "runs", credentials.mongodb["runs"])
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        collection = client["stellwerk_runs"][uuid.uuid4().hex]
        await collection.insert_one({"x": 1})
        async with client.start_session() as session, await session.start_transaction():
            await collection.update_one({"x": 1}, {"$set": {"x": 2}}, session=session)
        await client["stellwerk_runs"].command("collMod", collection.name, validator={"x": {"$gt": 0}})
        with pytest.raises(OperationFailure):
            await client["stellwerk_registry"]["models"].find_one({})
        await collection.drop()


async def test_mongodb_inspector_reads_all_and_writes_nothing(servers: Servers) -> None:
    async with AsyncMongoClient[dict[str, Any]](servers.process.status()["mongodb_uri"]) as client:
        assert await client["stellwerk_registry"]["models"].find_one({}) is None
        with pytest.raises(OperationFailure):
            await client["stellwerk_registry"]["models"].insert_one({})


def _login(servers: Servers, role: str, secret_id: str) -> hvac.Client:
    client = hvac.Client(servers.vault_url)
    client.auth.approle.login(role_id=role, secret_id=secret_id)
    return client


def test_vault_secrets_role_signs_rotates_and_verifies(servers: Servers) -> None:
    client = _login(servers, servers.vault_role_id, servers.vault_secret_id)
    transit = client.secrets.transit
    transit.rotate_key("stellwerk-tokens")
    signed = transit.sign_data("stellwerk-tokens", hash_input="YWJj")["data"]["signature"]
    verified = transit.verify_signed_data("stellwerk-tokens", hash_input="YWJj", signature=signed)
    assert verified["data"]["valid"]
    key = transit.read_key("stellwerk-tokens")["data"]
    assert key["type"] == "ed25519"
    client.adapter.close()


def test_vault_every_role_logs_in_and_the_others_may_not_sign(
    servers: Servers, credentials: Credentials
) -> None:
    for role in VAULT_ROLES:
        client = _login(servers, role, credentials.vault[role])
        if role != "secrets":
            with pytest.raises(Forbidden):
                client.secrets.transit.sign_data("stellwerk-tokens", hash_input="YWJj")
        client.adapter.close()


def test_vault_keeps_no_root_token_and_audits(servers: Servers) -> None:
    folder = servers.data_dir / "openbao"
    audit = [json.loads(line) for line in (folder / "audit.log").read_text().splitlines()]
    assert any(entry["type"] == "response" for entry in audit)
    assert (folder / "unseal.key").stat().st_mode & 0o777 == 0o600
    readable = [file for file in folder.iterdir() if file.is_file()]
    readable += [servers.data_dir / "logs" / "openbao.log", servers.data_dir / "credentials.json"]
    token = re.compile(rb"\b[sbr]\.[A-Za-z0-9]{24}")
    assert not [file for file in readable if token.search(file.read_bytes())]


def test_s3_bucket_exists_and_keys_are_needed(servers: Servers) -> None:
    def client(secret: str) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=servers.s3_url,
            aws_access_key_id=servers.s3_access_key,
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(signature_version="s3v4"),
        )

    key = f"launcher-test-{uuid.uuid4().hex}"
    good, bad = client(servers.s3_secret_key), client("wrong")
    good.put_object(Bucket="stellwerk", Key=key, Body=b"abc")
    assert good.get_object(Bucket="stellwerk", Key=key)["Body"].read() == b"abc"
    with pytest.raises(bad.exceptions.ClientError):
        bad.get_object(Bucket="stellwerk", Key=key)
    good.delete_object(Bucket="stellwerk", Key=key)
    good.close()
    bad.close()


def test_mongod_runs_where_the_system_has_no_libcurl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mongod, "_has_libcurl", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    given = mongod.libcurl_environment()
    assert mongod.libcurl_environment() == given, "also the second time"
    environment = {**os.environ, **given, "LD_DEBUG": "files"}
    said = subprocess.run(
        [mongod.find().path, "--version"], env=environment, capture_output=True, text=True, check=True
    )
    assert "db version" in said.stdout
    assert f"calling init: {tmp_path}/a cache/stellwerk/lib/" in said.stderr
