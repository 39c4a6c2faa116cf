"""Puts the parts of batch scoring together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stellwerk_inference.batches.leases import Leases, Tokens
from stellwerk_inference.batches.progress import Settler
from stellwerk_inference.batches.scaler import BatchScaler
from stellwerk_inference.batches.service import BatchService
from stellwerk_inference.batches.store import BatchStore
from stellwerk_inference.changes import Changes
from stellwerk_inference.lifecycle import Lifecycle
from stellwerk_inference.store import Store
from stellwerk_inference.upstream import Upstream
from stellwerk_platform.app import App
from stellwerk_platform.grpc_server import Registration
from stellwerk_protos.inference.v1 import batches_pb2, batches_pb2_grpc

if TYPE_CHECKING:
    from stellwerk_protos.secrets.v1.tokens_pb2_grpc import TokenServiceAsyncStub


@dataclass(frozen=True)
class Parts:
    """What batch scoring shares with the rest of the service."""

    store: Store
    batches: BatchStore
    lifecycle: Lifecycle
    changes: Changes
    upstream: Upstream


def batch_scoring(app: App, parts: Parts, tokens: "TokenServiceAsyncStub") -> Registration:
    """Starts the loops; returns the service."""
    settler = Settler(parts.store, parts.batches, parts.changes, parts.upstream)
    app.background(settler.run())
    app.background(BatchScaler(parts.store, parts.batches, parts.lifecycle, parts.changes).run())
    leases = Leases(parts.store, parts.batches, settler, parts.changes, Tokens(tokens))
    return Registration(
        BatchService(parts.store, parts.batches, leases, settler, parts.changes, parts.upstream),
        batches_pb2_grpc.add_BatchServiceServicer_to_server,
        batches_pb2.DESCRIPTOR.services_by_name["BatchService"],
    )
