"""`inference` on real servers, with stand-ins for the services that it asks, and for a scoring server."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import grpc
from aiohttp import web

from services.secrets.tests.support import Secrets
from stellwerk_inference.config import InferenceSettings
from stellwerk_inference.main import compose
from stellwerk_launcher import ports
from stellwerk_launcher.testing import plaintext_command
from stellwerk_platform.app import App
from stellwerk_platform.auth import CallerCredentials, StaticCredentials
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import NotFound, PlatformError
from stellwerk_platform.grpc_client import connect
from stellwerk_platform.grpc_server import abort
from stellwerk_platform.journal import CONTENT_TYPE, Fact, entry
from stellwerk_protos.common.v1.common_pb2 import File, Reason
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.inference.v1 import (
    batches_pb2_grpc,
    collections_pb2_grpc,
    endpoints_pb2_grpc,
    keys_pb2_grpc,
    loads_pb2_grpc,
    monitors_pb2_grpc,
)
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.registry.v1 import (
    blobs_pb2,
    datasets_pb2,
    environments_pb2,
    members_pb2,
    models_pb2,
    quotas_pb2,
    workspaces_pb2,
)
from stellwerk_protos.runs.v1 import retention_pb2, snapshots_pb2

WORKSPACE = "workspaces/demo"
SNAPSHOT = f"{WORKSPACE}/snapshots/{'a' * 64}"
_VERBS = {
    compute.ALLOCATION_STATE_QUEUED: "queued",
    compute.ALLOCATION_STATE_PREPARING: "preparing",
    compute.ALLOCATION_STATE_RUNNING: "running",
    compute.ALLOCATION_STATE_FAILED: "failed",
    compute.ALLOCATION_STATE_CANCELED: "canceled",
    compute.ALLOCATION_STATE_NOT_RESPONDING: "not_responding",
}


class Others(grpc.GenericRpcHandler):
    """Registry, runs and compute: they know what `KNOWN` names, in version 3 where "latest" is asked for."""

    known = frozenset(
        {
            WORKSPACE,
            f"{WORKSPACE}/quota",
            SNAPSHOT,
            f"{WORKSPACE}/computes/local",
            *(f"{WORKSPACE}/environments/sklearn/versions/{version}" for version in ("3", "latest")),
            *(f"{WORKSPACE}/datasets/digits/versions/{version}" for version in ("1", "3", "latest")),
            *(f"{WORKSPACE}/models/digits/versions/{version}" for version in ("1", "3", "latest")),
        }
    )

    def __init__(self) -> None:
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self._methods: dict[str, Any] = {
            "GetAccess": (members_pb2.GetAccessRequest, members_pb2.Access),
            "GetWorkspace": (workspaces_pb2.GetWorkspaceRequest, workspaces_pb2.Workspace),
            "GetQuota": (quotas_pb2.GetQuotaRequest, quotas_pb2.Quota),
            "GetEnvironmentVersion": (
                environments_pb2.GetEnvironmentVersionRequest,
                environments_pb2.EnvironmentVersion,
            ),
            "GetModelVersion": (models_pb2.GetModelVersionRequest, models_pb2.ModelVersion),
            "GetSnapshot": (snapshots_pb2.GetSnapshotRequest, snapshots_pb2.Snapshot),
            "GetCompute": (compute.GetComputeRequest, compute.Compute),
            "GetDatasetVersion": (datasets_pb2.GetDatasetVersionRequest, datasets_pb2.DatasetVersion),
            "CreateDatasetVersion": (datasets_pb2.CreateDatasetVersionRequest, datasets_pb2.DatasetVersion),
            "PrepareUploads": (blobs_pb2.PrepareUploadsRequest, blobs_pb2.PrepareUploadsResponse),
            "PrepareDownloads": (blobs_pb2.PrepareDownloadsRequest, blobs_pb2.PrepareDownloadsResponse),
            "ReleaseBlobs": (blobs_pb2.ReleaseBlobsRequest, blobs_pb2.ReleaseBlobsResponse),
            "ListReferencedBlobs": (
                retention_pb2.ListReferencedBlobsRequest,
                retention_pb2.ListReferencedBlobsResponse,
            ),
        }
        # Digests that runs refers to, those that are too fresh when they are asked for first, those released.
        self.referenced: set[str] = set()
        self.fresh: set[str] = set()
        self.released: asyncio.Queue[str] = asyncio.Queue()
        # The files of the dataset digits, and what was registered, by request id.
        self.files = [File(path=f"{number:03}.csv", sha256="d" * 64) for number in range(25)]
        self.registered: dict[str, datasets_pb2.DatasetVersion] = {}
        # Why nothing is registered; None: it is.
        self.refusal: PlatformError | None = None
        # What a test answers itself, by the type of the request.
        self.answers: dict[type, Callable[[Any], Any]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        request_type, answer_type = self._methods[handler_call_details.method.rsplit("/", 1)[1]]

        async def answer(request: Any, context: Any) -> Any:
            if type(request) in self.answers:
                return self.answers[type(request)](request)
            if isinstance(request, members_pb2.GetAccessRequest):
                return answer_type(role=members_pb2.ROLE_OWNER)
            if isinstance(request, blobs_pb2.PrepareUploadsRequest):
                return answer_type()
            if isinstance(request, retention_pb2.ListReferencedBlobsRequest):
                return answer_type(sha256=self.referenced & set(request.sha256))
            if isinstance(request, blobs_pb2.ReleaseBlobsRequest):
                return self._release(request)
            if isinstance(request, datasets_pb2.CreateDatasetVersionRequest):
                if self.refusal is not None:
                    await abort(context, self.refusal)
                return self._register(request)
            if request.name not in self.known:
                await abort(context, NotFound("NOT_FOUND_THERE", f"There is no {request.name}."))
            result = answer_type(name=request.name.replace("latest", "3"))
            if isinstance(result, snapshots_pb2.Snapshot):
                result.files.extend([File(path="score.py"), File(path="data.txt")])
            if isinstance(result, datasets_pb2.DatasetVersion):
                result.files.extend(self.files)
            return result

        return grpc.unary_unary_rpc_method_handler(
            answer, request_type.FromString, lambda message: message.SerializeToString()
        )

    def _release(self, request: blobs_pb2.ReleaseBlobsRequest) -> blobs_pb2.ReleaseBlobsResponse:
        later = self.fresh & set(request.sha256)
        self.fresh -= later
        for digest in sorted(set(request.sha256) - later):
            self.released.put_nowait(digest)
        return blobs_pb2.ReleaseBlobsResponse(later=later)

    def _register(self, request: datasets_pb2.CreateDatasetVersionRequest) -> datasets_pb2.DatasetVersion:
        name = f"{request.parent}/versions/{len(self.registered) + 1}"
        version = datasets_pb2.DatasetVersion(name=name, files=request.files, tags=request.tags)
        return self.registered.setdefault(request.request_id, version)


class Scorer:
    """Answers readiness as it is told."""

    def __init__(self) -> None:
        self.ready = True
        self.asked = asyncio.Event()
        # The example of @input_schema, what /score answers, and what it was sent.
        self.example: Any = None
        self.status = 200
        self.scored: list[Any] = []
        application = web.Application()
        application.router.add_get("/swagger.json", self._swagger)
        application.router.add_post("/score", self._score)
        application.router.add_get("/v2/health/ready", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        self.address = ""

    async def _answer(self, _request: web.Request) -> web.Response:
        self.asked.set()
        return web.json_response({}, status=200 if self.ready else 503)

    async def _swagger(self, _request: web.Request) -> web.Response:
        return web.json_response({"definitions": {"ServiceInput": {"example": self.example or {}}}})

    async def _score(self, request: web.Request) -> web.Response:
        self.scored.append(await request.json())
        assert request.headers["authorization"].startswith("Bearer ")
        failure = {"reason": "SCRIPT_ERROR", "message": "The script raised KeyError."}
        return web.json_response({} if self.status == 200 else failure, status=self.status)

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Scorer"]:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await self._runner.cleanup()


@dataclass
class Inference:
    """The running service, its stub as the owner calls it, and compute's side of the journal."""

    secrets: Secrets
    bus: Bus
    others: Others
    port: int = field(default_factory=lambda: ports.choose(["inference"], {})["inference"])
    ready_seconds: float = 120.0
    stub: Any = None
    routes_stub: Any = None
    keys: Any = None
    collections: Any = None
    collections_of_services: Any = None
    loads: Any = None
    monitors: Any = None
    loads_of_gateways: Any = None
    batches: Any = None
    _revisions: dict[str, int] = field(default_factory=dict)

    @property
    def settings(self) -> InferenceSettings:
        """What the service reads from its environment."""
        servers = self.secrets.servers
        others = f"127.0.0.1:{self.others.port}"
        return InferenceSettings(
            namespace=self.bus.names.namespace,
            listen=f"127.0.0.1:{self.port}",
            mongodb_uri=servers.mongodb_uri,
            nats_url=servers.nats_url,
            secrets_address=self.secrets.address,
            registry_address=others,
            runs_address=others,
            compute_address=others,
            vault_role_id=servers.vault_role_id,
            vault_secret_id=servers.vault_secret_id,
            replica_ready_seconds=self.ready_seconds,
            blob_grace_seconds=1.0,
        )

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Inference"]:
        app = App("inference")
        try:
            await compose(app, self.settings)
            async with self._called():
                yield self
        finally:
            await app.leave()

    @asynccontextmanager
    async def process(self, failpoint: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
        """The service as a process of its own that dies at a place, once it answers."""
        variables = {
            f"STELLWERK_{one.name.upper()}": str(getattr(self.settings, one.name))
            for one in fields(self.settings)
        }
        process = await asyncio.create_subprocess_exec(
            *plaintext_command("inference", "InferenceSettings"),
            env={**os.environ, **variables, "STELLWERK_FAILPOINT": failpoint},
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with self._called():
                yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    @asynccontextmanager
    async def _called(self) -> AsyncIterator[None]:
        """The stubs, as the owner and as a service."""
        settings = self.settings
        address = settings.listen
        async with (
            connect(self.secrets.address) as anonymous,
            connect(address, StaticCredentials(self.secrets.owner_key)) as channel,
            connect(
                address, CallerCredentials(anonymous, settings.vault_role_id, settings.vault_secret_id)
            ) as internal,
        ):
            self.stub = endpoints_pb2_grpc.EndpointServiceStub(channel)
            self.collections = collections_pb2_grpc.CollectionServiceStub(channel)
            self.keys = keys_pb2_grpc.EndpointKeyServiceStub(channel)
            self.batches = batches_pb2_grpc.BatchServiceStub(channel)
            self.loads = loads_pb2_grpc.LoadServiceStub(channel)
            self.monitors = monitors_pb2_grpc.MonitorServiceStub(channel)
            self.loads_of_gateways = loads_pb2_grpc.LoadServiceStub(internal)
            self.routes_stub = endpoints_pb2_grpc.EndpointServiceStub(internal)
            self.collections_of_services = collections_pb2_grpc.CollectionServiceStub(internal)
            yield

    async def create_endpoint(self, endpoint_id: str) -> pb.Endpoint:
        request = pb.CreateEndpointRequest(parent=WORKSPACE, endpoint_id=endpoint_id)
        return await self.stub.CreateEndpoint(request)  # type: ignore[no-any-return]

    async def create_deployment(self, endpoint: str, deployment_id: str, replicas: int = 1) -> pb.Deployment:
        return await self.stub.CreateDeployment(  # type: ignore[no-any-return]
            deployment_request(endpoint, deployment_id, replicas)
        )

    async def allocate(
        self, replica: str, state: compute.AllocationState.ValueType, address: str = "", code: str = "TEST"
    ) -> None:
        """Publishes what compute publishes when the allocation of a replica has moved."""
        revision = self._revisions[replica] = self._revisions.get(replica, 0) + 1
        allocation = compute.Allocation(
            name=f"{WORKSPACE}/allocations/a{abs(hash(replica))}",
            revision=revision,
            owner=replica,
            state=state,
            reason=Reason(code=code, message=f"{code} said compute"),
            http_address=address,
            grpc_address=address,
        )
        made = entry(self.bus.names.namespace, "compute", allocation, Fact(_VERBS[state], code))
        headers = {"Nats-Msg-Id": made.id, "Content-Type": CONTENT_TYPE}
        await self.bus.publish(made.subject, made.body, headers)

    async def deployment(self, name: str, state: pb.ProvisioningState.ValueType) -> pb.Deployment:
        """The deployment once it has this state."""
        request = pb.GetDeploymentRequest(name=name)
        found: pb.Deployment = await self._until(lambda: self.stub.GetDeployment(request), state)
        return found

    async def endpoint(self, name: str, state: pb.ProvisioningState.ValueType) -> pb.Endpoint:
        """The endpoint once it has this state."""
        request = pb.GetEndpointRequest(name=name)
        found: pb.Endpoint = await self._until(lambda: self.stub.GetEndpoint(request), state)
        return found

    async def _until(self, read: Callable[[], Any], state: pb.ProvisioningState.ValueType) -> Any:
        """Reads after each event of the service until the resource has this state."""
        changed = asyncio.Event()

        async def wake(_: Any) -> None:
            changed.set()

        subject = self.bus.names.subject("journal", "*", "inference", ">")
        subscription = await self.bus.client.subscribe(subject, cb=wake)
        await self.bus.client.flush()
        try:
            async with asyncio.timeout(120):
                while (found := await read()).state != state:
                    await changed.wait()
                    changed.clear()
                return found
        finally:
            await subscription.unsubscribe()


def deployment_request(endpoint: str, deployment_id: str, replicas: int = 1) -> pb.CreateDeploymentRequest:
    return pb.CreateDeploymentRequest(
        parent=endpoint,
        deployment_id=deployment_id,
        models=[f"{WORKSPACE}/models/digits/versions/latest"],
        environment=f"{WORKSPACE}/environments/sklearn/versions/latest",
        snapshot=SNAPSHOT,
        scoring_script="score.py",
        compute=f"{WORKSPACE}/computes/local",
        replica_count=replicas,
        variables={"THRESHOLD": "0.5"},
    )


class Journal:
    """The events of `inference`, in order, from the moment it is opened."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @asynccontextmanager
    async def follow(self, bus: Bus) -> AsyncIterator["Journal"]:
        async def collect(message: Any) -> None:
            await self._queue.put(json.loads(message.data))

        subject = bus.names.subject("journal", "*", "inference", ">")
        subscription = await bus.client.subscribe(subject, cb=collect)
        await bus.client.flush()
        try:
            yield self
        finally:
            await subscription.unsubscribe()

    async def next(self, kind: str, *, seconds: float = 120) -> dict[str, Any]:
        """The next event `<resource>.<verb>`; others are skipped."""
        async with asyncio.timeout(seconds):
            while True:
                event: dict[str, Any] = await self._queue.get()
                if event["type"] == f"stellwerk.inference.{kind}.v1":
                    return event

    async def each(self, *kinds: str) -> dict[str, dict[str, Any]]:
        """The next event of each `<resource>.<verb>`, in whatever order; others are skipped."""
        found: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(120):
            while len(found) < len(kinds):
                event = await self._queue.get()
                kind = event["type"].removeprefix("stellwerk.inference.").removesuffix(".v1")
                if kind in kinds:
                    found.setdefault(kind, event)
        return found

    async def together(self, **counts: int) -> dict[str, list[dict[str, Any]]]:
        """So many events of each `<resource>_<verb>`, in whatever order; others are skipped."""
        kinds = {f"stellwerk.inference.{name.replace('_', '.', 1)}.v1": name for name in counts}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in counts}
        async with asyncio.timeout(120):
            while any(len(found[name]) < count for name, count in counts.items()):
                event = await self._queue.get()
                if event["type"] in kinds:
                    found[kinds[event["type"]]].append(event)
        return found
