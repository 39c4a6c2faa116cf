"""Where replicas listen: on the address that the node names, over TLS where that is a network's."""

import asyncio
import ssl
import stat
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509

from services.agent.tests.support import running
from stellwerk import AsyncClient
from stellwerk_agent import replica_place
from stellwerk_agent.config import Settings
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.folder import AllocationFolder
from stellwerk_launcher.testing import Servers
from stellwerk_platform.settings import SettingsError
from stellwerk_protos.compute.v1 import agents_pb2
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as oip_grpc

# The machine's own, and treated as the network: only 127.0.0.1 is answered in clear.
HOST = "127.0.0.2"
REQUIRED = {
    "STELLWERK_GRPC_ADDRESS": "a:1",
    "STELLWERK_AGENT_DIR": "x",
    "STELLWERK_VAULT_ROLE_ID": "agent",
    "STELLWERK_VAULT_SECRET_ID": "s",
}
SCRIPT = """
import json

def init():
    pass

def run(raw):
    return [2 * x for x in json.loads(raw)["data"]]
"""


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def allocation(root: Path, number: int) -> AllocationFolder:
    """A new one."""
    assignment = agents_pb2.Assignment()
    assignment.allocation.name = f"workspaces/demo/allocations/a{number}"
    root.mkdir(exist_ok=True)
    return AllocationFolder.create(root, assignment)


def test_replicas_share_the_ports_of_a_node_and_keep_them(tmp_path: Path) -> None:
    low = min(replica_place.free_ports(HOST)[0], 65_000) // 100 * 100
    settings = Settings.from_environment(
        REQUIRED
        | {
            "STELLWERK_AGENT_REPLICA_HOST": HOST,
            "STELLWERK_AGENT_REPLICA_PORTS": f"{low}-{low + 99}",
        }
    )
    folder = allocation(tmp_path / "allocations", 1)
    place = replica_place.choose(folder, settings)
    assert replica_place.noted(AllocationFolder(folder.path)) == place
    assert place.url.startswith(f"https://{HOST}:")
    for name in ("STELLWERK_SCORER_CERTIFICATE", "STELLWERK_SCORER_KEY"):
        assert stat.S_IMODE(Path(place.variables(folder)[name]).stat().st_mode) == 0o600
    # Nothing listens there yet, and still nobody else gets these ports.
    other = replica_place.choose(allocation(tmp_path / "allocations", 2), settings)
    taken = {port_of(address) for one in (place, other) for address in (one.http_address, one.grpc_address)}
    assert len(taken) == 4
    assert taken <= set(settings.replica_ports)
    assert other.certificate != place.certificate
    with pytest.raises(StepFailed) as caught:
        replica_place.free_ports(HOST, settings.replica_ports, set(settings.replica_ports) - {low})
    assert caught.value.reason.code == "NO_FREE_PORT"


def test_on_loopback_a_replica_answers_in_clear(tmp_path: Path) -> None:
    place = replica_place.choose(allocation(tmp_path / "here", 1), Settings.from_environment(REQUIRED))
    assert place.http_address.startswith("127.0.0.1:")
    assert (place.certificate, place.url[:7]) == ("", "http://")


def test_a_node_may_be_known_by_its_name() -> None:
    host = Settings.from_environment(REQUIRED | {"STELLWERK_AGENT_REPLICA_HOST": "node-1.example"})
    certificate = x509.load_pem_x509_certificate(replica_place.certify(host.agent_replica_host)[1])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node-1.example"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOST", "0.0.0.0"),
        ("HOST", "::"),
        ("HOST", "https://node"),
        ("HOST", "10.0.0.256"),
        ("PORTS", "80"),
        ("PORTS", "90-80"),
        ("PORTS", "80-80"),
        ("PORTS", "0-70000"),
    ],
)
def test_a_place_where_nobody_is_reached_is_refused(variable: str, value: str) -> None:
    name = f"STELLWERK_AGENT_REPLICA_{variable}"
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment(REQUIRED | {name: value})


@pytest.mark.timeout(180)
async def test_a_replica_in_a_network_is_scored_through_both_doors(servers: Servers, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "score.py").write_text(SCRIPT)
    (tmp_path / "model.txt").write_text("none")
    async with (
        running(servers, tmp_path) as node,
        node.agent(STELLWERK_AGENT_REPLICA_HOST=HOST),
        AsyncClient(
            grpc_address=node.grpc_address,
            gateway_url=node.gateway_url,
            api_key=node.platform.secrets.owner_key,
        ) as client,
    ):
        await client.workspaces.create("remote")
        workspace = client.workspace("remote")
        await workspace.environments.create_version("bare", packages=[])
        await workspace.models.register("none", path=tmp_path / "model.txt")
        endpoint = await workspace.endpoints.create("digits")
        await workspace.deployments.create(
            *("blue",),
            endpoint="digits",
            models=["none:1"],
            environment="bare",
            code=code,
            script="score.py",
        )
        last = [item async for item in workspace.deployments.watch("digits", "blue")][-1]
        assert last.ready_replica_count == 1, last.reason
        (replica,) = await workspace.deployments.replicas("digits", "blue")
        assert replica.http_address.startswith(f"{HOST}:")
        assert "unix:" not in replica.http_address
        assert "BEGIN CERTIFICATE" in replica.certificate

        assert await endpoint.score({"data": [1, 2]}) == [2, 4]
        request = oip.ModelInferRequest(model_name="none")
        tensor = request.inputs.add(name="data", datatype="INT64", shape=[2])
        tensor.contents.int64_contents[:] = [3, 4]
        metadata = (
            ("authorization", f"Bearer {node.platform.secrets.owner_key}"),
            ("stellwerk-endpoint", "remote/digits"),
        )
        async with grpc.aio.insecure_channel(node.grpc_address) as channel:
            answer = await oip_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=metadata)
        assert list(answer.outputs[0].contents.int64_contents) == [6, 8]

        async with httpx.AsyncClient(trust_env=False, timeout=30) as web:
            with pytest.raises(httpx.HTTPError):
                await web.get(f"http://{replica.http_address}/v2/health/live")
        host, _, port = replica.grpc_address.rpartition(":")
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(host, int(port), ssl=ssl.create_default_context())
        await workspace.endpoints.delete("digits")
