"""Stands for a scorer where the real one is not needed: says who it is and what it was sent."""

import asyncio
from typing import Any

import grpc
from aiohttp import web

from stellwerk_platform.errors import InvalidArgument, Unavailable
from stellwerk_platform.grpc_server import abort
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip

ENDPOINT = "workspaces/demo/endpoints/digits"


class FakeReplica:
    """One replica with both faces."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[web.Request] = []
        self.metadata: dict[str, Any] = {}
        self.drop_next = False
        self.starting = False
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        self._server = grpc.aio.server()
        infer = grpc.unary_unary_rpc_method_handler(
            self._infer, oip.ModelInferRequest.FromString, oip.ModelInferResponse.SerializeToString
        )
        service = grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService", {"ModelInfer": infer}
        )
        self._server.add_generic_rpc_handlers((service,))
        self.grpc_port = self._server.add_insecure_port("127.0.0.1:0")
        self.http_port = 0

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.http_port = self._runner.addresses[0][1]
        await self._server.start()

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._server.stop(None)

    def message(self, deployment: str) -> pb.Replica:
        return pb.Replica(
            name=f"{ENDPOINT}/deployments/{deployment}/replicas/{self.name}",
            http_address=f"127.0.0.1:{self.http_port}",
            grpc_address=f"127.0.0.1:{self.grpc_port}",
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.drop_next:
            self.drop_next = False
            assert request.transport is not None
            request.transport.abort()
        body = await request.read()
        self.requests.append(request)
        if self.starting:
            return web.json_response({"error": "starting", "reason": "WORKER_NOT_READY"}, status=503)
        if request.path == "/score" and body == b"hang":
            await asyncio.sleep(30)
        if request.path == "/score" and body == b"bad":
            return web.json_response({"error": "bad", "reason": "BAD"}, status=400)
        if request.path == "/score" and body == b"large":
            return web.Response(body=bytes(3_000_000))
        document = {"by": self.name, "path": request.raw_path, "body": body.decode()}
        return web.json_response(document, headers={"x-script": "yes"})

    async def _infer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        self.metadata = dict(context.invocation_metadata())
        if self.starting:
            await abort(context, Unavailable("WORKER_NOT_READY", "starting"))
        if request.model_name == "unknown":
            await abort(context, InvalidArgument("BAD", "bad"))
        return oip.ModelInferResponse(model_name=self.name, id=request.id)


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
