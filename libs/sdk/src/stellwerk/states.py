"""States as people read them: `RUN_STATE_CANCEL_REQUESTED` -> `CancelRequested`."""

from stellwerk_protos.compute.v1 import computes_pb2
from stellwerk_protos.inference.v1 import endpoints_pb2
from stellwerk_protos.runs.v1 import runs_pb2

RUN_OVER = frozenset({"Completed", "Failed", "Canceled"})


def run(message: runs_pb2.Run) -> str:
    """The state of a run."""
    return _words(runs_pb2.RunState.Name(message.state), "RUN_STATE_")


def provisioning(message: endpoints_pb2.Endpoint | endpoints_pb2.Deployment) -> str:
    """The state of an endpoint or deployment."""
    return _words(endpoints_pb2.ProvisioningState.Name(message.state), "PROVISIONING_STATE_")


def node(message: computes_pb2.Node) -> str:
    """The state of a node."""
    return _words(computes_pb2.NodeState.Name(message.state), "NODE_STATE_")


def compute_kind(message: computes_pb2.Compute) -> str:
    """The kind of a compute."""
    return _words(computes_pb2.ComputeKind.Name(message.kind), "COMPUTE_KIND_")


def _words(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).replace("_", " ").title().replace(" ", "")
