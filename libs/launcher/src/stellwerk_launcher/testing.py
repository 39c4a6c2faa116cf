"""pytest fixtures with the real servers: `servers` alone, or a whole `stack`, one of each a session.

Every stack runs in a child process tied to pytest, so that nothing outlives the session: the fixture
stops it at the end, also after a failure or Ctrl-C, and the kernel stops it when pytest is killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pytest

from stellwerk_launcher import folder
from stellwerk_launcher.context import EXTERNAL_VARIABLES
from stellwerk_launcher.credentials import LAUNCHER, Credentials
from stellwerk_launcher.servers import versitygw
from stellwerk_launcher.servers.nats import TEST_USER
from stellwerk_launcher.stack import status
from stellwerk_launcher.tied import tied_to_parent
from stellwerk_launcher.vault import Operator
from stellwerk_platform.access import Guard, Verify
from stellwerk_platform.memberships import Memberships

START_TIMEOUT_SECONDS = 240.0
STOP_TIMEOUT_SECONDS = 110.0
POLL_SECONDS = 0.05
# A machine that is busy with tests has processes that serve, and answer late.
HEALTH_SECONDS = 30.0


class StackProcess:
    """A stack of its own in a child process, for tests that break things.

    Use it as a context manager, or call `start` and `stop`. The data folder stays, so that a test can
    start the same stack again.
    """

    def __init__(
        self, data_dir: Path, *, servers_only: bool = False, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir
        self._servers_only = servers_only
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        """What the supervisor printed."""
        return self.data_dir.with_name(self.data_dir.name + ".up.log")

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None, "the stack was not started"
        return self._process.pid

    def launch(self) -> None:
        """Starts the supervisor and returns at once."""
        command = [sys.executable, "-m", "stellwerk_launcher", "up", "--data-dir", str(self.data_dir)]
        if self._servers_only:
            command.append("--servers-only")
        # The servers of whoever runs the tests are not test servers.
        inherited = {k: v for k, v in os.environ.items() if k not in EXTERNAL_VARIABLES.values()}
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            self._process = _popen(tied_to_parent(command), inherited | self.environment, output)

    def start(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> dict[str, Any]:
        """Starts everything and returns the status once all is ready."""
        self.launch()
        try:
            self.wait_for(
                lambda: folder.read_state(self.data_dir).get("state") == "ready" and self.is_up(),
                timeout_seconds,
            )
        except BaseException:
            self.stop()
            raise
        return self.status()

    def wait_for(self, condition: Callable[[], bool], timeout_seconds: float = 120.0) -> None:
        """Returns when the condition holds; fails when the supervisor ends before, or time is up."""
        assert self._process is not None, "the stack was not started"
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if self._process.poll() is not None:
                raise AssertionError(f"the stack ended with {self._process.returncode}:\n{self._said()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_seconds:.0f} s:\n{self._said()}")
            time.sleep(POLL_SECONDS)

    def _said(self) -> str:
        return self.output.read_text(errors="replace")[-4000:]

    def is_up(self) -> bool:
        """True while this very supervisor holds the folder."""
        recorded = folder.read_state(self.data_dir).get("internal", {}).get("supervisor", {}).get("pid")
        return recorded == self.pid and folder.is_held(self.data_dir)

    def status(self) -> dict[str, Any]:
        """Addresses, and processes with their health now."""
        return status(self.data_dir, HEALTH_SECONDS)

    def process(self, name: str) -> dict[str, Any]:
        """One process as the supervisor sees it, without asking for its health."""
        found: dict[str, Any] = next(
            process for process in folder.read_state(self.data_dir)["processes"] if process["name"] == name
        )
        return found

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Sends a signal to one process and returns its pid."""
        pid = int(self.process(name)["pid"])
        os.kill(pid, number)
        return pid

    def wait_until_back(self, name: str, old_pid: int, timeout_seconds: float = 180.0) -> None:
        """Returns when a process that was killed has a successor that serves."""

        def is_back() -> bool:
            if self.process(name)["pid"] in (None, old_pid):
                return False
            found = next(process for process in self.status()["processes"] if process["name"] == name)
            return bool(found["health"] == "SERVING")

        self.wait_for(is_back, timeout_seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the stack and returns the supervisor's exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            folder.end_leftovers(folder.read_state(self.data_dir))
            raise

    def __enter__(self) -> "StackProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _popen(command: list[str], environment: dict[str, str], output: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # Ctrl-C ends pytest, and pytest's teardown ends the stack.
        start_new_session=True,
    )


class _OneRole:
    def __init__(self, role: str) -> None:
        self._role = role

    async def role(self, user: str, workspace: str) -> str:
        """The one role."""
        return self._role


def guard_without_registry(verify: Verify, role: str = "Owner") -> Guard:
    """For a test that runs a server without `registry`: everybody has one role in every workspace."""
    return Guard(verify, Memberships(_OneRole(role)))


@dataclass(frozen=True)
class Servers:
    """Where the four servers are, with users that may do everything. Isolate tests by namespace."""

    data_dir: Path
    nats_url: str
    mongodb_uri: str
    s3_url: str
    s3_access_key: str
    s3_secret_key: str
    vault_url: str
    # The AppRole of the `secrets` service: it may use the signing key.
    vault_role_id: str
    vault_secret_id: str
    # What the server's auth callout trusts.
    nats_callout_seed: str
    process: StackProcess
    # The AppRole of the launcher: it makes secret ids for the others.
    launcher_secret_id: str

    def secret_id(self, role: str) -> str:
        """A further secret id of an AppRole, beside the ones that there are."""
        with logged_in(self.vault_url, self.launcher_secret_id) as vault:
            return vault.new_secret_id(role, only=False)

    def secrets_of(self, service: str) -> dict[str, str]:
        """What Vault keeps for a service: `mongodb_uri`, `nats_url`, `nats_seed`, `s3_…`."""
        with logged_in(self.vault_url, self.launcher_secret_id) as vault:
            return vault.read(f"services/{service}")


def plaintext_command(service: str, settings: str) -> list[str]:
    """Runs one service as a process without certificates, for tests of that part alone.

    Only code can ask for this; no variable can. `settings` is the name of its settings class.
    """
    package = f"stellwerk_{service}"
    code = (
        f"from stellwerk_platform.app import run; from {package}.config import {settings}; "
        f"from {package}.main import compose; run({service!r}, {settings}, compose, plaintext=True)"
    )
    return [sys.executable, "-c", code]


@contextmanager
def logged_in(vault_url: str, secret_id: str) -> Iterator[Operator]:
    """A login of the launcher's AppRole at the Vault of a stack."""
    found = Operator(vault_url, secret_id)
    found.log_in()
    try:
        yield found
    finally:
        found.close()


@contextmanager
def running_servers(data_dir: Path) -> Iterator[Servers]:
    """The four real servers, without the platform's services."""
    with StackProcess(data_dir, servers_only=True) as process:
        state = process.status()
        credentials = Credentials.load_or_create(data_dir / "credentials.json")
        launcher_secret_id = credentials.vault[LAUNCHER]
        with logged_in(state["vault_url"], launcher_secret_id) as vault:
            own = vault.read(LAUNCHER)
            secret_id = vault.new_secret_id("secrets", only=False)
            callout_seed = vault.read("services/secrets")["nats_callout_seed"]
        yield Servers(
            data_dir=data_dir,
            nats_url=_as_user(state["nats_url"], TEST_USER, credentials.nats[TEST_USER]),
            mongodb_uri=_as_user(state["mongodb_uri"], "admin", own["mongodb_password"]),
            s3_url=state["s3_url"],
            s3_access_key=own["s3_access_key"],
            s3_secret_key=own["s3_secret_key"],
            vault_url=state["vault_url"],
            vault_role_id="secrets",
            vault_secret_id=secret_id,
            nats_callout_seed=callout_seed,
            process=process,
            launcher_secret_id=launcher_secret_id,
        )


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The four real servers, without the platform's services."""
    with running_servers(tmp_path_factory.mktemp("servers") / "data") as found:
        yield found


def _as_user(url: str, user: str, password: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{password}@{rest.rpartition('@')[2]}"


@pytest.fixture(scope="session")
def stack_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A whole stack, started once; tests that break it start one of their own instead."""
    with StackProcess(tmp_path_factory.mktemp("stack") / "data") as process:
        yield process


@pytest.fixture(scope="session")
def stack(stack_process: StackProcess) -> dict[str, Any]:
    """The status of the session's stack: what `stellwerk status --output json` prints."""
    return stack_process.status()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds versitygw before the first test: on a new machine that takes longer than a test may."""
    if session.config.option.collectonly:
        return
    wanted = {"servers", "stack"}
    if any(wanted & set(getattr(item, "fixturenames", ())) for item in session.items):
        versitygw.find(lambda line: print(line, file=sys.stderr, flush=True))
