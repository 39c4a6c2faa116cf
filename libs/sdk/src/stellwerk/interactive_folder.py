"""The folder of an interactive run on the machine where it was started.

`run.json` says which run it is and how it ended, `lock` is held while its process lives (so that
nobody ships what is still being written), `*.wal` hold what was logged, `logs/` its logs and `outputs/`
its files. A run that a script makes with the token of its own run has its folder beside that run's
write-ahead files, where the agent finds it and delivers it when the command has ended.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from pathlib import Path

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from stellwerk._async.core import AsyncCore
from stellwerk._async.run import AsyncRun
from stellwerk.delivery import deliver
from stellwerk.errors import StellwerkError, invalid
from stellwerk.settings import Settings, default_data_dir
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.runs.v1 import runs_pb2, runs_pb2_grpc

_LEFTOVERS = 100
CHILDREN = "children"


class Folder:
    """One such folder, locked by this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StellwerkError(
                "RUN_ALIVE",
                f"The process that logs to {path} is still there.",
                "Wait until it has ended, or end it.",
                code="FAILED_PRECONDITION",
            ) from error
        self.finish = runs_pb2.FinishRunRequest()
        self.grpc_address = ""

    @classmethod
    def create(cls, run: str, settings: Settings) -> "Folder":
        """A new folder where those of these settings are."""
        parent = interactive_dir(settings)
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = parent / run.rsplit("/", 1)[-1]
        if path.exists():
            path = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
        path.mkdir(mode=0o700)
        folder = cls(path)
        folder.finish.name, folder.grpc_address = run, settings.grpc_address
        folder._save()
        return folder

    @classmethod
    def left_by(cls, run: str, settings: Settings) -> "Folder | None":
        """The folder of a run whose process died before it said how it ended; None if there is none.

        None too if there are logs: a log only grows, and who opens it anew may empty it.
        """
        try:
            folder = cls.open(interactive_dir(settings) / run.rsplit("/", 1)[-1])
        except StellwerkError:
            return None
        is_open = folder.finish.state == runs_pb2.RUN_STATE_UNSPECIFIED
        if folder.finish.name == run and is_open and not any((folder.path / "logs").glob("*")):
            return folder
        folder.release()
        return None

    @classmethod
    def open(cls, path: Path) -> "Folder":
        """A folder that was left; raises `StellwerkError` for what is none, or is still in use."""
        try:
            found = json.loads((path / "run.json").read_text())
            finish = ParseDict(found["finish"], runs_pb2.FinishRunRequest(), ignore_unknown_fields=True)
            grpc_address = str(found["grpc_address"])
        except (OSError, ValueError, KeyError, TypeError, ParseError) as error:
            raise invalid(
                "NO_RUN_FOLDER",
                f"{path} is no folder of an interactive run: {error}.",
                f"They are below {interactive_dir()}.",
            ) from error
        folder = cls(path)
        folder.finish, folder.grpc_address = finish, grpc_address
        return folder

    def set_outcome(self, state: runs_pb2.RunState.ValueType, reason: common_pb2.Reason) -> None:
        """Notes how the run ended, before anything else may fail."""
        self.finish.state = state
        self.finish.reason.CopyFrom(reason)
        with contextlib.suppress(OSError):
            self._save()

    def _save(self) -> None:
        content = {"finish": MessageToDict(self.finish), "grpc_address": self.grpc_address}
        temporary = self.path / "run.json.new"
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self.path / "run.json")

    def release(self) -> None:
        """Lets others have it."""
        os.close(self._lock)

    def remove(self) -> None:
        """Everything is with the platform."""
        shutil.rmtree(self.path, ignore_errors=True)


def interactive_dir(settings: Settings | None = None) -> Path:
    """Where the folders are: the user's, or those of the run with whose token this process acts."""
    within = os.environ.get("STELLWERK_METRICS_DIR", "")
    if settings is not None and settings.token_file is not None and within:
        return Path(within) / CHILDREN
    return default_data_dir() / "interactive"


async def finish(core: AsyncCore, folder: Folder) -> runs_pb2.Run:
    """Uploads the outputs and ends the run, whose records have all been acknowledged."""
    run = folder.finish.name
    outputs = folder.path / "outputs"
    if outputs.is_dir():
        await AsyncRun(core, runs_pb2.Run(name=run)).upload(outputs, "outputs")
    stub = runs_pb2_grpc.RunServiceStub(core.channel)
    try:
        return await core.call(stub.FinishRun, folder.finish)
    except StellwerkError as error:
        if error.code != "FAILED_PRECONDITION":
            raise
        # It has ended already, by an earlier request whose answer was lost for example.
        return await core.call(stub.GetRun, runs_pb2.GetRunRequest(name=run))


async def ship(core: AsyncCore, path: Path) -> runs_pb2.Run:
    """Delivers a folder that was left by a process, ends its run and removes the folder.

    A run whose process was killed before it could say how it ended is Failed. Raises `StellwerkError`.
    """
    folder = Folder.open(path)
    try:
        await deliver(core, folder.finish.name, path)
        if folder.finish.state == runs_pb2.RUN_STATE_UNSPECIFIED:
            reason = common_pb2.Reason(
                code="PROCESS_LOST",
                message="The process of the run is gone and did not say how it ended.",
                cure="Look for its last output; what it logged is complete.",
            )
            folder.set_outcome(runs_pb2.RUN_STATE_FAILED, reason)
        run = await finish(core, folder)
        folder.remove()
        return run
    finally:
        folder.release()


async def deliver_leftovers(core: AsyncCore) -> None:
    """Ships what earlier processes of this user left for the same platform; what fails stays.

    Of a script in a run nothing: it may be back to go on with its child runs, and its agent ships the rest.
    """
    if core.settings.token_file is not None:
        return
    for path in sorted(interactive_dir(core.settings).glob("*/run.json"))[:_LEFTOVERS]:
        with contextlib.suppress(StellwerkError, OSError):
            if json.loads(path.read_text()).get("grpc_address") == core.settings.grpc_address:
                await ship(core, path.parent)
