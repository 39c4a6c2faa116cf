"""Where a workspace keeps its content, and how much it may use."""

from collections.abc import Sequence

from stellwerk import names
from stellwerk._async.core import AsyncCore
from stellwerk_protos.registry.v1 import (
    datastores_pb2,
    datastores_pb2_grpc,
    quotas_pb2,
    quotas_pb2_grpc,
)


class AsyncDatastores:
    """The datastores of a workspace."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = datastores_pb2_grpc.DatastoreServiceStub(core.channel)

    async def create(
        self,
        name: str,
        *,
        endpoint: str = "",
        bucket: str = "",
        prefix: str = "",
        access_key_secret: str = "",
        secret_key_secret: str = "",
        description: str = "",
    ) -> datastores_pb2.Datastore:
        """Creates a datastore: a prefix of the platform's own store, or with `endpoint` an S3 of yours.

        The keys are named secrets of the workspace. A probe is written, read and deleted first.
        """
        request = datastores_pb2.CreateDatastoreRequest(
            parent=self._parent,
            datastore_id=name,
            endpoint=endpoint,
            bucket=bucket,
            prefix=prefix,
            access_key_secret=self._secret(access_key_secret),
            secret_key_secret=self._secret(secret_key_secret),
            description=description,
        )
        return await self._core.call(self._stub.CreateDatastore, request)

    async def get(self, name: str) -> datastores_pb2.Datastore:
        """Returns one datastore."""
        request = datastores_pb2.GetDatastoreRequest(name=self._name(name))
        return await self._core.call(self._stub.GetDatastore, request)

    async def list(self, *, limit: int | None = None) -> Sequence[datastores_pb2.Datastore]:
        """The datastores, by name."""
        request = datastores_pb2.ListDatastoresRequest(parent=self._parent)
        pages = await self._core.pages(self._stub.ListDatastores, request, limit)
        return [datastore for page in pages for datastore in page.datastores]

    async def delete(self, name: str) -> None:
        """Removes a datastore in which nothing lies and which is not the default one."""
        request = datastores_pb2.DeleteDatastoreRequest(name=self._name(name))
        await self._core.call(self._stub.DeleteDatastore, request)

    def _name(self, name: str) -> str:
        return names.resource(self._parent, "datastores", name)

    def _secret(self, name: str) -> str:
        return names.resource(self._parent, "secrets", name) if name else ""


class AsyncQuota:
    """The limits of a workspace."""

    def __init__(self, core: AsyncCore, parent: str) -> None:
        self._core, self._name = core, f"{parent}/quota"
        self._stub = quotas_pb2_grpc.QuotaServiceStub(core.channel)

    async def get(self) -> quotas_pb2.Quota:
        """Limits, and what is used of them."""
        return await self._core.call(self._stub.GetQuota, quotas_pb2.GetQuotaRequest(name=self._name))

    async def set(
        self,
        *,
        nodes: int | None = None,
        cores: int | None = None,
        storage_bytes: int | None = None,
        cpu_seconds: int | None = None,
        reset_budget: bool = False,
    ) -> quotas_pb2.Quota:
        """Sets the limits that are given, the others stay; 0 takes a limit away. For administrators.

        `reset_budget` begins to count CPU seconds anew.
        """
        limits = (await self.get()).limits
        given = {"nodes": nodes, "cores": cores, "storage_bytes": storage_bytes, "cpu_seconds": cpu_seconds}
        for field, value in given.items():
            if value is not None:
                setattr(limits, field, value)
        request = quotas_pb2.SetQuotaRequest(name=self._name, limits=limits, reset_budget=reset_budget)
        return await self._core.call(self._stub.SetQuota, request)
