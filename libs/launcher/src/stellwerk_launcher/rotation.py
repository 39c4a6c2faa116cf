"""New secrets for services of a stack that is up: asked for by a command, done by the supervisor.

The supervisor alone holds the secret ids with which services start, so the command leaves a request
in the data folder, signals it, and waits for its answer. One service after the other is stopped,
gets new secrets at Vault and at the servers, and is started with them.
"""

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from stellwerk_launcher import folder, identities, services
from stellwerk_launcher.context import Context
from stellwerk_launcher.credentials import WITH_BLOBS, WITH_STORE, write_private
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.servers import mongod, nats, versitygw
from stellwerk_launcher.supervisor import Supervisor

REQUEST_FILE = "rotate.json"
ANSWER_FILE = "rotated.json"
TIMEOUT_SECONDS = 600.0
POLL_SECONDS = 0.1
NAMES = tuple(name for group in services.START_ORDER for name in group)


def rotate(data_dir: Path, names: Sequence[str] = (), progress: IO[str] | None = None) -> list[str]:
    """Gives services of the stack on `data_dir` new secrets; all of them and the agent without names.

    Returns the names in the order in which they were restarted; raises `LauncherError`.
    """
    path = data_dir.expanduser().absolute()
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise LauncherError(
            "SERVICE_UNKNOWN", f"There is no service {', '.join(unknown)}.", f"There are: {', '.join(NAMES)}."
        )
    state = folder.read_state(path)
    supervisor = folder.supervisor_of(state) if folder.is_held(path) else None
    if supervisor is None or state.get("state") != "ready" or not state.get("gateway_url"):
        raise LauncherError(
            "STACK_DOWN", f"No whole stack is up on {path}.", f"Start one with: {folder.up_command(path)}"
        )
    request = {"id": token_hex(8), "names": [name for name in NAMES if not names or name in names]}
    write_private(path / REQUEST_FILE, json.dumps(request), durable=False)
    supervisor.send_signal(signal.SIGUSR1)
    print(f"rotating {', '.join(request['names'])}", file=progress, flush=True)
    answer = _answer(path, str(request["id"]))
    if answer.get("error"):
        raise LauncherError(**answer["error"])
    return list(request["names"])


def _answer(path: Path, number: str) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline and folder.is_held(path):
        try:
            answer: dict[str, Any] = json.loads((path / ANSWER_FILE).read_text())
        except (OSError, ValueError):
            answer = {}
        if answer.get("id") == number:
            return answer
        time.sleep(POLL_SECONDS)
    raise LauncherError(
        "ROTATION_UNANSWERED", "The stack did not answer.", f"See {path / folder.LOGS_FOLDER}/supervisor.log"
    )


class Rotation:
    """The supervisor's side."""

    def __init__(self, context: Context, supervisor: Supervisor, report: Callable[[str], None]) -> None:
        self._context = context
        self._supervisor = supervisor
        self._report = report
        self.requested = asyncio.Event()

    async def run(self) -> None:
        """Answers requests for ever."""
        while True:
            await self.requested.wait()
            self.requested.clear()
            try:
                request = json.loads((self._context.data_dir / REQUEST_FILE).read_text())
            except (OSError, ValueError):
                continue
            error = await self._answer(request["names"])
            answer = json.dumps({"id": request["id"], "error": error})
            write_private(self._context.data_dir / ANSWER_FILE, answer, durable=False)

    async def _answer(self, names: Sequence[str]) -> dict[str, str] | None:
        try:
            for name in names:
                self._report(f"giving {name} new secrets")
                await self._rotate(name)
        except LauncherError as error:
            return error.as_dict()
        except Exception as error:
            cure = "See the log of Vault and of the servers, then rotate again."
            return LauncherError("ROTATION_FAILED", f"{name}: {error}.", cure).as_dict()
        return None

    async def _rotate(self, name: str) -> None:
        """Nobody uses the secrets while they change, and the service comes back whatever happens."""
        await self._supervisor.stop_one(name)
        try:
            await asyncio.to_thread(identities.renew, self._context, name)
            await self._tell_servers(name)
        finally:
            await self._supervisor.start([services.specify(self._context, name)])

    async def _tell_servers(self, name: str) -> None:
        context = self._context
        work: list[Awaitable[None]] = []
        if name in WITH_STORE and "mongod" not in context.external:
            work.append(asyncio.to_thread(mongod.initialise, context))
        if name in WITH_BLOBS and "versitygw" not in context.external:
            work.append(asyncio.to_thread(versitygw.initialise, context))
        await asyncio.gather(*work)
        if (child := self._supervisor.children.get("nats")) is not None:
            # A reload does not take over whom the auth callout leaves alone (NATS 2.15); everybody connects
            # again within moments.
            nats.write_configuration(context)
            await self._supervisor.stop_one("nats")
            await self._supervisor.start([child.spec])
