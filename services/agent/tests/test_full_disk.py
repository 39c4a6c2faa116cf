"""What an agent does when its disk takes nothing more: it goes on, and tells.

A folder that stands where a file is to be written refuses the writing as a full disk does, for every user.
"""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stellwerk_agent import agent as agent_module
from stellwerk_agent import folder as folder_module
from stellwerk_agent.agent import Agent
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.folder import AllocationFolder
from stellwerk_agent.worker import FAILED, PREPARING, SUCCEEDED, Outcome, Worker
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.compute.v1 import agents_pb2, computes_pb2
from stellwerk_protos.compute.v1.workloads_pb2 import WORKLOAD_KIND_RUN, Workload

NAME = "workspaces/demo/allocations/one"


def assignment(**fields: Any) -> agents_pb2.Assignment:
    allocation = computes_pb2.Allocation(
        name=NAME,
        owner="workspaces/demo/runs/one",
        workload=Workload(kind=WORKLOAD_KIND_RUN),
        state=computes_pb2.ALLOCATION_STATE_ASSIGNED,
        **fields,
    )
    return agents_pb2.Assignment(allocation=allocation, token="secret")


class Steps(Worker):
    """An allocation whose only step is the test's."""

    async def _live(self) -> Outcome:
        raise NotImplementedError


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """An agent that is not connected; what it sends is in `sent`."""
    monkeypatch.setattr(agent_module, "_KINDS", {WORKLOAD_KIND_RUN: Steps})
    settings = SimpleNamespace(folder=tmp_path)
    made = Agent(SimpleNamespace(settings=settings), SimpleNamespace())  # type: ignore[arg-type]  # unused parts
    sent: list[agents_pb2.Report] = []
    monkeypatch.setattr(made._connection, "send", sent.append)
    monkeypatch.setattr(made, "sent", sent, raising=False)
    return made


def sent(agent: Agent) -> list[agents_pb2.Report]:
    found: list[agents_pb2.Report] = agent.sent  # type: ignore[attr-defined]  # set by the fixture
    return found


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be written."""

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(folder_module, "write_atomic", refuse)


async def until_over(agent: Agent) -> None:
    await asyncio.gather(*agent._tasks.values())


async def test_an_allocation_that_ends_on_a_full_disk_is_reported_and_let_go(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def live(worker: Steps) -> Outcome:
        worker.report(PREPARING, Reason(code="STEP"))
        fill(monkeypatch)
        return Outcome(SUCCEEDED, Reason(code="COMPLETED"), 0)

    monkeypatch.setattr(Steps, "_live", live)
    agent.assign(assignment())
    await until_over(agent)
    assert [(report.sequence, report.state) for report in sent(agent)] == [(1, PREPARING), (2, SUCCEEDED)]
    assert [report.sequence for report in agent.unacknowledged()] == [1, 2], "sent again until acknowledged"
    for sequence in (1, 2):
        agent.acknowledge(agents_pb2.ReportAck(allocation=NAME, sequence=sequence))
    assert not agent.held()
    await asyncio.gather(*agent._discarding)
    assert list((tmp_path / "allocations").iterdir()) == []


async def test_a_step_that_finds_the_disk_full_says_so(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    async def live(worker: Steps) -> Outcome:
        fill(monkeypatch)
        worker.report(PREPARING, Reason(code="STEP"))
        raise AssertionError("a step that is not stored is not taken")

    monkeypatch.setattr(Steps, "_live", live)
    agent.assign(assignment())
    await until_over(agent)
    (last,) = sent(agent)
    assert (last.sequence, last.state, last.reason.code) == (1, FAILED, "NODE_DISK_FULL")


async def test_work_that_cannot_be_taken_is_refused(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch)
    agent.assign(assignment())
    (refused,) = sent(agent)
    assert (refused.allocation, refused.state, refused.reason.code) == (NAME, FAILED, "NODE_DISK_FULL")
    assert not agent.held()


async def test_a_full_disk_keeps_nobody_from_stopping(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    async def live(worker: Steps) -> Outcome:
        await worker.unless_stopped(asyncio.Event().wait())
        raise StepFailed("NOT_STOPPED", "It went on.")

    monkeypatch.setattr(Steps, "_live", live)
    agent.assign(assignment())
    fill(monkeypatch)
    agent.assign(assignment())
    agent.cancel(agents_pb2.Cancellation(allocation=NAME, reason=Reason(code="ENOUGH")))
    await until_over(agent)
    assert sent(agent)[-1].reason.code == "ENOUGH"


async def test_what_was_canceled_on_its_way_never_starts(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def live(worker: Steps) -> Outcome:
        await worker.unless_stopped(asyncio.Event().wait())
        raise StepFailed("STARTED", "It went on.")

    monkeypatch.setattr(Steps, "_live", live)
    agent.assign(assignment(cancel_requested=True))
    await until_over(agent)
    assert sent(agent)[-1].reason.code == "CANCEL_REQUESTED"


async def test_what_an_agent_did_not_finish_to_remove_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".demo.one.new"
    (left / "reports").mkdir(parents=True)
    AllocationFolder.create(tmp_path, assignment())
    for path in AllocationFolder.leftovers(tmp_path):
        folder_module.discard(path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.one"]
