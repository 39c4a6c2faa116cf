"""Endpoints: addresses that deployments stand behind."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stellwerk import names, states
from stellwerk._async.core import AsyncCore
from stellwerk._async.endpoint_keys import auth_mode
from stellwerk.errors import invalid
from stellwerk_protos.inference.v1 import endpoints_pb2, endpoints_pb2_grpc


class AsyncEndpoints:
    """The endpoints of a workspace."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = endpoints_pb2_grpc.EndpointServiceStub(core.channel)

    async def create(
        self,
        name: str,
        *,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        auth: str = "both",
        batch: bool = False,
    ) -> "AsyncEndpoint":
        """Creates an endpoint without deployments and without keys (`endpoint_keys.regenerate`).

        `auth`: what callers may show, `key`, `token` or `both`. `batch`: its deployments score datasets
        (`batches`) and answer no requests.
        """
        kind = endpoints_pb2.ENDPOINT_KIND_BATCH if batch else endpoints_pb2.ENDPOINT_KIND_ONLINE
        request = endpoints_pb2.CreateEndpointRequest(
            parent=self._parent,
            endpoint_id=name,
            description=description,
            tags=tags,
            auth_mode=auth_mode(auth),
            kind=kind,
        )
        return AsyncEndpoint(self._core, await self._core.call(self._stub.CreateEndpoint, request))

    async def get(self, name: str) -> "AsyncEndpoint":
        """Returns one endpoint."""
        request = endpoints_pb2.GetEndpointRequest(name=self._name(name))
        return AsyncEndpoint(self._core, await self._core.call(self._stub.GetEndpoint, request))

    async def list(self, *, limit: int | None = None) -> Sequence["AsyncEndpoint"]:
        """The endpoints, by name."""
        request = endpoints_pb2.ListEndpointsRequest(parent=self._parent)
        pages = await self._core.pages(self._stub.ListEndpoints, request, limit)
        return [AsyncEndpoint(self._core, endpoint) for page in pages for endpoint in page.endpoints]

    async def set_traffic(
        self,
        name: str,
        traffic: Mapping[str, int] | None = None,
        *,
        mirror: Mapping[str, int] | None = None,
        sticky_header: str | None = None,
        etag: str = "",
    ) -> "AsyncEndpoint":
        """Replaces the split: percent by deployment, 100 together. None leaves a part as it is.

        `mirror`: deployments that get copies of so many percent of the requests; nobody sees their
        answers. `sticky_header`: requests with the same value of this header go to the same deployment;
        "" for none. `etag` refuses a lost update.
        """
        if traffic is None:
            current = (await self.get(name)).message
            traffic, etag = current.traffic, etag or str(current.revision)
        request = endpoints_pb2.SetTrafficRequest(
            name=self._name(name), traffic=traffic, etag=etag, sticky_header=sticky_header
        )
        if mirror is not None:
            request.mirror_traffic.CopyFrom(endpoints_pb2.MirrorTraffic(percents=mirror))
        return AsyncEndpoint(self._core, await self._core.call(self._stub.SetTraffic, request))

    async def delete(self, name: str) -> "AsyncEndpoint":
        """Deletes an endpoint with its deployments."""
        request = endpoints_pb2.DeleteEndpointRequest(name=self._name(name))
        return AsyncEndpoint(self._core, await self._core.call(self._stub.DeleteEndpoint, request))

    def _name(self, name: str) -> str:
        return names.resource(self._parent, "endpoints", name)


class AsyncEndpoint:
    """One endpoint: `message` is its state when it was read."""

    def __init__(self, core: AsyncCore, message: endpoints_pb2.Endpoint) -> None:
        self._core = core
        self.message = message

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} {self.state}>"

    @property
    def name(self) -> str:
        """The full name."""
        return self.message.name

    @property
    def id(self) -> str:
        """The last segment of the name."""
        return names.last(self.message.name)

    @property
    def state(self) -> str:
        """`Creating`, `Succeeded`, …"""
        return states.provisioning(self.message)

    @property
    def is_batch(self) -> bool:
        """Whether its deployments score datasets instead of answering requests."""
        return self.message.kind == endpoints_pb2.ENDPOINT_KIND_BATCH

    @property
    def url(self) -> str:
        """Where HTTP clients score; `/v2` of the Open Inference Protocol lies beside it. Of a batch
        endpoint, where they start jobs."""
        what = "jobs" if self.is_batch else "score"
        return f"{self._core.settings.gateway_url.rstrip('/')}{self.message.path}/{what}"

    async def score(self, data: Any) -> Any:
        """Sends `data` as JSON (bytes as they are) and returns the JSON of the answer."""
        if self.is_batch:
            raise invalid(
                "ENDPOINT_IS_BATCH",
                f"{self.id} is a batch endpoint: it answers no requests.",
                f"Score a dataset: `stellwerk batch submit {self.id} DATASET`.",
            )
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        answer = await self._core.post(f"{self.message.path}/score", body)
        return json.loads(answer)
