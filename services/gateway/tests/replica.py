"""Stands for a scorer where the real one is not needed: says who it is and what it was sent."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from aiohttp import web

from stellwerk_platform.errors import InvalidArgument, PlatformError, Unavailable, to_status
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip

ENDPOINT = "workspaces/demo/endpoints/digits"


class FakeReplica:
    """One replica: the Azure contract, the Open Inference Protocol, and messages of the gRPC door."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.metadata: dict[str, Any] = {}
        self.drop_next = False
        self.starting = False
        self.ready = True
        # What it says that it uses.
        self.usage = ""
        # What those showed who asked for its health.
        self.probes: list[str] = []
        # Clear, it holds all requests up until it is set.
        self.gate = asyncio.Event()
        self.gate.set()
        # Requests that have come, whether or not they were answered.
        self.arrived = 0
        self.http_port = 0
        # Where it listens, what it shows there, and the certificate (PEM) that is announced of it.
        self.host = "127.0.0.1"
        self.secured: ssl.SSLContext | None = None
        self.certificate = ""
        application = web.Application(client_max_size=10_000_000)
        application.router.add_get("/v2/health/ready", self._ready)
        application.router.add_post("/inference.GRPCInferenceService/ModelInfer", self._infer)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)

    async def start(self, port: int = 0) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, port, ssl_context=self.secured)
        await site.start()
        self.http_port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    def message(self, deployment: str) -> pb.Replica:
        return pb.Replica(
            name=f"{ENDPOINT}/deployments/{deployment}/replicas/{self.name}",
            http_address=f"{self.host}:{self.http_port}",
            certificate=self.certificate,
        )

    async def _ready(self, request: web.Request) -> web.Response:
        self.probes.append(request.headers.get("authorization", ""))
        headers = {"x-stellwerk-usage": self.usage} if "x-stellwerk-usage" in request.headers else {}
        return web.json_response({"ready": self.ready}, status=200 if self.ready else 503, headers=headers)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.arrived += 1
        if self.drop_next:
            self.drop_next = False
            assert request.transport is not None
            request.transport.abort()
        body = await request.read()
        self.requests.append(request)
        self.bodies.append(body)
        await self.gate.wait()
        if self.starting:
            return web.json_response({"error": "starting", "reason": "WORKER_NOT_READY"}, status=503)
        if request.path == "/score" and body == b"bad":
            return web.json_response({"error": "bad", "reason": "BAD"}, status=400)
        if request.path == "/score" and body == b"large":
            return web.Response(body=bytes(3_000_000))
        if request.path == "/score" and body == b"stream":
            return await self._stream(request)
        document = {"by": self.name, "path": request.raw_path, "body": body.decode()[:1000]}
        answer = web.json_response(document, headers={"x-script": "yes"})
        if "cookie" in request.headers:
            # One of its own, and one that is the door's.
            answer.set_cookie("seen", "1")
            answer.set_cookie("stellwerk_session", "swk_of_somebody_else")
        return answer

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(30):
            await response.write(bytes(100_000))
        await response.write_eof()
        return response

    async def _infer(self, request: web.Request) -> web.Response:
        self.arrived += 1
        self.metadata = {name.lower(): value for name, value in request.headers.items()}
        if self.starting:
            return _failed(Unavailable("WORKER_NOT_READY", "starting"))
        message = oip.ModelInferRequest.FromString(await request.read())
        if message.model_name == "unknown":
            return _failed(InvalidArgument("BAD", "bad"))
        answer = oip.ModelInferResponse(model_name=self.name, id=message.id)
        return web.Response(body=answer.SerializeToString(), content_type="application/proto")


async def until(condition: Callable[[], bool]) -> None:
    """Returns when something is so that nobody announces."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _failed(error: PlatformError) -> web.Response:
    body = to_status(error).SerializeToString()
    return web.Response(body=body, status=error.http_status, content_type="application/proto")


def route(**deployments: tuple[int, list[FakeReplica]]) -> pb.Route:
    """A route of the endpoint: deployment id to percent and replicas."""
    return pb.Route(
        endpoint=ENDPOINT,
        targets=[
            pb.Target(
                deployment=f"{ENDPOINT}/deployments/{name}",
                percent=percent,
                replicas=[replica.message(name) for replica in replicas],
            )
            for name, (percent, replicas) in deployments.items()
        ],
    )
