"""A run: prepare, fetch, run the command, collect what it made."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from stellwerk.shipping import MetricFolder
from stellwerk_agent import children
from stellwerk_agent.command import Exit
from stellwerk_agent.environments import Environment, clean_environment
from stellwerk_agent.failure import StepFailed, Stopped
from stellwerk_agent.files import tail
from stellwerk_agent.folder import NODE_STOPPED, STD_LOG
from stellwerk_agent.ingest import Shipper
from stellwerk_agent.logs import LogFolder
from stellwerk_agent.outputs import Outputs
from stellwerk_agent.run_secrets import RunSecrets
from stellwerk_agent.system_metrics import SystemMetrics
from stellwerk_agent.worker import CANCELED, FAILED, FINALIZING, RUNNING, SUCCEEDED, Outcome, Worker
from stellwerk_platform import failpoints, names, telemetry
from stellwerk_protos.common.v1 import common_pb2

# Between an exception and the one that was raised from it, which says it better.
_CAUSED = "The above exception was the direct cause of the following exception"
_NO_MODULE = re.compile(r"ModuleNotFoundError: No module named '([^']+)'")
# Where the name to import is not the name to install.
_PACKAGES = {
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
_SHELL_SIGNAL_BASE = 128
_NAMED = 5
_FATAL = {int(number): number.name for number in signal.Signals if number.name != "SIGCHLD"}
_EXIT_BY_SHELL = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})


class RunWorker(Worker):
    """The life of a run on the node."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._secrets = RunSecrets(self.node.secrets, self.workload.secrets)
        self._is_cuttable = False
        self._learning: set[asyncio.Task[None]] = set()

    def take_token(self, token: str) -> None:
        """The command gets it once the agent knows every value that it opens."""
        self._learn(token, then=lambda: self.folder.write_token(token))

    def _learn(self, token: str, *, then: Callable[[], None] = lambda: None) -> None:
        async def learn() -> None:
            await self._secrets.learn(token)
            then()

        task = asyncio.create_task(learn())
        self._learning.add(task)
        task.add_done_callback(self._learning.discard)

    async def _live(self) -> Outcome:
        self._learn(self.folder.token.read_text())
        try:
            return await self._live_on()
        finally:
            for task in list(self._learning):
                task.cancel()
            await asyncio.gather(*self._learning, return_exceptions=True)

    async def _live_on(self) -> Outcome:
        outputs = Outputs(self.folder.work, self.allocation.owner, self.node.blobs, self.node.artifacts)
        async with self._shipping():
            outcome = await self._bring_to_end(outputs)
            # What is asked of a run that was stopped before has been done.
            self._is_cuttable = outcome.state != CANCELED
            try:
                await self._unless_cut(self._collect(outcome, outputs))
            except Stopped as stop:
                return Outcome(CANCELED, await _cut_short(stop.reason, outputs), outcome.exit_code)
        return outcome

    async def _unless_cut(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for `work`; raises `Stopped` when that takes longer than the grace time after a request."""
        if self._is_cuttable:
            await self.unless_stopped(work, patience_seconds=self.grace_seconds)
        else:
            await work

    async def _bring_to_end(self, outputs: Outputs) -> Outcome:
        known = self.folder.noted("outcome")
        if known is None:
            environment = None if self.command.was_started else await self._prepare()
            async with self.phase("run_command", RUNNING, "COMMAND_RUNNING", "The command runs."):
                if environment is not None:
                    await self._start(environment)
                async with self._measuring(), _watching(outputs):
                    ended, stopped = await self.wait_for_command()
            known = {**asdict(ended), "stopped": stopped}
            self.folder.note("outcome", known)
            failpoints.hit("agent.ended")
        stopped, ended = known.pop("stopped"), Exit(**known)
        self.end_phase("run_command", ended.time_ms)
        if stopped:
            return Outcome(CANCELED, self.stopped().reason)
        if self.timed_out:
            return Outcome(FAILED, self._timed_out())
        if ended.code != 0 and self.folder.noted(NODE_STOPPED) is not None:
            return Outcome(FAILED, _node_stopped())
        await self._secrets.known()
        last = self._secrets.redactor.text(tail(self.folder.path / STD_LOG))
        return outcome_of(ended, last, self.where(STD_LOG))

    def where(self, log: str) -> str:
        return f"`stellwerk run logs {names.id_of(self.allocation.owner)} --log {log}`"

    def _timed_out(self) -> common_pb2.Reason:
        limit = self.workload.timeout.ToTimedelta().total_seconds()
        return common_pb2.Reason(
            code="RUN_TIMED_OUT",
            message=f"The command was stopped because it ran longer than {limit:g} s.",
            cure="Submit it again with a longer time limit, or make it faster.",
        )

    @asynccontextmanager
    async def _measuring(self) -> AsyncIterator[None]:
        """Standard metrics while the command runs, and once when it has ended."""
        period_seconds = self.node.settings.system_metrics_seconds
        if period_seconds <= 0:
            yield
            return
        metrics = SystemMetrics(
            self.folder.metrics, self.command.processes, self.command_began, self.node.gpus
        )
        task = asyncio.create_task(metrics.run(period_seconds))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            metrics.finish(self.command.usage())

    async def _prepare(self) -> Environment:
        environment = await self.prepare_environment()
        await self.fetch_snapshot()
        await self.fetch_inputs()
        if self._stop.is_set():
            raise self.stopped()
        return environment

    async def _start(self, environment: Environment) -> None:
        argv = ["/bin/sh", "-c", self.workload.command]
        variables = self._variables(environment, telemetry.traceparent())
        await self.command.start(argv, self.folder.work, variables, self.folder.path / STD_LOG)

    @asynccontextmanager
    async def _shipping(self) -> AsyncIterator[None]:
        """Logs and metrics travel all the while; what was written is acknowledged when this ends."""
        path = self.folder.path
        shipper = Shipper(
            self.node.ingest,
            self.allocation.owner,
            LogFolder(path, self.folder.work, path / "logs", self._secrets.redactor),
            MetricFolder(self.folder.metrics),
        )

        async def ship() -> None:
            await self._secrets.known()
            await shipper.run()

        async def finish() -> None:
            await task

        task = asyncio.create_task(ship())
        failure: Exception | None = None
        try:
            try:
                yield
            except Exception as error:
                failure = error
            shipper.finish()
            try:
                await self._unless_cut(finish())
            except (StepFailed, Stopped) as error:
                failure = failure or error
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if failure is not None:
            raise failure

    def _variables(self, environment: Environment, traceparent: str) -> dict[str, str]:
        own, gateway_url = clean_environment(), self.node.settings.gateway_url
        chosen = {**environment.variables, **self.workload.variables}
        path = f"{environment.folder / 'bin'}:{chosen.get('PATH') or own.get('PATH', '/usr/bin:/bin')}"
        python_path = [str(self.node.sdk_folder), *filter(None, [chosen.get("PYTHONPATH")])]
        inputs = {
            "STELLWERK_INPUT_" + re.sub("[-.]", "_", item.name).upper(): str(self.input_folder(item))
            for item in self.workload.inputs
        }
        return {
            **own,
            **chosen,
            **inputs,
            "PATH": path,
            "VIRTUAL_ENV": str(environment.folder),
            "PYTHONPATH": ":".join(python_path),
            "PYTHONUNBUFFERED": "1",
            "STELLWERK_RUN": self.allocation.owner,
            "STELLWERK_WORKSPACE": f"workspaces/{self.workspace}",
            "STELLWERK_METRICS_DIR": str(self.folder.metrics),
            "STELLWERK_TOKEN_FILE": str(self.folder.token),
            "STELLWERK_GRPC_ADDRESS": self.node.settings.grpc_address,
            **({"STELLWERK_GATEWAY_URL": gateway_url} if gateway_url else {}),
            **({"TRACEPARENT": traceparent} if traceparent else {}),
        }

    async def _collect(self, outcome: Outcome, outputs: Outputs) -> None:
        message = "Collecting the outputs."
        async with self.phase("collect_outputs", FINALIZING, "COLLECTING_OUTPUTS", message) as phase:
            try:
                left = await children.deliver(self.folder, self.node.settings.grpc_address)
                phase.note = "; ".join(filter(None, (await outputs.collect(), left)))
                failpoints.hit("agent.collected")
            except StepFailed as failure:
                # How the command ended matters more, unless it was well.
                if outcome.state == SUCCEEDED:
                    raise
                phase.note = f"{failure.reason.code}: {failure.reason.message}"


async def _cut_short(reason: common_pb2.Reason, outputs: Outputs) -> common_pb2.Reason:
    """Why the run was stopped while its outputs were collected, and what is missing."""
    missing = await asyncio.to_thread(outputs.missing)
    more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
    left = (
        f"Not collected: {', '.join(missing[:_NAMED])}{more}." if missing else "All outputs were collected."
    )
    cut = common_pb2.Reason()
    cut.CopyFrom(reason)
    cut.message = f"{reason.message} {left}".strip()
    return cut


@asynccontextmanager
async def _watching(outputs: Outputs) -> AsyncIterator[None]:
    """Outputs travel while the command runs."""
    task = asyncio.create_task(outputs.watch())
    try:
        yield
        outputs.finish()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def outcome_of(ended: Exit, log_tail: str, where: str) -> Outcome:
    """What the end of a command means for its run; `where` is the command that shows its log."""
    if ended.is_lost:
        return Outcome(FAILED, _unknown("COMMAND_LOST", f"How the command ended is unknown: {ended.error}."))
    if ended.error:
        return Outcome(
            FAILED, _unknown("COMMAND_NOT_STARTED", f"The command could not be started: {ended.error}.")
        )
    code = ended.code or 0
    if code == 0:
        return Outcome(SUCCEEDED, common_pb2.Reason(code="COMPLETED", message="The command succeeded."), 0)
    number = -code if code < 0 else code - _SHELL_SIGNAL_BASE
    if code < 0 or number in _EXIT_BY_SHELL:
        return Outcome(FAILED, _killed(number, where))
    found = _NO_MODULE.search(log_tail)
    if found and _CAUSED not in log_tail[found.end() :]:
        return Outcome(FAILED, _no_module(found.group(1)), code)
    last = next((line.strip() for line in reversed(log_tail.splitlines()) if line.strip()), "")
    return Outcome(
        FAILED,
        common_pb2.Reason(
            code="SCRIPT_FAILED",
            message=f"The command exited with code {code}" + (f": {last[:500]}" if last else "."),
            cure=f"See its log: {where}.",
        ),
        code,
    )


def _unknown(code: str, message: str) -> common_pb2.Reason:
    return common_pb2.Reason(code=code, message=message, cure="Submit it again; see the agent's log.")


def _node_stopped() -> common_pb2.Reason:
    return common_pb2.Reason(
        code="NODE_STOPPED", message="The node was stopped while it ran.", cure="Submit it again."
    )


def _killed(number: int, where: str) -> common_pb2.Reason:
    name = _FATAL.get(number, "unknown")
    cure = f"See its log: {where}."
    if number == signal.SIGKILL:
        cure = "Often the node ran out of memory: use less, or a larger compute. " + cure
    return common_pb2.Reason(
        code="SCRIPT_KILLED", message=f"The command was ended by signal {number} ({name}).", cure=cure
    )


def _no_module(module: str) -> common_pb2.Reason:
    top = module.partition(".")[0]
    package = _PACKAGES.get(top, top)
    return common_pb2.Reason(
        code="MODULE_NOT_FOUND",
        message=f"The script imports {module!r}, which is not in its environment.",
        cure=f"Add {package!r} to the environment's packages, or its file to the source folder.",
    )
