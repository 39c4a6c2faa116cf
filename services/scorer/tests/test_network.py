"""A scorer that a network reaches: TLS on both servers, and nothing but health without a token."""

from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.scorer.tests.support import StartScorer
from stellwerk_agent.replica_place import certify
from stellwerk_platform.replica_tls import context_of
from stellwerk_platform.settings import SettingsError
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as pb_grpc
from stellwerk_scorer.config import Settings

HOST = "127.0.0.2"
USAGE = "x-stellwerk-usage"
SCRIPT = """
    import os

    def init():
        pass

    def run(data):
        return sorted(name for name in os.environ if name.startswith("STELLWERK_SCORER_"))
"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a certificate and its key."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    content = certify(HOST)
    key.write_bytes(content[0])
    certificate.write_bytes(content[1])
    return certificate, key


async def test_a_network_sees_tls_and_health_alone_without_a_token(
    scorer: StartScorer, pair: tuple[Path, Path]
) -> None:
    certificate, key = pair
    variables = {
        "STELLWERK_SCORER_HTTP_LISTEN": f"{HOST}:0",
        "STELLWERK_SCORER_GRPC_LISTEN": f"{HOST}:0",
        "STELLWERK_SCORER_CERTIFICATE": str(certificate),
        "STELLWERK_SCORER_KEY": str(key),
    }
    async with scorer(SCRIPT, **variables) as running:
        pem = certificate.read_bytes()
        channel = grpc.aio.secure_channel(running.grpc_address, grpc.ssl_channel_credentials(pem))
        async with channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            async for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            metadata = await stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=running.metadata)
            assert metadata.name == "stellwerk"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ServerMetadata(pb.ServerMetadataRequest())
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED

        url = f"https://{running.http_address}"
        trust, token = context_of(pem.decode()), {"authorization": f"Bearer {running.token}"}
        async with httpx.AsyncClient(base_url=url, verify=trust, timeout=30, trust_env=False) as client:
            for path in (
                "/",
                "/score",
                "/swagger.json",
                "/v2",
                "/v2/models",
                "/v2/models/digits",
                "/metrics",
            ):
                assert (await client.get(path)).status_code == 401, path
            assert (await client.post("/inference.GRPCInferenceService/ModelInfer")).status_code == 401
            for headers, shown in (({}, False), ({"authorization": "Bearer x"}, False), (token, True)):
                answer = await client.get("/v2/health/ready", headers={**headers, USAGE: "1"})
                assert (answer.status_code, USAGE in answer.headers) == (200, shown), headers
            scored = await client.post("/score", content=bytes(3_000_000), headers=token)
            # Where the key lies is not told to the user's code.
            assert scored.status_code == 200
            told = set(scored.json())
            assert "STELLWERK_SCORER_PYTHON" in told
            assert not told & {"STELLWERK_SCORER_KEY", "STELLWERK_SCORER_CERTIFICATE"}

        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://{running.http_address}/v2/health/live")
        other = context_of(certify(HOST)[1].decode())
        async with httpx.AsyncClient(base_url=url, verify=other, trust_env=False) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/v2/health/live")


def test_nothing_listens_in_clear_where_others_could_read_along(pair: tuple[Path, Path]) -> None:
    variables = {
        "STELLWERK_SCORER_HTTP_LISTEN": "10.0.0.1:80,unix:/x",
        "STELLWERK_SCORER_GRPC_LISTEN": "127.0.0.1:0",
        "STELLWERK_SCORER_PYTHON": "python",
        "STELLWERK_SECRETS_ADDRESS": "a:1",
    }
    with pytest.raises(SettingsError, match=r"10\.0\.0\.1:80 needs STELLWERK_SCORER_CERTIFICATE"):
        Settings.from_environment(variables)
    variables["STELLWERK_SCORER_CERTIFICATE"] = str(pair[0])
    with pytest.raises(SettingsError, match="belong together"):
        Settings.from_environment(variables)
    variables["STELLWERK_SCORER_KEY"] = str(pair[1])
    assert Settings.from_environment(variables).scorer_http_listen.startswith("10.0.0.1")
