"""The whole gateway before the real `secrets` and `registry`; the other four are down."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
import pytest

from services.registry.tests.support import running as running_registry
from stellwerk_gateway.config import Settings
from stellwerk_gateway.main import compose
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers
from stellwerk_platform.app import App
from stellwerk_platform.auth import StaticCredentials
from stellwerk_platform.errors import from_rpc
from stellwerk_platform.grpc_client import connect
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as oip_grpc
from stellwerk_protos.registry.v1 import workspaces_pb2, workspaces_pb2_grpc

LIST = "/stellwerk.registry.v1.WorkspaceService/ListWorkspaces"


@dataclass
class Gateway:
    """The two addresses and the owner's key."""

    url: str
    grpc_address: str
    key: str


@pytest.fixture
async def gateway(servers: Servers) -> AsyncIterator[Gateway]:
    async with running_registry(servers) as registry:
        chosen = ports.choose(["gateway", "http"], {})
        down = "127.0.0.1:9"
        settings = Settings(
            listen=f"127.0.0.1:{chosen['gateway']}",
            http_listen=f"127.0.0.1:{chosen['http']}",
            registry_address=registry.address,
            secrets_address=registry.secrets.address,
            runs_address=down,
            compute_address=down,
            inference_address=down,
            telemetry_address=down,
            vault_role_id=servers.vault_role_id,
            vault_secret_id=servers.vault_secret_id,
        )
        app = App("gateway")
        await compose(app, settings)
        yield Gateway(f"http://{settings.http_listen}", settings.listen, registry.secrets.owner_key)
        await app.leave()


async def test_both_doors_lead_to_the_real_registry(gateway: Gateway) -> None:
    async with connect(gateway.grpc_address, StaticCredentials(gateway.key)) as channel:
        stub = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
        await stub.CreateWorkspace(workspaces_pb2.CreateWorkspaceRequest(workspace_id="demo"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateWorkspace(workspaces_pb2.CreateWorkspaceRequest(workspace_id="demo"))
        assert from_rpc(caught.value).reason == "ALREADY_EXISTS"
        scoring = oip_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scoring.ModelInfer(
                oip.ModelInferRequest(), metadata=(("stellwerk-endpoint", "demo/digits"),)
            )
        assert from_rpc(caught.value).reason == "ROUTES_NOT_LOADED"
    owner = {"authorization": f"Bearer {gateway.key}"}
    wrong = {"authorization": "Bearer swk_wrong"}
    async with aiohttp.ClientSession(gateway.url) as web:
        status, document = await post(web, LIST, owner)
        assert (status, [item["name"] for item in document["workspaces"]]) == (200, ["workspaces/demo"])
        for headers, reason in (({}, "KEY_MISSING"), (wrong, "KEY_INVALID")):
            status, document = await post(web, LIST, headers)
            assert (status, document["details"][0]["debug"]["reason"]) == (401, reason)
            status, document = await post(web, "/endpoints/demo/digits/score", headers)
            assert (status, document["reason"]) == (401, reason)
        async with web.get("/readyz") as response:
            services = (await response.json())["services"]
            assert (response.status, services["registry"], services["runs"]) == (503, True, False)


async def post(web: aiohttp.ClientSession, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    async with web.post(path, data="{}", headers={"content-type": "application/json", **headers}) as response:
        return response.status, await response.json()
