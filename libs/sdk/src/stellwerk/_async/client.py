"""The entry point of the SDK."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from stellwerk import names
from stellwerk._async.activities import AsyncActivities
from stellwerk._async.core import AsyncCore
from stellwerk._async.people import AsyncKeys, AsyncSessions, AsyncUsers
from stellwerk._async.run import AsyncRun
from stellwerk._async.subscriptions import AsyncSubscriptions
from stellwerk._async.workspace import AsyncWorkspace
from stellwerk._async.workspaces import AsyncWorkspaces
from stellwerk.errors import invalid
from stellwerk.settings import Flags, resolve
from stellwerk_protos.compute.v1 import computes_pb2, computes_pb2_grpc
from stellwerk_protos.platform.v1 import platform_pb2, platform_pb2_grpc
from stellwerk_protos.runs.v1 import runs_pb2, runs_pb2_grpc
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc
from stellwerk_protos.telemetry.v1 import telemetry_pb2, telemetry_pb2_grpc


class AsyncClient:
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
        self._core = AsyncCore(resolve(flags))
        self._telemetry = telemetry_pb2_grpc.TelemetryServiceStub(self._core.channel)
        self.workspaces = AsyncWorkspaces(self._core)
        self.subscriptions = AsyncSubscriptions(self._core)
        # Of what lies in no workspace.
        self.activities = AsyncActivities(self._core, "")
        self.users = AsyncUsers(self._core)
        self.keys = AsyncKeys(self._core)
        self.sessions = AsyncSessions(self._core)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection."""
        await self._core.close()

    def workspace(self, name: str = "") -> AsyncWorkspace:
        """A workspace by name, else the configured one. Asks nobody whether it exists."""
        name = name or self._core.settings.workspace
        if not name:
            raise invalid(
                "WORKSPACE_MISSING",
                "No workspace is named.",
                "Give -w NAME, set STELLWERK_WORKSPACE, or run `stellwerk config set workspace NAME`.",
            )
        return AsyncWorkspace(self._core, names.workspace(name))

    async def whoami(self) -> tokens_pb2.Caller:
        """Who this client is: the person, service or run, and by which key."""
        stub = tokens_pb2_grpc.TokenServiceStub(self._core.channel)
        return await self._core.call(stub.GetCaller, tokens_pb2.GetCallerRequest())

    async def rotate_signing_key(self) -> tokens_pb2.SigningKey:
        """Has new tokens signed by a new key, within seconds; nobody is cut off. For administrators."""
        stub = tokens_pb2_grpc.TokenServiceStub(self._core.channel)
        return await self._core.call(stub.RotateSigningKey, tokens_pb2.RotateSigningKeyRequest())

    async def ship(self, folder: Path) -> runs_pb2.Run:
        """Delivers what a killed interactive run left on this machine (its folder), and ends the run."""
        return await self._core.ship(folder)

    async def nodes(self) -> Sequence[computes_pb2.Node]:
        """The machines with an agent."""
        stub = computes_pb2_grpc.ComputeServiceStub(self._core.channel)
        pages = await self._core.pages(stub.ListNodes, computes_pb2.ListNodesRequest())
        return [node for page in pages for node in page.nodes]

    async def diagnose(self) -> Sequence[platform_pb2.Check]:
        """Has every service try what it stands on with real operations; for administrators."""
        stub = platform_pb2_grpc.DiagnosisServiceStub(self._core.channel)
        return (await self._core.call(stub.Diagnose, platform_pb2.DiagnoseRequest())).checks

    async def trace(self, run: AsyncRun | str) -> telemetry_pb2.Trace:
        """The spans of a run's submit; takes a run, its full name, or a trace id."""
        if isinstance(run, AsyncRun):
            trace_id = run.message.trace_id
        elif run.startswith("workspaces/"):
            stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
            trace_id = (await self._core.call(stub.GetRun, runs_pb2.GetRunRequest(name=run))).trace_id
        else:
            trace_id = run
        request = telemetry_pb2.GetTraceRequest(trace_id=trace_id)
        return await self._core.call(self._telemetry.GetTrace, request)

    async def dead_letters(self) -> Sequence[telemetry_pb2.DeadLetter]:
        """Events that a consumer failed to handle."""
        request = telemetry_pb2.ListDeadLettersRequest()
        pages = await self._core.pages(self._telemetry.ListDeadLetters, request)
        return [letter for page in pages for letter in page.dead_letters]

    async def replay_dead_letter(self, sequence: int) -> None:
        """Hands a dead letter to its consumer once more."""
        request = telemetry_pb2.ReplayDeadLetterRequest(sequence=sequence)
        await self._core.call(self._telemetry.ReplayDeadLetter, request)
