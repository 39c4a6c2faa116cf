"""Interactive runs: a process that somebody started by hand logs to a run without any compute.

    with Client() as client, client.workspace("demo").start_run(experiment="digits") as run:
        run.log("loss", 0.3)

What is logged lies in a folder of this machine first (`interactive_folder.py`); a thread ships it and
renews the run's lease. A process that is killed leaves the folder, and `stellwerk run ship` delivers it.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stellwerk import interactive_folder, names
from stellwerk._async.core import AsyncCore
from stellwerk._sync.core import Core
from stellwerk.delivery import Delivery
from stellwerk.errors import StellwerkError, invalid
from stellwerk.interactive_folder import Folder
from stellwerk.recorder import Recorder
from stellwerk.settings import Settings, resolve
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.runs.v1 import runs_pb2, runs_pb2_grpc

if TYPE_CHECKING:
    from stellwerk._async.run import AsyncRun
    from stellwerk._sync.run import Run

FLUSH_SECONDS = 60.0
_LONGEST_RENEWAL_SECONDS = 10.0
_RETRY_SECONDS = 1.0
_DEFAULT_EXPERIMENT = "interactive"


class RunCanceled(KeyboardInterrupt):
    """Somebody cancelled the run of this block; its state is Canceled."""


class InteractiveRun(Recorder):
    """A run of this process; made by `Workspace.start_run` and begun by `with` or `start`."""

    def __init__(
        self,
        settings: Settings,
        request: runs_pb2.CreateRunRequest,
        *,
        flush_seconds: float = FLUSH_SECONDS,
        is_named_child: bool = False,
    ) -> None:
        """With `is_named_child` the id stands for a name below the parent, which may be there already."""
        super().__init__(Path())
        self._settings, self._request, self._flush_seconds = settings, request, flush_seconds
        self._is_named_child = is_named_child
        self._core: Core | None = None
        self._home: Folder | None = None
        self._delivery: Delivery | None = None
        self._shipping: Future[None] | None = None
        self._renewing: Future[None] | None = None
        self._interruptible = False
        self.message = runs_pb2.Run()
        self.cancel_requested = False
        """Whether somebody asked the run to stop; in the main thread it also interrupts, as Ctrl-C does."""

    @classmethod
    def below(cls, parent: str, *, name: str = "", display_name: str = "") -> "InteractiveRun":
        """A child of a run by full name, with address and key as they are found here."""
        request = _child_request(parent, name, display_name)
        return cls(resolve(), request, is_named_child=bool(name))

    @property
    def name(self) -> str:
        """The full name; empty before the start."""
        return self.message.name

    @property
    def id(self) -> str:
        """The last segment of the name."""
        return names.last(self.message.name)

    def child(self, name: str = "", *, display_name: str = "") -> "InteractiveRun":
        """A run below this one, for a `with` block of its own; `name` as in `RunContext.child`."""
        request = _child_request(names.run("", self), name, display_name)
        request.experiment = self.message.experiment
        return InteractiveRun(
            self._settings, request, flush_seconds=self._flush_seconds, is_named_child=bool(name)
        )

    def start(self) -> "InteractiveRun":
        """Creates the run; raises `StellwerkError`. From here on the platform may come and go."""
        if self._core is not None or self.message.name:
            raise invalid("RUN_STARTED", "The run was started before.", "Make another one with start_run.")
        core = Core(self._settings)
        try:
            self.message, self._home = self._begin(core)
        except BaseException:
            core.close()
            raise
        self._core, self._folder, self._root = core, self._home.path, self._home.path
        self._interruptible = threading.current_thread() is threading.main_thread()
        core.wait(self._make_delivery)
        self._shipping = core.spawn(self._ship)
        self._renewing = core.spawn(self._renew)
        core.spawn(interactive_folder.deliver_leftovers)
        return self

    def _begin(self, core: Core) -> tuple[runs_pb2.Run, Folder]:
        """The new run and its folder, or those of a child with which an earlier process of its run began."""
        request = self._request
        try:
            run = self._create(core, request)
        except StellwerkError as error:
            if error.code != "ALREADY_EXISTS" or not self._is_named_child:
                raise
            if (left := self._take_up(core, f"{request.parent}/runs/{request.run_id}")) is not None:
                return left
            request.run_id = names.another(request.run_id)
            run = self._create(core, request)
        return run, Folder.create(run.name, self._settings)

    def _take_up(self, core: Core, name: str) -> tuple[runs_pb2.Run, Folder] | None:
        """A run that goes on, with the folder that its dead process left on this machine."""
        home = Folder.left_by(name, self._settings)
        if home is None:
            return None
        stub = runs_pb2_grpc.RunServiceStub(core.channel)
        try:
            run = core.call(stub.GetRun, runs_pb2.GetRunRequest(name=name))
        except BaseException:
            home.release()
            raise
        if run.HasField("end_time"):
            home.release()
            return None
        return run, home

    def _create(self, core: Core, wanted: runs_pb2.CreateRunRequest) -> runs_pb2.Run:
        stub = runs_pb2_grpc.RunServiceStub(core.channel)
        request = runs_pb2.CreateRunRequest()
        request.CopyFrom(wanted)
        request.kind = runs_pb2.RUN_KIND_INTERACTIVE
        if not request.experiment and request.parent_run:
            above = core.call(stub.GetRun, runs_pb2.GetRunRequest(name=request.parent_run))
            request.experiment = above.experiment
        request.experiment = names.resource(
            request.parent, "experiments", request.experiment or _DEFAULT_EXPERIMENT
        )
        if not request.HasField("git"):
            request.git.CopyFrom(runs_pb2.GitInfo(**core.git(Path.cwd(), request.parent)))
        try:
            return core.call(stub.CreateRun, request)
        except StellwerkError as error:
            if error.code == "PERMISSION_DENIED" and "STELLWERK_RUN" in os.environ:
                error.cure = (
                    "With the token of its run a script makes child runs only, of the same experiment: use "
                    "current_run().child(), or give it a key in STELLWERK_API_KEY."
                )
            raise

    async def _make_delivery(self, core: AsyncCore) -> None:
        self._delivery = Delivery(core, self.message.name, self._folder)

    async def _ship(self, core: AsyncCore) -> None:
        if self._delivery is not None:
            await self._delivery.run()

    async def _renew(self, core: AsyncCore) -> None:
        stub = runs_pb2_grpc.RunServiceStub(core.channel)
        while True:
            delay = _RETRY_SECONDS
            try:
                answer = await core.call(stub.RenewRun, runs_pb2.RenewRunRequest(name=self.message.name))
            except StellwerkError as error:
                if error.code in ("FAILED_PRECONDITION", "NOT_FOUND"):
                    self._cancel()
                    return
            else:
                left = answer.lease_expire_time.ToNanoseconds() / 1e9 - time.time()
                delay = min(max(left / 3, _RETRY_SECONDS), _LONGEST_RENEWAL_SECONDS)
                if answer.cancel_requested:
                    self._cancel()
            await asyncio.sleep(delay)

    def _cancel(self) -> None:
        """Once: tells the script, and interrupts what its main thread does."""
        if self.cancel_requested:
            return
        self.cancel_requested = True
        handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        main = threading.main_thread().ident
        if self._interruptible and handled and main is not None:
            signal.pthread_kill(main, signal.SIGINT)

    def finish(self, state: str = "Completed", reason: common_pb2.Reason | None = None) -> None:
        """Ships what is left, within a bounded time, and ends the run as Completed, Failed or Canceled."""
        self._interruptible = False
        core, home = self._core, self._home
        if core is None or home is None:
            return
        self._core = None
        wanted = runs_pb2.RunState.Value(f"RUN_STATE_{state.upper()}")
        home.set_outcome(wanted, reason or _outcome(None, canceled=False)[1])
        try:
            if self._flush(core, home):
                home.remove()
        finally:
            home.release()
            if self._writer is not None:
                self._writer.close()
            core.close()

    def complete(self) -> None:
        """Ends the run as Completed, where there is no `with` block."""
        self.finish()

    def fail(self, message: str) -> None:
        """Ends the run as Failed, where there is no `with` block."""
        self.finish("Failed", common_pb2.Reason(code="SCRIPT_FAILED", message=message[:3_000]))

    def _flush(self, core: Core, home: Folder) -> bool:
        failure: Any = "it took too long"
        done = core.spawn(lambda connection: self._end(connection, home))
        try:
            done.result(self._flush_seconds)
        except TimeoutError:
            done.cancel()
        except StellwerkError as error:
            failure = error
        else:
            return True
        finally:
            for task in (self._shipping, self._renewing):
                if task is not None:
                    task.cancel()
        later = f"It is kept in {home.path}; deliver it with: stellwerk run ship {home.path}"
        if self._settings.token_file is not None:
            later = "The agent delivers it when the command has ended."
        print(
            f"stellwerk: what {self.id} logged is not all with the platform ({failure}). {later}",
            file=sys.stderr,
        )
        return False

    async def _end(self, core: AsyncCore, home: Folder) -> None:
        if self._delivery is not None:
            self._delivery.finish()
        if self._shipping is not None:
            await asyncio.wrap_future(self._shipping)
        self.message = await interactive_folder.finish(core, home)

    def __enter__(self) -> "InteractiveRun":
        try:
            return self.start()
        except KeyboardInterrupt as interrupt:
            # Nobody else would end a run that was asked to stop before its block began.
            if self.cancel_requested:
                self.__exit__(KeyboardInterrupt, interrupt, interrupt.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._interruptible = False
        state, reason = _outcome(error, canceled=self.cancel_requested)
        try:
            self.finish(state, reason)
        except KeyboardInterrupt:
            # An interrupt of ours that arrived late; a person's second one ends the wait.
            if not self.cancel_requested:
                raise
        if self.cancel_requested and isinstance(error, KeyboardInterrupt):
            raise RunCanceled(f"{self.id} was cancelled") from None

    async def __aenter__(self) -> "InteractiveRun":
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)


def _child_request(parent: str, name: str, display_name: str) -> runs_pb2.CreateRunRequest:
    return runs_pb2.CreateRunRequest(
        parent=parent.rsplit("/runs/", 1)[0],
        run_id=names.child_run(parent, name) if name else "",
        display_name=display_name or name,
        parent_run=parent,
    )


def _outcome(error: BaseException | None, *, canceled: bool) -> tuple[str, common_pb2.Reason]:
    """What the end of a block means for its run."""
    if canceled:
        return "Canceled", common_pb2.Reason(
            code="CANCELED", message="The run was asked to stop, and its block ended."
        )
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "Completed", common_pb2.Reason(code="COMPLETED", message="The block ended.")
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return "Canceled", common_pb2.Reason(
            code="INTERRUPTED", message="The process of the run was interrupted."
        )
    text = f"{type(error).__name__}: {error}".rstrip(": ")[:3_000]
    return "Failed", common_pb2.Reason(
        code="SCRIPT_FAILED", message=text, cure="Look at the output of the process that ran the block."
    )


def start_request(
    workspace: str,
    *,
    experiment: str,
    name: str,
    display_name: str,
    description: str,
    parent: "AsyncRun | Run | Recorder | str | None",
    tags: Mapping[str, str] | None,
) -> runs_pb2.CreateRunRequest:
    """What `start_run` asks for."""
    return runs_pb2.CreateRunRequest(
        parent=workspace,
        run_id=name,
        experiment=experiment,
        display_name=display_name,
        description=description,
        parent_run="" if parent is None else names.run(workspace, parent),
        tags=tags,
    )
