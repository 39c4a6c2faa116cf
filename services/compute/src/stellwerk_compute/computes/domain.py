"""Rules of computes."""

from stellwerk_platform import names
from stellwerk_platform.errors import NotFound
from stellwerk_protos.compute.v1 import computes_pb2

PATTERN = "workspaces/*/computes/*"
LOCAL = "local"
_POOLS = {computes_pb2.COMPUTE_KIND_LOCAL: "local"}


def local_of(workspace: str) -> computes_pb2.Compute:
    """The compute that every workspace has: the machine that the platform runs on."""
    return computes_pb2.Compute(
        name=f"workspaces/{workspace}/computes/{LOCAL}",
        kind=computes_pb2.COMPUTE_KIND_LOCAL,
        creator="services/compute",
    )


def pool_of(compute: computes_pb2.Compute) -> str:
    """The pool of nodes that serves a compute."""
    return _POOLS[compute.kind]


def missing(name: str) -> NotFound:
    """The error for a compute that does not exist."""
    workspace = names.workspace_of(name)
    return NotFound(
        "COMPUTE_NOT_FOUND",
        f"There is no compute {names.id_of(name)!r} in workspace {workspace!r}.",
        f"Use {LOCAL!r}, or list what there is with `stellwerk compute list`.",
    )
