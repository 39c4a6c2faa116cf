"""States as people read them: `RUN_STATE_CANCEL_REQUESTED` -> `CancelRequested`."""

from stellwerk.errors import invalid
from stellwerk_protos.compute.v1 import computes_pb2
from stellwerk_protos.inference.v1 import batches_pb2, endpoints_pb2, monitors_pb2
from stellwerk_protos.runs.v1 import runs_pb2

RUN_OVER = frozenset({"Completed", "Failed", "Canceled"})
CHECK_OVER = frozenset({"Completed", "Failed"})


def run(message: runs_pb2.Run) -> str:
    """The state of a run."""
    return _words(runs_pb2.RunState.Name(message.state), "RUN_STATE_")


def provisioning(message: endpoints_pb2.Endpoint | endpoints_pb2.Deployment) -> str:
    """The state of an endpoint or deployment."""
    return _words(endpoints_pb2.ProvisioningState.Name(message.state), "PROVISIONING_STATE_")


def endpoint_kind(message: endpoints_pb2.Endpoint) -> str:
    """`online` or `batch`."""
    return "batch" if message.kind == endpoints_pb2.ENDPOINT_KIND_BATCH else "online"


def batch_job(message: batches_pb2.BatchJob) -> str:
    """The state of a batch job."""
    return _words(batches_pb2.BatchJobState.Name(message.state), "BATCH_JOB_STATE_")


def mini_batch(message: batches_pb2.MiniBatch) -> str:
    """The state of a mini-batch."""
    return _words(batches_pb2.MiniBatchState.Name(message.state), "MINI_BATCH_STATE_")


def mini_batch_state(word: str) -> batches_pb2.MiniBatchState.ValueType:
    """From `Failed`, in any case of letters, or "" for any; raises `StellwerkError`."""
    name = f"MINI_BATCH_STATE_{word.upper() or 'UNSPECIFIED'}"
    if name not in batches_pb2.MiniBatchState.DESCRIPTOR.values_by_name:
        known = "Use Waiting, Running, Succeeded or Failed."
        raise invalid("INVALID_STATE", f"No mini-batch is ever {word!r}.", known)
    return batches_pb2.MiniBatchState.Value(name)


def node(message: computes_pb2.Node) -> str:
    """The state of a node."""
    return _words(computes_pb2.NodeState.Name(message.state), "NODE_STATE_")


def compute_kind(message: computes_pb2.Compute) -> str:
    """The kind of a compute."""
    return _words(computes_pb2.ComputeKind.Name(message.kind), "COMPUTE_KIND_")


def monitor(state: "monitors_pb2.MonitorState.ValueType") -> str:
    """What a check found, or the last one of a monitor: `Ok`, `Drifted`, `NoData`, …; "" for not yet."""
    return _words(monitors_pb2.MonitorState.Name(state), "MONITOR_STATE_") if state else ""


def monitor_check(message: monitors_pb2.MonitorCheck) -> str:
    """Where a check is in its life."""
    return _words(monitors_pb2.MonitorCheckState.Name(message.state), "MONITOR_CHECK_STATE_")


def _words(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).replace("_", " ").title().replace(" ", "")
