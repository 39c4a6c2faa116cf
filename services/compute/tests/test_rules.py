"""The pure rules of allocations and placement."""

from hypothesis import given
from hypothesis import strategies as st

from stellwerk_compute.allocations import domain
from stellwerk_compute.placement.domain import Limits, Node, Placed, Waiting, plan
from stellwerk_platform import names
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.compute.v1.agents_pb2 import Report
from stellwerk_protos.compute.v1.computes_pb2 import Allocation, AllocationState
from stellwerk_protos.compute.v1.workloads_pb2 import Workload

OWNER = "workspaces/demo/runs/amber-fox-1"
REASON = Reason(code="TEST", message="Because.")
STATES = [value for value in AllocationState.values() if value]
STEPS = st.one_of(
    st.sampled_from(["assign", "cancel", "silence", "restore", "lose", "abandon", "wait", "fail"]),
    st.sampled_from(STATES),
)


def take(allocation: Allocation, step: str | int) -> Fact | None:
    """One step of a history; a number is a report of that state."""
    if isinstance(step, int):
        said = Report(allocation=allocation.name, reason=REASON)
        said.state = AllocationState.ValueType(step)
        return domain.report(allocation, "nodes/a", said)
    steps = {
        "assign": lambda: domain.assign(allocation, "nodes/a"),
        "cancel": lambda: domain.cancel(allocation, REASON, "users/owner"),
        "silence": lambda: domain.silence(allocation),
        "restore": lambda: domain.restore(allocation, domain.RUNNING),
        "lose": lambda: domain.lose(allocation, domain.ASSIGNED),
        "abandon": lambda: domain.abandon(allocation),
        "wait": lambda: domain.wait(allocation, REASON),
        "fail": lambda: domain.fail(allocation, REASON),
    }
    return steps[step]()


@given(st.lists(STEPS, max_size=30))
def test_any_history_keeps_the_invariants(history: list[str | int]) -> None:
    allocation, first = domain.new(OWNER, Workload())
    assert first.verb == "queued"
    for step in history:
        before = Allocation()
        before.CopyFrom(allocation)
        fact = take(allocation, step)
        if fact is None:
            assert allocation == before
            continue
        assert before.state not in domain.TERMINAL
        assert fact.verb in (domain.VERBS[allocation.state], "cancel_requested")
        assert allocation.reason.code
        assert (allocation.state in domain.TERMINAL) == allocation.HasField("end_time")
        if allocation.state not in (domain.QUEUED, domain.CANCELED, domain.FAILED):
            assert allocation.node


@given(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True), st.sampled_from(["runs", "x/y/replicas"]))
def test_an_allocation_has_a_lawful_name_of_its_own(owner_id: str, below: str) -> None:
    name = domain.name_for(f"workspaces/demo/{below}/{owner_id}")
    assert names.parse(domain.PATTERN, name)[0] == "demo"
    assert name == domain.name_for(f"workspaces/demo/{below}/{owner_id}")
    assert name != domain.name_for(f"workspaces/demo/{below}/{owner_id}x")


def test_a_report_never_leads_backwards() -> None:
    allocation, _ = domain.new(OWNER, Workload())
    take(allocation, "assign")
    take(allocation, domain.RUNNING)
    assert take(allocation, domain.PREPARING) is None
    take(allocation, "silence")
    assert take(allocation, domain.RUNNING) is not None


@given(
    st.lists(st.tuples(st.sampled_from(["local", "other"]), st.booleans()), max_size=12),
    st.lists(st.tuples(st.sampled_from(["local", "other"]), st.integers(1, 3)), max_size=4),
)
def test_placement_is_fair_and_never_over_full(
    queue: list[tuple[str, bool]], machines: list[tuple[str, int]]
) -> None:
    nodes = [Node(f"nodes/{i}", pool, slots) for i, (pool, slots) in enumerate(machines)]
    waiting = [Waiting(str(i), pool, takes, "") for i, (pool, takes) in enumerate(queue)]
    decisions = {decision.name: decision for decision in plan(waiting, nodes)}
    assert len(decisions) == len(waiting)
    assert all(node.used <= node.slots for node in nodes)
    for pool in ("local", "other"):
        placed = [
            bool(decisions[item.name].node) for item in waiting if item.pool == pool and item.takes_slot
        ]
        assert placed == sorted(placed, reverse=True), "nobody overtakes"
    for item in waiting:
        if not item.takes_slot and any(node.pool == item.pool for node in nodes):
            assert decisions[item.name].node


def test_the_same_reason_to_wait_is_not_told_twice() -> None:
    assert plan([Waiting("a", "local", True, "NO_NODE")], []) == []
    (told,) = plan([Waiting("a", "local", True, "NO_NODE")], [Node("nodes/a", "local", 1, used=1)])
    assert told.reason is not None
    assert told.reason.code == "WAITING_FOR_SLOT"


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.booleans()), max_size=12),
    st.integers(0, 5),
    st.integers(0, 2),
)
def test_no_workspace_gets_more_than_its_limits(
    queue: list[tuple[str, int, bool]], cores: int, nodes: int
) -> None:
    machines = [Node(f"nodes/{i}", "local", 2) for i in range(3)]
    there = [Placed("a", "nodes/0", takes_slot=False, cores=1)]
    waiting = [Waiting(str(i), "local", takes, "", w, c) for i, (w, c, takes) in enumerate(queue)]
    # "b" has no limits: what holds back "a" must not hold back "b".
    decisions = {d.name: d for d in plan(waiting, machines, there, {"a": Limits(nodes, cores)})}
    placed = {item.name: decisions[item.name].node for item in waiting if decisions[item.name].node}
    mine = [item for item in waiting if item.workspace == "a" and item.name in placed]
    assert not mine or not cores or 1 + sum(item.cores for item in mine) <= cores
    assert not nodes or len({"nodes/0", *(placed[item.name] for item in mine)}) <= max(nodes, 1)
    for item in waiting:
        if item.workspace == "b" and not item.takes_slot:
            assert item.name in placed
        reason = decisions[item.name].reason
        if reason is not None and reason.code == "QUOTA_CORES":
            assert item.workspace == "a"
            assert f"{item.cores} more wanted" in reason.message
            assert reason.cure


def test_a_second_node_is_waited_for_when_only_one_is_allowed() -> None:
    machines = [Node("nodes/a", "local", 1, used=1), Node("nodes/b", "local", 1)]
    there = [Placed("w", "nodes/a", takes_slot=True, cores=1)]
    (decision,) = plan([Waiting("x", "local", True, "", "w")], machines, there, {"w": Limits(nodes=1)})
    assert decision.reason is not None
    assert decision.reason.code == "QUOTA_NODES"


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8))
def test_what_is_known_of_cpu_time_never_falls_and_is_a_number(said: list[float]) -> None:
    known = 0.0
    for value in said:
        later = domain.cpu_seconds(value, known)
        assert known <= later < 1e12
        known = later
