# Generated from ../_async/client.py by scripts/generate_sync.py; do not edit.
"""The entry point of the SDK."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from stellwerk import names
from stellwerk._sync.activities import Activities
from stellwerk._sync.core import Core
from stellwerk._sync.people import Keys, Sessions, Users
from stellwerk._sync.run import Run
from stellwerk._sync.subscriptions import Subscriptions
from stellwerk._sync.workspace import Workspace
from stellwerk._sync.workspaces import Workspaces
from stellwerk.errors import invalid
from stellwerk.settings import Flags, resolve
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc
from stellwerk_protos.platform.v1 import platform_pb2, platform_pb2_grpc
from stellwerk_protos.runs.v1 import runs_pb2, runs_pb2_grpc
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc
from stellwerk_protos.telemetry.v1 import telemetry_pb2, telemetry_pb2_grpc


class Client:
    """A connection to Stellwerk. Addresses and key are found as docs/interfaces.md says.

    Every method raises `StellwerkError`.
    """

    def __init__(
        self,
        *,
        grpc_address: str | None = None,
        gateway_url: str | None = None,
        api_key: str | None = None,
        data_dir: Path | None = None,
        flags: Flags | None = None,
    ) -> None:
        if flags is None:
            flags = Flags(
                grpc_address=grpc_address, gateway_url=gateway_url, api_key=api_key, data_dir=data_dir
            )
        self._core = Core(resolve(flags))
        self._telemetry = telemetry_pb2_grpc.TelemetryServiceStub(self._core.channel)
        self.workspaces = Workspaces(self._core)
        self.subscriptions = Subscriptions(self._core)
        # Of what lies in no workspace.
        self.activities = Activities(self._core, "")
        self.users = Users(self._core)
        self.keys = Keys(self._core)
        self.sessions = Sessions(self._core)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._core.close()

    def workspace(self, name: str = "") -> Workspace:
        """A workspace by name, else the configured one. Asks nobody whether it exists."""
        name = name or self._core.settings.workspace
        if not name:
            raise invalid(
                "WORKSPACE_MISSING",
                "No workspace is named.",
                "Give -w NAME, set STELLWERK_WORKSPACE, or run `stellwerk config set workspace NAME`.",
            )
        return Workspace(self._core, names.workspace(name))

    def whoami(self) -> tokens_pb2.Caller:
        """Who this client is: the person, service or run, and by which key."""
        stub = tokens_pb2_grpc.TokenServiceStub(self._core.channel)
        return self._core.call(stub.GetCaller, tokens_pb2.GetCallerRequest())

    def rotate_signing_key(self) -> tokens_pb2.SigningKey:
        """Has new tokens signed by a new key, within seconds; nobody is cut off. For administrators."""
        stub = tokens_pb2_grpc.TokenServiceStub(self._core.channel)
        return self._core.call(stub.RotateSigningKey, tokens_pb2.RotateSigningKeyRequest())

    def ship(self, folder: Path) -> runs_pb2.Run:
        """Delivers what a killed interactive run left on this machine (its folder), and ends the run."""
        return self._core.ship(folder)

    def nodes(self) -> Sequence[computes_pb2.Node]:
        """The machines with an agent."""
        stub = computes_pb2_grpc.ComputeServiceStub(self._core.channel)
        pages = self._core.pages(stub.ListNodes, computes_pb2.ListNodesRequest())
        return [node for page in pages for node in page.nodes]

    def diagnose(self) -> Sequence[platform_pb2.Check]:
        """Has every service try what it stands on with real operations; for administrators."""
        stub = platform_pb2_grpc.DiagnosisServiceStub(self._core.channel)
        return (self._core.call(stub.Diagnose, platform_pb2.DiagnoseRequest())).checks

    def trace(self, run: Run | str) -> telemetry_pb2.Trace:
        """The spans of a run's submit; takes a run, its full name, or a trace id."""
        if isinstance(run, Run):
            trace_id = run.message.trace_id
        elif run.startswith("workspaces/"):
            stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
            trace_id = (self._core.call(stub.GetRun, runs_pb2.GetRunRequest(name=run))).trace_id
        else:
            trace_id = run
        request = telemetry_pb2.GetTraceRequest(trace_id=trace_id)
        return self._core.call(self._telemetry.GetTrace, request)

    def dead_letters(self) -> Sequence[telemetry_pb2.DeadLetter]:
        """Events that a consumer failed to handle."""
        request = telemetry_pb2.ListDeadLettersRequest()
        pages = self._core.pages(self._telemetry.ListDeadLetters, request)
        return [letter for page in pages for letter in page.dead_letters]

    def replay_dead_letter(self, sequence: int) -> None:
        """Hands a dead letter to its consumer once more."""
        request = telemetry_pb2.ReplayDeadLetterRequest(sequence=sequence)
        self._core.call(self._telemetry.ReplayDeadLetter, request)
