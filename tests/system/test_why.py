"""`Explain` on a real stack: who asks why a run is in its state gets reason, time and cure."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import stellwerk
from stellwerk_launcher.testing import StackProcess
from stellwerk_platform.errors import from_rpc
from stellwerk_protos.telemetry.v1 import telemetry_pb2 as pb
from stellwerk_protos.telemetry.v1 import telemetry_pb2_grpc

WORKSPACE = "why"
LEASE_SECONDS = 6


class Why:
    """Asks for explanations."""

    def __init__(self, address: str, key: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = telemetry_pb2_grpc.TelemetryServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {key}"),)

    def ask(self, name: str) -> pb.Explanation:
        return self._stub.Explain(pb.ExplainRequest(name=name), metadata=self._metadata, timeout=60)

    def until(self, name: str, verb: str) -> pb.Explanation:
        """The explanation once the index has read so far."""
        pause = threading.Event()
        for _ in range(2_400):
            try:
                found = self.ask(name)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
            else:
                if own_verbs(found)[-1:] == [verb]:
                    return found
            pause.wait(0.05)
        raise AssertionError(f"{name} never was {verb}: {self.ask(name).summary}")

    def close(self) -> None:
        self._channel.close()


def own_verbs(found: pb.Explanation) -> list[str]:
    return [line.type.split(".")[3] for line in found.lines if line.resource == found.name]


def codes(found: pb.Explanation) -> list[str]:
    return [line.reason.code for line in found.lines]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack with one slot and short leases."""
    settings = {"STELLWERK_LEASE_SECONDS": str(LEASE_SECONDS), "STELLWERK_AGENT_SLOTS": "1"}
    with StackProcess(tmp_path_factory.mktemp("why") / "data", environment=settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(narrow: StackProcess) -> Iterator[stellwerk.Client]:
    status = narrow.status()
    key = Path(status["owner_key_file"]).read_text().strip()
    with stellwerk.Client(
        grpc_address=status["grpc_address"], gateway_url=status["gateway_url"], api_key=key
    ) as client:
        client.workspaces.create(WORKSPACE)
        yield client


@pytest.fixture(scope="module")
def why(narrow: StackProcess, client: stellwerk.Client) -> Iterator[Why]:
    status = narrow.status()
    why = Why(status["grpc_address"], Path(status["owner_key_file"]).read_text().strip())
    yield why
    why.close()


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "hold.py").write_text("import time\nprint('held', flush=True)\ntime.sleep(600)\n")
    return folder


@pytest.fixture
def submit(client: stellwerk.Client, code: Path) -> "Submit":
    return Submit(client.workspace(WORKSPACE), code)


class Submit:
    """Submits commands that need no package."""

    def __init__(self, workspace: stellwerk.Workspace, code: Path) -> None:
        self._workspace = workspace
        self._code = code

    def __call__(self, command: str) -> stellwerk.Run:
        return self._workspace.runs.submit(command, code=self._code, packages=[])

    def holder(self) -> stellwerk.Run:
        """A run that holds the only slot."""
        run = self("python hold.py")
        next(state for state in run.watch() if state.state == "Running")
        return run


def test_a_run_that_completed_tells_its_way(submit: Submit, why: Why) -> None:
    run = submit("echo done").wait()
    found = why.until(run.name, "completed")
    assert " completed at " in found.summary
    assert "The command succeeded" in found.summary
    assert own_verbs(found)[0] == "created"
    assert found.lines[0].reason.code == "SUBMITTED"
    assert found.lines[0].actor == "users/owner"
    assert len(found.lines[0].cause) == 32, "the first cause is the call that submitted it"
    times = [line.time.ToNanoseconds() for line in found.lines]
    assert times == sorted(times)


def test_a_run_that_failed_names_code_and_cure(submit: Submit, why: Why) -> None:
    run = submit("echo no such luck; exit 3").wait()
    found = why.until(run.name, "failed")
    assert "failed (SCRIPT_FAILED) at" in found.summary
    assert "exited with code 3: no such luck" in found.summary
    assert "`stellwerk run logs " in found.summary
    assert found.lines[-1].reason.cure


def test_a_run_that_waits_says_for_what_and_a_canceled_one_who_asked(submit: Submit, why: Why) -> None:
    holder = submit.holder()
    waiting = submit("echo later")
    found = why.until(waiting.name, "queued")
    # The run says so a moment after its allocation.
    while "All 1 slots of pool 'local' are taken" not in found.summary:
        found = why.until(waiting.name, "queued")
    assert "is Queued since" in found.summary
    assert "WAITING_FOR_SLOT" in codes(found)
    assert "it goes on when a run before it ends" in found.summary

    waiting.cancel(message="not needed any more")
    found = why.until(waiting.name, "canceled")
    assert "was canceled at" in found.summary
    assert "users/owner asked the run to stop: not needed any more, asked at" in found.summary
    assert codes(found)[-1] == "CANCEL_REQUESTED"

    holder.cancel(message="too slow")
    holder.wait()
    found = why.until(holder.name, "canceled")
    assert "users/owner asked the run to stop: too slow" in found.summary
    asked = next(line for line in found.lines if line.type.endswith("run.cancel_requested.v1"))
    assert asked.actor == "users/owner"


def test_a_run_whose_node_is_silent_says_which_lease_ran_out(
    narrow: StackProcess, submit: Submit, why: Why
) -> None:
    run = submit.holder()
    pid = int(narrow.process("agent")["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        next(state for state in run.watch() if state.state == "NotResponding")
        found = why.until(run.name, "not_responding")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "is not responding since" in found.summary
    assert "the lease of nodes/local ran out" in found.summary
    assert f"for {LEASE_SECONDS} s" in found.summary
    node = found.lines[-2]
    assert (node.resource, node.type) == ("nodes/local", "stellwerk.compute.node.not_responding.v1")
    next(state for state in run.watch() if state.state == "Running")
    run.cancel()
    run.wait()


def test_what_the_journal_does_not_know_cannot_be_explained(why: Why) -> None:
    for name, reason in (
        (f"workspaces/{WORKSPACE}/runs/nobody", "RESOURCE_NOT_IN_JOURNAL"),
        ("workspaces", "INVALID_NAME"),
        ("blobs/x", "INVALID_NAME"),
        (f"workspaces/{WORKSPACE}/runs/{'x' * 700}", "INVALID_NAME"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            why.ask(name)
        # A call of the blocking client is its own error.
        call: Any = raised.value
        assert from_rpc(call).reason == reason
