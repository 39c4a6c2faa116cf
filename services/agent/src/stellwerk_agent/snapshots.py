"""Snapshots on the node: they never change, so that each is asked for once."""

from collections import OrderedDict

from google.protobuf.message import DecodeError

from stellwerk_agent.blobs import Blobs
from stellwerk_agent.calls import call
from stellwerk_agent.failure import StepFailed
from stellwerk_platform import names
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.runs.v1 import snapshots_pb2, snapshots_pb2_grpc

# Of 5,000 files at most each: larger ones have a manifest, which lies among the blobs.
_REMEMBERED = 50


class Snapshots:
    """File lists by the name of their snapshot."""

    def __init__(self, stub: "snapshots_pb2_grpc.SnapshotServiceAsyncStub", blobs: Blobs) -> None:
        self._stub = stub
        self._blobs = blobs
        self._known: OrderedDict[str, snapshots_pb2.Snapshot] = OrderedDict()

    async def files(self, name: str) -> list[common_pb2.File]:
        """The files of a snapshot; raises `PlatformError` when there is none of that name."""
        snapshot = self._known.get(name)
        if snapshot is None:
            snapshot = await call(self._stub.GetSnapshot, snapshots_pb2.GetSnapshotRequest(name=name))
            self._known[name] = snapshot
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if not snapshot.manifest:
            return list(snapshot.files)
        content = await self._blobs.read(names.workspace_of(name), snapshot.manifest)
        try:
            return list(snapshots_pb2.Manifest.FromString(content).files)
        except DecodeError as error:
            raise StepFailed(
                "MANIFEST_INVALID",
                f"The manifest of {name} cannot be read: {error}.",
                "Submit the run again.",
            ) from error
