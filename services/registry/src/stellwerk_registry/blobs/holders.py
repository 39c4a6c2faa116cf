"""Who refers to blobs, beside `runs`, which asks itself before it gives some up."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from stellwerk_protos.inference.v1 import collections_pb2

if TYPE_CHECKING:
    from stellwerk_protos.inference.v1.collections_pb2_grpc import CollectionServiceAsyncStub

_BATCH = 1_000
# Less than callers wait: they are to hear that nobody knows.
_ANSWER_SECONDS = 5.0


class Holder(Protocol):
    """Something that refers to blobs."""

    async def referred(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """Those of the blobs to which something in the workspace refers."""


class CollectedData:
    """What deployments collect, which `inference` knows; its errors go on, for then nothing may go."""

    def __init__(self, stub: "CollectionServiceAsyncStub") -> None:
        self._stub = stub

    async def referred(self, workspace: str, digests: Sequence[str]) -> set[str]:
        """As any holder."""
        found: set[str] = set()
        for start in range(0, len(digests), _BATCH):
            some = digests[start : start + _BATCH]
            request = collections_pb2.ListCollectedBlobsRequest(parent=workspace, sha256=some)
            found.update((await self._stub.ListCollectedBlobs(request, timeout=_ANSWER_SECONDS)).sha256)
        return found
