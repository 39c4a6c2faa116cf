"""What the doors refuse by themselves is told to the activity log."""

from io import BytesIO

import aiohttp
import grpc
import pytest

from services.gateway.tests.conftest import STRANGER_KEY, Door
from stellwerk_platform import activity
from stellwerk_platform.addresses import address_of_peer
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as oip_grpc

Told = tuple[str, str, str, str, str]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    """(action, reason, actor, resource, address) of each report."""
    reports: list[Told] = []

    def denied(
        action: str, error: PlatformError, *, actor: str = "", resource: str = "", address: str = ""
    ) -> None:
        reports.append((action, error.reason, actor, resource, address))

    monkeypatch.setattr(activity, "denied", denied)
    return reports


async def test_http(web: aiohttp.ClientSession, told: list[Told]) -> None:
    endpoint, action = "workspaces/demo/endpoints/digits", "POST /endpoints/{endpoint}/score"
    stranger = {"authorization": f"Bearer {STRANGER_KEY}"}
    for method, path, headers, status in (
        ("POST", "/endpoints/demo/digits/score", {"x-forwarded-for": "8.8.8.8"}, 401),
        ("POST", "/endpoints/demo/digits/score", stranger, 403),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/.env", {}, 404),
    ):
        async with web.request(method, path, headers=headers) as answer:
            assert answer.status == status
    assert told == [
        (action, "KEY_MISSING", "", endpoint, "127.0.0.1"),
        (action, "PERMISSION_DENIED", "users/TelemetryWriter", endpoint, "127.0.0.1"),
        ("GET /etc/passwd", "PATH_NOT_FOUND", "", "", "127.0.0.1"),
        ("GET /.env", "PATH_NOT_FOUND", "", "", "127.0.0.1"),
    ]


async def test_a_body_of_any_size_is_told_once_and_never_held(
    web: aiohttp.ClientSession, told: list[Told]
) -> None:
    method = "/stellwerk.registry.v1.WorkspaceService/CreateWorkspace"
    headers = {"content-type": "application/json"}
    async with web.post(method, data=BytesIO(bytes(17 * 1024 * 1024)), headers=headers) as answer:
        assert answer.status == 429
    assert told == [(f"POST {method}", "PAYLOAD_TOO_LARGE", "", "", "127.0.0.1")]


async def test_grpc(door: Door, told: list[Told]) -> None:
    stub = oip_grpc.GRPCInferenceServiceStub(door.channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.ModelInfer(oip.ModelInferRequest(), metadata=(("stellwerk-endpoint", "demo/digits"),))
    assert told == [
        (
            "inference.GRPCInferenceService/ModelInfer",
            "KEY_MISSING",
            "",
            "workspaces/demo/endpoints/digits",
            "127.0.0.1",
        )
    ]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[2001:db8::7]:4711", "2001:db8::7"),
        ("unix:", ""),
    ],
)
def test_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of_peer(peer) == address
