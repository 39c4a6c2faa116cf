"""Compute on real servers: creation, placement, reports, leases, restart."""

import time
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from services.compute.tests.support import TRACEPARENT, Compute, local, running
from stellwerk_compute.allocations import domain
from stellwerk_compute.allocations.store import AllocationStore, Change, Held
from stellwerk_launcher.testing import Servers
from stellwerk_platform.errors import from_rpc
from stellwerk_protos.compute.v1 import computes_pb2
from stellwerk_protos.compute.v1.computes_pb2 import Allocation
from stellwerk_protos.registry.v1 import quotas_pb2, quotas_pb2_grpc
from stellwerk_protos.runs.v1.runs_pb2 import Run

SHORT_LEASE_SECONDS = 1.0
# Long enough for a slow machine to renew it in time.
SLOW_LEASE_SECONDS = 4.0


@pytest_asyncio.fixture
async def compute(servers: Servers) -> AsyncIterator[Compute]:
    async with running(servers) as compute:
        yield compute


@pytest_asyncio.fixture
async def impatient(servers: Servers) -> AsyncIterator[Compute]:
    """With a short lease."""
    async with running(servers, SHORT_LEASE_SECONDS) as compute:
        yield compute


async def test_every_workspace_has_a_local_compute_at_once(compute: Compute) -> None:
    workspace = await compute.workspace()
    found = await compute.stub.GetCompute(computes_pb2.GetComputeRequest(name=local(workspace)))
    assert found.kind == computes_pb2.COMPUTE_KIND_LOCAL
    await compute.journal.until(found.name, "created")
    listed = await compute.stub.ListComputes(computes_pb2.ListComputesRequest(parent=workspace))
    assert list(listed.computes) == [found]
    for name in (f"{workspace}/computes/big", "workspaces/nowhere/computes/local", "computes/local"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await compute.stub.GetCompute(computes_pb2.GetComputeRequest(name=name))
        assert from_rpc(caught.value).reason in ("COMPUTE_NOT_FOUND", "PERMISSION_DENIED", "INVALID_NAME")


async def test_a_run_goes_from_the_queue_to_its_end(compute: Compute) -> None:
    workspace = await compute.workspace()
    name = await compute.submit(workspace, "one")
    await compute.journal.until(name, "queued", "NO_NODE")
    async with compute.agent().connected() as agent:
        assignment = await agent.assignment()
        assert assignment.allocation.name == name
        assert assignment.traceparent == TRACEPARENT
        assert assignment.token.count(".") == 2
        await agent.report(name, 1, domain.PREPARING)
        await agent.report(name, 2, domain.RUNNING)
        await agent.report(name, 2, domain.RUNNING)
        await agent.report(name, 1, domain.PREPARING)
        await agent.report(name, 3, domain.FINALIZING)
        await agent.report(name, 4, domain.SUCCEEDED, exit_code=0)
        await agent.beat()
    last = await compute.journal.until(name, "succeeded")
    verbs = compute.journal.verbs(name)
    assert verbs == ["queued", "queued", "assigned", "preparing", "running", "finalizing", "succeeded"]
    assert {event.traceparent[:35] for event in compute.journal.events if event.resource == name} == {
        TRACEPARENT[:35]
    }
    assert "token" not in str(last.data)
    ended = await compute.allocation(name)
    assert ended.HasField("exit_code")
    assert ended.end_time.ToNanoseconds() >= ended.start_time.ToNanoseconds() > 0


async def test_cpu_time_counts_once_whatever_the_node_repeats(compute: Compute) -> None:
    workspace = await compute.workspace()
    quotas = quotas_pb2_grpc.QuotaServiceStub(compute.registry)
    request = quotas_pb2.GetQuotaRequest(name=f"{workspace}/quota")
    name = await compute.submit(workspace, "busy")
    async with compute.agent().connected() as agent:
        await agent.assignment()
        await agent.report(name, 1, domain.RUNNING)
        for said in (5.0, 5.0, 3.0, float("nan"), float("inf"), -1.0):
            await agent.beat(name, cpu_seconds={name: said, f"{workspace}/allocations/foreign": 99.0})
        found = (await quotas.GetQuota(request)).used
        assert (found.nodes, found.cores, found.cpu_seconds) == (1, 1, 5)
        for _ in range(2):
            await agent.report(name, 2, domain.SUCCEEDED, exit_code=0, cpu_seconds=7)
        found = (await quotas.GetQuota(request)).used
        assert (found.nodes, found.cores, found.cpu_seconds) == (0, 0, 7)
    assert (await compute.allocation(name)).cpu_seconds == 7
    assert (await compute.journal.until(name, "succeeded")).data["cpuSeconds"] == 7


async def test_a_repeated_event_makes_no_second_allocation(compute: Compute) -> None:
    workspace = await compute.workspace()
    name = await compute.submit(workspace, "twice")
    await compute.submit(workspace, "twice")
    last = await compute.submit(workspace, "other")
    await compute.journal.until(last, "queued", "NO_NODE")
    listed = await compute.stub.ListAllocations(computes_pb2.ListAllocationsRequest(parent=workspace))
    assert [allocation.name for allocation in listed.allocations] == [last, name]


async def test_runs_wait_for_a_slot_in_turn_and_replicas_do_not(compute: Compute) -> None:
    workspace = await compute.workspace()
    async with compute.agent().connected(slots=1) as agent:
        first = await compute.submit(workspace, "a")
        await agent.hear("assignment", 1)
        second, third = await compute.submit(workspace, "b"), await compute.submit(workspace, "c")
        await compute.journal.until(third, "queued", "WAITING_FOR_SLOT")
        replica = await compute.deploy(workspace, "r")
        assert (await agent.hear("assignment", 2))[1].assignment.allocation.name == replica
        await agent.report(first, 1, domain.FAILED)
        assert (await agent.hear("assignment", 3))[2].assignment.allocation.name == second


@pytest.mark.parametrize("first", ["placer", "announcement"])
async def test_what_is_placed_while_its_node_announces_itself_is_sent_once(
    compute: Compute, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whichever of the two sees first that it is to be sent."""
    workspace = await compute.workspace()
    agent = compute.agent()
    names: list[str] = []
    on_node, change = AllocationStore.on_node, AllocationStore.change

    async def late(store: AllocationStore, node: str) -> list[Held]:
        if not names:
            names.append(await compute.submit(workspace, "a"))
            if first == "placer":
                await agent.assignment()
            else:
                await compute.journal.until(names[0], "assigned")
        return await on_node(store, node)

    async def slow(store: AllocationStore, name: str, how: Change) -> Allocation:
        changed = await change(store, name, how)
        if first == "announcement" and names == [name] and changed.state == domain.ASSIGNED:
            await agent.assignment()
        return changed

    monkeypatch.setattr(AllocationStore, "on_node", late)
    monkeypatch.setattr(AllocationStore, "change", slow)
    async with agent.connected(slots=2):
        await agent.beat((await agent.assignment()).allocation.name)
        names.append(await compute.submit(workspace, "b"))
        sent = await agent.hear("assignment", 2)
    assert [response.assignment.allocation.name for response in sent] == names


async def test_a_queued_run_is_canceled_at_once_and_a_running_one_by_its_node(compute: Compute) -> None:
    workspace = await compute.workspace()
    waiting = await compute.submit(workspace, "waiting")
    await compute.journal.until(waiting, "queued", "NO_NODE")
    await compute.cancel(workspace, "waiting")
    canceled = await compute.journal.until(waiting, "canceled")
    assert (canceled.actor, canceled.reason["message"]) == ("users/owner", "Because.")
    async with compute.agent().connected() as agent:
        running_ = await compute.submit(workspace, "running")
        await agent.assignment()
        await agent.report(running_, 1, domain.RUNNING)
        await compute.cancel(workspace, "running")
        (asked,) = await agent.hear("cancellation")
        assert asked.cancellation.reason.message == "Because."
        await agent.report(running_, 2, domain.CANCELED)
    await compute.journal.until(running_, "canceled")
    assert compute.journal.verbs(running_)[-2:] == ["cancel_requested", "canceled"]


async def test_an_unknown_compute_fails_the_allocation_and_a_local_run_needs_none(compute: Compute) -> None:
    workspace = await compute.workspace()
    interactive = Run(name=f"{workspace}/runs/notebook", revision=1)
    await compute.say("runs", interactive, "created")
    name = await compute.submit(workspace, "lost", compute="gpu-farm")
    failed = await compute.journal.until(name, "failed")
    assert failed.reason["code"] == "COMPUTE_NOT_FOUND"
    assert not compute.journal.verbs(domain.name_for(interactive.name))


async def test_a_silent_node_and_its_runs_show_it_and_come_back(impatient: Compute) -> None:
    workspace = await impatient.workspace()
    kept, lost = await impatient.submit(workspace, "kept"), await impatient.submit(workspace, "lost")
    unstarted = await impatient.submit(workspace, "unstarted")
    async with impatient.agent().connected(slots=3) as agent:
        await agent.assigned(kept, lost, unstarted)
        for name in (kept, lost):
            await agent.report(name, 1, domain.RUNNING)
        # Whatever a slow machine has made of the lease so far, it begins anew.
        await agent.beat(kept, lost)
        impatient.journal.events.clear()
        await impatient.journal.until("nodes/local", "not_responding", "LEASE_EXPIRED")
        for name in (kept, lost, unstarted):
            await impatient.journal.until(name, "not_responding", "LEASE_EXPIRED")
    async with impatient.agent().connected(kept, slots=3) as returned:
        await impatient.journal.until(kept, "running", "AGENT_RETURNED")
        await impatient.journal.until(lost, "failed", "ALLOCATION_LOST")
        await impatient.journal.until(unstarted, "queued", "NODE_CHANGED")
        await returned.assigned(kept, unstarted, held=[kept])
        again = {heard.assignment.allocation.name for heard in await returned.hear("assignment")}
        assert again == {kept, unstarted}
        await returned.beat(kept, unstarted)
        await returned.report(kept, 2, domain.SUCCEEDED)
    assert (await impatient.allocation(kept)).state == domain.SUCCEEDED


async def test_what_may_be_on_its_way_to_a_paused_node_is_not_given_to_another(impatient: Compute) -> None:
    workspace = await impatient.workspace()
    name = await impatient.submit(workspace, "sent")
    async with impatient.agent().connected() as agent:
        await agent.assigned(name)
        await impatient.journal.until(name, "not_responding", "LEASE_EXPIRED")
        # The node goes on, and says what it held before it has read the assignment.
        await agent.beat()
        await impatient.journal.until(name, "assigned", "AGENT_RETURNED")
        await agent.beat(name)
        await agent.report(name, 1, domain.SUCCEEDED)
    await impatient.journal.until(name, "succeeded")
    verbs = impatient.journal.verbs(name)
    assert "queued" not in verbs[verbs.index("assigned") :]


async def test_a_run_on_a_node_that_never_returns_can_be_canceled(impatient: Compute) -> None:
    workspace = await impatient.workspace()
    name = await impatient.submit(workspace, "stranded")
    async with impatient.agent().connected() as agent:
        await agent.assigned(name)
        await agent.report(name, 1, domain.RUNNING)
        await agent.beat(name)
        impatient.journal.events.clear()
    await impatient.journal.until(name, "not_responding", "LEASE_EXPIRED")
    await impatient.cancel(workspace, "stranded")
    await impatient.journal.until(name, "canceled", "NODE_SILENT")
    async with impatient.agent().connected(name) as returned:
        (asked,) = await returned.hear("cancellation")
        assert asked.cancellation.allocation == name
        await returned.report(name, 2, domain.CANCELED)
    assert (await impatient.allocation(name)).reason.code == "NODE_SILENT"


async def test_heartbeats_keep_a_node_alive_also_over_a_restart_of_compute(servers: Servers) -> None:
    async with running(servers, SLOW_LEASE_SECONDS) as compute:
        workspace = await compute.workspace()
        name = await compute.submit(workspace, "long")
        async with compute.agent().connected() as agent:
            first = await agent.assignment()
            await agent.report(name, 1, domain.RUNNING)
            await compute.stop()
        beaten, longest = time.monotonic(), 0.0
        await compute.start()
        async with compute.agent().connected(name) as agent:
            second = await agent.assignment()
            assert second.allocation.state == domain.RUNNING
            assert second.token
            assert first.allocation.name == second.allocation.name
            # For longer than the lease, without which this would say nothing.
            until = time.monotonic() + 1.5 * SLOW_LEASE_SECONDS
            while time.monotonic() < until:
                await agent.beat(name)
                longest, beaten = max(longest, time.monotonic() - beaten), time.monotonic()
            await agent.report(name, 2, domain.SUCCEEDED)
        await compute.journal.until(name, "succeeded")
        # A machine that is too slow for the lease says nothing.
        assert "not_responding" not in compute.journal.verbs(name) or longest > SLOW_LEASE_SECONDS / 2


async def test_a_node_is_told_to_stop_what_is_not_its_own(compute: Compute) -> None:
    workspace = await compute.workspace()
    stranger = f"{workspace}/allocations/stranger"
    async with compute.agent().connected(stranger) as agent:
        (asked,) = await agent.hear("cancellation")
        assert (asked.cancellation.allocation, asked.cancellation.reason.code) == (stranger, "NOT_ASSIGNED")
    async with compute.agent().connected(node="nodes/other") as other:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await other.refusal()
    assert from_rpc(caught.value).reason == "PERMISSION_DENIED"
