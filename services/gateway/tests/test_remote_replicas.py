"""Replicas on other machines: over TLS with the certificate that their node announced, or not at all."""

import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.gateway.tests.conftest import GATEWAY_TOKEN, OWNER_KEY, Door
from services.gateway.tests.replica import FakeReplica, route, until
from stellwerk_agent.replica_place import certify
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as oip_grpc

# The machine's own, and treated as the network: only 127.0.0.1 is answered in clear.
HOST = "127.0.0.2"
KEY = {"authorization": f"Bearer {OWNER_KEY}"}
METADATA = (("authorization", f"Bearer {OWNER_KEY}"), ("stellwerk-endpoint", "demo/digits"))


def secured(folder: Path, name: str) -> tuple[ssl.SSLContext, str]:
    """What a replica's server shows, and its certificate."""
    key, certificate = certify(HOST)
    pair = folder / f"{name}.pem"
    pair.write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return context, certificate.decode()


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[dict[str, FakeReplica]]:
    """One as it should be, one with another certificate than the announced one, one in clear."""
    fakes = {name: FakeReplica(name) for name in ("good", "other", "clear")}
    for name, fake in fakes.items():
        fake.host = HOST
        context, fake.certificate = secured(tmp_path, name)
        if name != "clear":
            fake.secured = context
    fakes["other"].certificate = secured(tmp_path, "announced")[1]
    for fake in fakes.values():
        await fake.start()
    yield fakes
    for fake in fakes.values():
        await fake.stop()


async def score(web: aiohttp.ClientSession) -> tuple[int, Any]:
    async with web.post("/endpoints/demo/digits/score", data="{}", headers=KEY) as response:
        return response.status, await response.json()


async def test_both_doors_score_at_the_replica_that_shows_its_certificate(
    web: aiohttp.ClientSession,
    door: Door,
    table: RouteTable,
    replicas: dict[str, FakeReplica],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    good = replicas["good"]
    good.usage = '{"cpu_seconds": 1, "memory_bytes": 2, "calls": 3, "requests": 4}'
    table.replace([route(blue=(100, list(replicas.values())))])
    for _ in range(6):
        status, document = await score(web)
        assert (status, document["by"]) == (200, "good")
    stub = oip_grpc.GRPCInferenceServiceStub(door.channel)
    answer = await stub.ModelInfer(oip.ModelInferRequest(model_name="digits"), metadata=METADATA)
    assert answer.model_name == "good"
    # Its usage is for those with a token.
    blue = table.endpoints["workspaces/demo/endpoints/digits"].deployments["blue"]
    await until(lambda: blue.replicas[0].usage.calls == 3)
    assert set(good.probes) == {f"Bearer {GATEWAY_TOKEN}"}
    for name in ("other", "clear"):
        assert (replicas[name].arrived, replicas[name].probes) == (0, [])
        said = [text for text in caplog.messages if f"replicas/{name} " in text]
        assert len(said) == 1, caplog.messages
        assert "does not show its certificate" in said[0]


@pytest.mark.parametrize("certificate", ["", "no certificate", "\N{SNOWMAN}"])
async def test_a_replica_that_nobody_can_know_gets_nothing(
    web: aiohttp.ClientSession, table: RouteTable, replicas: dict[str, FakeReplica], certificate: str
) -> None:
    replicas["clear"].certificate = replicas["good"].certificate = certificate
    table.replace([route(blue=(100, [replicas["good"], replicas["clear"]]))])
    status, document = await score(web)
    assert (status, document["reason"]) == (503, "NO_READY_REPLICA")
    assert replicas["good"].arrived + replicas["clear"].arrived == 0
