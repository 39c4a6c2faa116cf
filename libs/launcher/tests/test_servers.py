"""The four real servers: what each user may do, and what nobody may."""

import asyncio
import json
import os
import re
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import httpx
import hvac
import nats
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hvac.exceptions import Forbidden, InvalidRequest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from stellwerk_launcher.credentials import SERVICES
from stellwerk_launcher.identities import password_in
from stellwerk_launcher.policies import AGENT, IDENTITIES
from stellwerk_launcher.servers import mongod
from stellwerk_launcher.testing import Servers


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


async def _denied(url: str, subject: str, seed: str | None = None) -> bool:
    """True when the server refuses a publish: the reason comes only by the error callback.

    A second subject that everybody is refused marks the end of the errors of the first.
    """
    errors: asyncio.Queue[str] = asyncio.Queue()

    async def remember(error: Exception) -> None:
        await errors.put(str(error).lower())

    connection = await nats.connect(url, error_cb=remember, nkeys_seed_str=seed)
    try:
        await connection.publish(subject, b"{}")
        await connection.publish("refused.to.all", b"{}")
        async with asyncio.timeout(60):
            first = await errors.get()
        assert "permissions violation" in first
        return "refused.to.all" not in first
    finally:
        await connection.close()


async def test_nats_service_publishes_only_in_its_own_name(servers: Servers, journal: Any) -> None:
    kept = servers.secrets_of("runs")
    url, seed = kept["nats_url"], kept["nats_seed"]
    assert not await _denied(url, "stellwerk.journal.demo.runs.run.completed", seed)
    assert not await _denied(url, "stellwerk.metrics.demo.abc", seed)
    assert not await _denied(url, "stellwerk.stored.run", seed)
    assert await _denied(url, "stellwerk.journal.demo.registry.model.created", seed)
    assert await _denied(url, "$JS.API.STREAM.DELETE.JOURNAL", seed)
    assert await _denied(url, "$JS.API.STREAM.PURGE.JOURNAL", seed)


async def test_nats_inspector_reads_the_journal_and_changes_nothing(servers: Servers, journal: Any) -> None:
    url = servers.process.status()["nats_url"]
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream()
        subscription = await stream.pull_subscribe("stellwerk.journal.>", stream="JOURNAL")
        [message] = await subscription.fetch(1, timeout=60)
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
        async with asyncio.timeout(60):
            assert "permissions violation" in str(await errors.get()).lower()
    finally:
        await connection.close()


async def test_nats_refuses_strangers(servers: Servers) -> None:
    # On a plain socket: a refused nats-py client leaves its connection open.
    host, _, port = servers.nats_url.rpartition("@")[2].partition(":")
    for login in ('"user":"inspector","pass":"wrong"', '"user":"stranger","pass":"x"', '"name":"nobody"'):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            assert (await reader.readline()).startswith(b"INFO")
            writer.write(f'CONNECT {{"verbose":false,{login}}}\r\nPING\r\n'.encode())
            # Whom the server does not know it asks `secrets` about, which is not there.
            async with asyncio.timeout(60):
                assert b"-ERR 'Auth" in await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()


def test_servers_listen_on_loopback_and_nats_without_its_monitor(servers: Servers) -> None:
    for process in servers.process.status()["processes"]:
        found = psutil.Process(process["pid"]).net_connections("inet")
        listening = {(item.laddr.ip, item.laddr.port) for item in found if item.status == psutil.CONN_LISTEN}
        assert {ip for ip, _ in listening} == {"127.0.0.1"}, process["name"]
        if process["name"] == "nats":
            assert [f"{ip}:{port}" for ip, port in listening] == [process["address"]]


async def test_mongodb_service_is_limited_to_its_database(servers: Servers) -> None:
    uri = _as(servers.mongodb_uri, "runs", password_in(servers.secrets_of("runs")["mongodb_uri"]))
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        collection = client["stellwerk_runs"][uuid.uuid4().hex]
        await collection.insert_one({"x": 1})
        async with client.start_session() as session, await session.start_transaction():
            await collection.update_one({"x": 1}, {"$set": {"x": 2}}, session=session)
        await client["stellwerk_runs"].command("collMod", collection.name, validator={"x": {"$gt": 0}})
        with pytest.raises(OperationFailure):
            await client["stellwerk_registry"]["models"].find_one({})
        await collection.drop()


async def test_mongodb_refuses_strangers(servers: Servers) -> None:
    address = servers.mongodb_uri.rpartition("@")[2]
    for user in ("", "runs:wrong@"):
        async with AsyncMongoClient[dict[str, Any]](f"mongodb://{user}{address}") as client:
            with pytest.raises(OperationFailure):
                await client["stellwerk_runs"]["runs"].find_one({})


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


@pytest.mark.parametrize("role", IDENTITIES)
def test_vault_a_role_reads_its_own_secrets_and_takes_its_own_certificate_only(
    servers: Servers, role: str
) -> None:
    client = _login(servers, role, servers.secret_id(role))
    other = "runs" if role != "runs" else "registry"

    def allowed(method: str, path: str, body: dict[str, Any] | None = None) -> bool:
        try:
            getattr(client.adapter, method)(f"/v1/{path}", **({"json": body} if body else {}))
        except Forbidden:
            return False
        return True

    def certificate(name: str) -> bool:
        return allowed("post", f"pki/issue/{name}", {"common_name": f"{name}.stellwerk"})

    is_service = role not in (AGENT, "launcher", "versitygw")
    assert certificate(role) == (role != "versitygw")
    assert not certificate(other)
    # The launcher fills them in and hands them out.
    assert allowed("get", f"secret/data/stellwerk/services/{other}") == (role == "launcher")
    if is_service:
        assert allowed("get", f"secret/data/stellwerk/services/{role}")
        assert not allowed("post", f"secret/data/stellwerk/services/{role}", {"data": {"x": "y"}})
    sign = "transit/sign/stellwerk-tokens"
    assert allowed("post", sign, {"input": "YWJj"}) == (role == "secrets")
    workspace = f"secret/data/stellwerk/workspaces/demo/secrets/{uuid.uuid4().hex}"
    assert allowed("post", workspace, {"data": {"value": "x"}}) == (role == "secrets")
    assert not allowed("post", "pki/root/generate/internal", {"common_name": "mine"})
    client.adapter.close()


def test_vault_signs_no_certificate_in_the_name_of_another(servers: Servers) -> None:
    client = _login(servers, "runs", servers.secret_id("runs"))
    for wrong in (
        {"common_name": "registry.stellwerk"},
        {"common_name": "runs.stellwerk", "alt_names": "x.y"},
    ):
        with pytest.raises(InvalidRequest):
            client.adapter.post("/v1/pki/issue/runs", json=wrong)
    client.adapter.close()


def test_no_password_of_a_service_is_in_a_file(servers: Servers) -> None:
    secrets: list[str | None] = [servers.s3_secret_key, password_in(servers.mongodb_uri)]
    for service in SERVICES:
        kept = servers.secrets_of(service)
        secrets += [kept["nats_seed"], kept.get("s3_secret_key"), password_in(kept.get("mongodb_uri", ""))]
    files = [*servers.data_dir.glob("*"), *(servers.data_dir / "logs").iterdir()]
    files += [*(servers.data_dir / "nats").glob("*.conf"), *(servers.data_dir / "openbao").glob("*.*")]
    for file in (file for file in files if file.is_file()):
        text = file.read_bytes()
        assert not [secret for secret in secrets if secret and secret.encode() in text], file


def test_vault_keeps_no_root_token_and_audits(servers: Servers) -> None:
    folder = servers.data_dir / "openbao"
    audit = [json.loads(line) for line in (folder / "audit.log").read_text().splitlines()]
    assert any(entry["type"] == "response" for entry in audit)
    assert (folder / "unseal.key").stat().st_mode & 0o777 == 0o600
    readable = [file for file in folder.iterdir() if file.is_file()]
    readable += [servers.data_dir / "logs" / "openbao.log", servers.data_dir / "credentials.json"]
    token = re.compile(rb"\b[sbr]\.[A-Za-z0-9]{24}")
    assert not [file for file in readable if token.search(file.read_bytes())]


def _s3(servers: Servers, access_key: str, secret_key: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=servers.s3_url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", retries={"total_max_attempts": 1}),
    )


def test_s3_serves_who_has_keys_and_only_below_its_prefixes(servers: Servers) -> None:
    kept = servers.secrets_of("registry")
    key = f"launcher-test/{uuid.uuid4().hex}"
    registry = _s3(servers, kept["s3_access_key"], kept["s3_secret_key"])
    registry.put_object(Bucket="stellwerk", Key=key, Body=b"abc")
    assert registry.get_object(Bucket="stellwerk", Key=key)["Body"].read() == b"abc"
    wrong = _s3(servers, kept["s3_access_key"], "wrong")
    with pytest.raises(ClientError):
        wrong.get_object(Bucket="stellwerk", Key=key)
    assert httpx.get(f"{servers.s3_url}/stellwerk/{key}").status_code == 403
    registry.delete_object(Bucket="stellwerk", Key=key)
    root = _s3(servers, servers.s3_access_key, servers.s3_secret_key)
    other = f"other-{uuid.uuid4().hex[:8]}"
    root.create_bucket(Bucket=other)
    attempts: list[Callable[[], Any]] = [
        lambda: registry.put_object(Bucket=other, Key=key, Body=b"x"),
        lambda: registry.list_objects_v2(Bucket=other),
        lambda: registry.create_bucket(Bucket=f"{other}-more"),
        lambda: registry.delete_bucket_policy(Bucket="stellwerk"),
        lambda: registry.delete_bucket(Bucket="stellwerk"),
    ]
    for refused in attempts:
        with pytest.raises(ClientError, match=r"AccessDenied"):
            refused()
    root.delete_bucket(Bucket=other)
    for client in (registry, wrong, root):
        client.close()


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
