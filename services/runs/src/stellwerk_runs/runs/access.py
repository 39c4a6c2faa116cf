"""What a run may do to the runs below it, which its role alone does not allow.

A script makes child runs, and children of those, with the token of its own run. It logs to them,
renews, changes, cancels and ends them; every other run stays closed to it.
"""

from google.protobuf.message import Message

from stellwerk_platform import names
from stellwerk_platform.auth import Caller
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.runs.v1 import artifacts_pb2, ingest_pb2, runs_pb2, snapshots_pb2
from stellwerk_runs.runs import states
from stellwerk_runs.runs.store import RunStore

_KNOWN = 100_000
_RUN = "workspaces/*/runs/*"


class Access:
    """The rule, as `grpc_server.Server` takes it (`auth.Beyond`)."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        # The parent of a run never changes.
        self._parents: dict[str, str] = {}

    def forget_all(self, workspace: str) -> None:
        """Says that all runs of `workspaces/demo` are gone."""
        for name in [name for name in self._parents if name.startswith(f"{workspace}/")]:
            del self._parents[name]

    async def allows(self, caller: Caller, request: Message) -> bool:
        """Whether the run that calls may make this request although its role does not say so."""
        if caller.role != "Workload":
            return False
        match request:
            case runs_pb2.CreateRunRequest():
                return await self._may_create(caller.subject, request)
            case snapshots_pb2.CreateSnapshotRequest():
                return request.parent == _workspace(caller.subject)
            case runs_pb2.UpdateRunRequest():
                return await self.descends(request.run.name, caller.subject)
            case runs_pb2.RenewRunRequest() | runs_pb2.FinishRunRequest() | runs_pb2.CancelRunRequest():
                return await self.descends(request.name, caller.subject)
            case artifacts_pb2.CreateArtifactsRequest():
                return await self.descends(request.parent, caller.subject)
            case ingest_pb2.AppendRequest():
                return await self.descends(request.run, caller.subject)
            case _:
                return False

    async def descends(self, run: str, ancestor: str) -> bool:
        """Whether `ancestor` is somewhere above `run`; a run is not above itself."""
        if _workspace(run) != _workspace(ancestor):
            return False
        while run := await self._parent(run):
            if run == ancestor:
                return True
        return False

    async def _parent(self, run: str) -> str:
        """The parent's name; "" at the top, and for a run that does not exist."""
        if (known := self._parents.get(run)) is not None:
            return known
        found = await self._runs.runs.find(run)
        if found is None:
            return ""
        if len(self._parents) >= _KNOWN:
            self._parents.clear()
        self._parents[run] = found.parent_run
        return found.parent_run

    async def _may_create(self, subject: str, request: runs_pb2.CreateRunRequest) -> bool:
        """A child of the run or of one below it, of the same experiment, while the run lives."""
        parent = request.parent_run
        if request.parent != _workspace(subject):
            return False
        if parent != subject and not await self.descends(parent, subject):
            return False
        found = await self._runs.runs.find(subject)
        return (
            found is not None
            and not states.is_terminal(found.state)
            and request.experiment == found.experiment
        )


def _workspace(run: str) -> str:
    """`workspaces/{w}` of a run; "" for what is no run's name."""
    try:
        workspace, _ = names.parse(_RUN, run)
    except InvalidArgument:
        return ""
    return f"workspaces/{workspace}"
