"""The life of one allocation on the node, in steps that can be taken up again after any crash."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from opentelemetry.trace import Status, StatusCode

from stellwerk_agent import processes
from stellwerk_agent.calls import call
from stellwerk_agent.command import Command, Exit
from stellwerk_agent.credentials import work_for
from stellwerk_agent.environments import Environment
from stellwerk_agent.failure import StepFailed, Stopped, reason_of
from stellwerk_agent.files import protect, remove
from stellwerk_agent.folder import ENVIRONMENT_LOG, AllocationFolder
from stellwerk_agent.node import Node
from stellwerk_platform import failpoints, names, telemetry
from stellwerk_platform.documents import now
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import agents_pb2, computes_pb2, workloads_pb2
from stellwerk_protos.registry.v1 import datasets_pb2, models_pb2

log = logging.getLogger(__name__)
T = TypeVar("T")
PREPARING = computes_pb2.ALLOCATION_STATE_PREPARING
RUNNING = computes_pb2.ALLOCATION_STATE_RUNNING
FINALIZING = computes_pb2.ALLOCATION_STATE_FINALIZING
SUCCEEDED = computes_pb2.ALLOCATION_STATE_SUCCEEDED
FAILED = computes_pb2.ALLOCATION_STATE_FAILED
CANCELED = computes_pb2.ALLOCATION_STATE_CANCELED
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELED})
_DEFAULT_GRACE_SECONDS = 10.0
_LEFTOVER_GRACE_SECONDS = 1.0
_TIMED_OUT = "timed_out"
# A step that is done sooner is reported with the next one.
_REPORT_AFTER_SECONDS = 0.25


@dataclass(frozen=True)
class Outcome:
    """How an allocation ended."""

    state: computes_pb2.AllocationState.ValueType
    reason: common_pb2.Reason
    exit_code: int | None = None


class Worker(ABC):
    """Brings one allocation to its end and reports on the way."""

    def __init__(
        self, node: Node, folder: AllocationFolder, send: Callable[[agents_pb2.Report], None]
    ) -> None:
        self.node = node
        self.folder = folder
        self.allocation = folder.allocation
        self.workload = folder.allocation.workload
        self.workspace = names.workspace_of(folder.allocation.name)
        self.command = Command(folder.command, folder.path)
        self._send = send
        self._state = folder.last_report()
        self._cpu_seconds = self._state.cpu_seconds
        self._stop = asyncio.Event()
        if folder.stop_reason is not None:
            self._stop.set()

    @property
    def grace_seconds(self) -> float:
        """Between SIGTERM and SIGKILL."""
        if self.workload.HasField("grace"):
            return self.workload.grace.ToTimedelta().total_seconds()
        return _DEFAULT_GRACE_SECONDS

    def cpu_seconds(self) -> float:
        """What all its processes have used so far; never falls. Blocks."""
        usage = self.command.usage()
        if usage is not None:
            used = usage.cpu_seconds
        else:
            used = processes.cpu_seconds(self.command.processes()) if self.command.was_started else 0.0
        self._cpu_seconds = max(used, self._cpu_seconds)
        return self._cpu_seconds

    @property
    def is_over(self) -> bool:
        """Whether the last report was made."""
        return self._state.state in TERMINAL

    def stop(self, reason: common_pb2.Reason) -> None:
        """Asks it to stop; again, nothing changes."""
        self.folder.request_stop(reason)
        self._stop.set()

    def take_token(self, token: str) -> None:
        """A new token for the workload, before the old one ends."""
        self.folder.write_token(token)

    async def run(self) -> None:
        """Returns when the terminal report is written; raises nothing but cancellation."""
        if self.is_over:
            return
        work_for(self.folder.token.read_text)
        try:
            outcome = await self._live()
        except Stopped as stop:
            outcome = Outcome(CANCELED, stop.reason)
        except Exception as error:
            if not isinstance(error, StepFailed):
                log.exception("%s", self.allocation.name)
            outcome = Outcome(FAILED, reason_of(error))
        self._state.ClearField("http_address")
        self._state.ClearField("grpc_address")
        self._state.ClearField("certificate")
        if outcome.exit_code is not None:
            self._state.exit_code = outcome.exit_code
        self.report(outcome.state, outcome.reason)

    def where(self, log: str) -> str:
        """The command that shows a log of the allocation."""
        return "`stellwerk logs agent`"

    @abstractmethod
    async def _live(self) -> Outcome:
        """From where it stands to its end."""

    def report(self, state: computes_pb2.AllocationState.ValueType, reason: common_pb2.Reason) -> None:
        """Writes the next report down and sends it."""
        report = agents_pb2.Report()
        report.CopyFrom(self._state)
        report.state = state
        report.reason.CopyFrom(reason)
        if self.command.has_ended:
            self.cpu_seconds()
        report.cpu_seconds = self._cpu_seconds
        self.folder.add_report(report, is_last=state in TERMINAL)
        self._state.sequence, self._state.state = report.sequence, state
        self._state.reason.CopyFrom(reason)
        failpoints.hit("agent.reported")
        self._send(report)
        log.info("%s: %s %s", self.allocation.name, report.reason.code, report.reason.message)

    def is_done(self, phase: str) -> bool:
        """Whether a step has ended, perhaps before the agent was restarted."""
        return any(found.name == phase and found.HasField("end_time") for found in self._state.phases)

    @asynccontextmanager
    async def phase(
        self,
        name: str,
        state: computes_pb2.AllocationState.ValueType,
        code: str,
        message: str,
        *,
        brief: bool = False,
    ) -> AsyncIterator[common_pb2.Phase]:
        """A timed step: a report at its start, and a span in the trace of the submit.

        A `brief` step that is done within a moment has no report of its own.
        """
        phase = next((found for found in self._state.phases if found.name == name), None)
        was_done = phase is not None and phase.HasField("end_time")
        report = None
        if phase is None:
            phase = self._state.phases.add(name=name)
            phase.start_time.CopyFrom(now())
            reason = common_pb2.Reason(code=code, message=message)
            if brief:
                report = asyncio.get_running_loop().call_later(
                    _REPORT_AFTER_SECONDS, self.report, state, reason
                )
            else:
                self.report(state, reason)
        context = telemetry.context_from(self.folder.assignment.traceparent)
        with telemetry.tracer.start_as_current_span(
            name,
            context=context,
            start_time=phase.start_time.ToNanoseconds(),
            attributes={"stellwerk.resource": self.allocation.owner},
        ) as span:
            try:
                yield phase
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, str(error)))
                raise
            finally:
                if report is not None:
                    report.cancel()
                if not was_done:
                    phase.end_time.CopyFrom(now())

    def end_phase(self, name: str, time_ms: int) -> None:
        """Sets when a step really ended, which may have been while no agent watched; 0 means now."""
        for phase in self._state.phases:
            if phase.name == name and time_ms:
                phase.end_time.FromMilliseconds(time_ms)
            elif phase.name == name and not phase.HasField("end_time"):
                phase.end_time.CopyFrom(now())

    async def unless_stopped(self, work: Awaitable[T], *, patience_seconds: float = 0) -> T:
        """The result of `work`; raises `Stopped`, and ends the work, when its owner asks to stop.

        The work may go on for `patience_seconds` after that.
        """
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((task,), timeout=patience_seconds)
            if task.done():
                return task.result()
        finally:
            for pending in (task, stop):
                pending.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)
        raise self.stopped()

    def stopped(self) -> Stopped:
        """Why it stops."""
        return Stopped(self.folder.stop_reason or common_pb2.Reason(code="CANCEL_REQUESTED"))

    async def wait_for_command(self) -> tuple[Exit, bool]:
        """How the command ended, and whether that was because its owner asked."""
        stopped = False
        try:
            async with asyncio.timeout(self._remaining_seconds()):
                ended = await self.unless_stopped(self.command.wait())
        except (Stopped, TimeoutError) as interruption:
            stopped = isinstance(interruption, Stopped)
            if not stopped:
                # Written down first: the next agent would find a command that some signal ended.
                self.folder.note(_TIMED_OUT, {})
            await self.command.end(self.grace_seconds)
            ended = await self.command.wait()
        # What the command left behind would go on writing.
        await self.command.end(_LEFTOVER_GRACE_SECONDS)
        return ended, stopped

    @property
    def timed_out(self) -> bool:
        """Whether the command was ended because it took longer than it may."""
        return self.folder.noted(_TIMED_OUT) is not None

    @property
    def command_began(self) -> float:
        """When the command began, in seconds since 1970; now if it has not begun."""
        for phase in self._state.phases:
            if phase.name == "run_command":
                return phase.start_time.ToMicroseconds() / 1e6
        return time.time()

    def _remaining_seconds(self) -> float | None:
        # What ended while no agent watched was not stopped by its limit.
        if not self.workload.HasField("timeout") or self.command.has_ended:
            return None
        limit = self.workload.timeout.ToTimedelta().total_seconds()
        return max(0.0, self.command_began + limit - time.time())

    async def prepare_environment(self) -> Environment:
        """The environment; again after a restart, which takes no time then."""
        message = "Preparing the environment."
        async with self.phase("prepare_environment", PREPARING, "PREPARING_ENVIRONMENT", message) as phase:
            log_file = self.folder.path / ENVIRONMENT_LOG
            try:
                environment = await self.unless_stopped(
                    self.node.environments.provide(self.workload.environment, log_file)
                )
            except StepFailed as failure:
                failure.reason.cure += f" All that was said: {self.where(ENVIRONMENT_LOG)}."
                raise
            phase.note = environment.note
        return environment

    async def fetch_snapshot(self) -> None:
        """The working folder: a fresh copy of the snapshot."""
        if self.is_done("fetch_snapshot"):
            return
        message = "Fetching code."
        async with self.phase("fetch_snapshot", PREPARING, "FETCHING_SNAPSHOT", message, brief=True) as phase:
            remove(self.folder.work)
            if not self.workload.snapshot:
                self.folder.work.mkdir()
                phase.note = "no code"
                return
            files = await self.unless_stopped(self.node.snapshots.files(self.workload.snapshot))
            fetched = await self.unless_stopped(
                self.node.blobs.fetch(self.workspace, files, self.folder.work, writable=True)
            )
            phase.note = f"{len(files)} files, {fetched} new on this node"

    async def fetch_inputs(self) -> None:
        """Data and models, read-only."""
        if self.is_done("fetch_inputs"):
            return
        message = "Fetching the inputs."
        async with self.phase("fetch_inputs", PREPARING, "FETCHING_INPUTS", message, brief=True) as phase:
            remove(self.folder.inputs)
            fetched = 0
            for item in self.workload.inputs:
                fetched += await self.unless_stopped(self._fetch_input(item))
            self.folder.inputs.mkdir(exist_ok=True)
            phase.note = f"{len(self.workload.inputs)} inputs, {fetched} blobs new on this node"

    async def _fetch_input(self, item: workloads_pb2.Input) -> int:
        names.check_id("inputs", item.name)
        files: list[common_pb2.File]
        if "/models/" in item.resource:
            model = await call(
                self.node.models.GetModelVersion, models_pb2.GetModelVersionRequest(name=item.resource)
            )
            files = list(model.files)
        else:
            dataset = await call(
                self.node.datasets.GetDatasetVersion,
                datasets_pb2.GetDatasetVersionRequest(name=item.resource),
            )
            files = list(dataset.files)
        folder = self.input_folder(item)
        fetched = await self.node.blobs.fetch(self.workspace, files, folder, writable=False)
        await asyncio.to_thread(protect, folder)
        return fetched

    def input_folder(self, item: workloads_pb2.Input) -> Path:
        """Where an input lies."""
        return self.folder.inputs / item.name
