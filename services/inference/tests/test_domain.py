"""The rules of replicas, deployments and routes, over random histories; no server."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stellwerk_inference import states
from stellwerk_inference.deployments import domain as deployments
from stellwerk_inference.deployments import rollouts
from stellwerk_inference.endpoints import domain as endpoints
from stellwerk_inference.replicas import domain as replicas
from stellwerk_inference.routes.domain import table
from stellwerk_platform.documents import timestamp
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

NAME = "workspaces/demo/endpoints/e/deployments/d"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALLOCATION_STATES = [value for value in compute.AllocationState.values() if value]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["allocation", "answered", "give_up", "stop"]),
        st.sampled_from(ALLOCATION_STATES),
        st.integers(1, 30),
    ),
    max_size=30,
)


def replica(
    state: states.State.ValueType, age_seconds: float = 0, code: str = "", rollout: int = 0
) -> pb.Replica:
    return pb.Replica(
        name=f"{NAME}/replicas/r{state}",
        state=state,
        rollout=rollout,
        reason=Reason(code=code or "TEST", message="as the test wants"),
        update_time=timestamp(NOW - timedelta(seconds=age_seconds)),
    )


def take(one: pb.Replica, step: str, state: compute.AllocationState.ValueType, revision: int) -> Fact | None:
    """Applies one rule; an allocation has addresses while it runs."""
    if step == "answered":
        return replicas.answered(one, revision)
    if step == "give_up":
        return replicas.give_up(one, revision, 1)
    if step == "stop":
        return replicas.stop(one, "STOP", "")
    address = "127.0.0.1:1" if state == compute.ALLOCATION_STATE_RUNNING else ""
    allocation = compute.Allocation(
        name="a",
        revision=revision,
        state=state,
        http_address=address,
        grpc_address=address,
        certificate="PEM" if address else "",
    )
    return replicas.follow(one, allocation)


@given(STEPS)
def test_a_replica_never_leaves_its_end_and_ignores_what_it_has_seen(
    steps: list[tuple[str, compute.AllocationState.ValueType, int]],
) -> None:
    one = replicas.new(pb.Deployment(name=NAME), pb.Rollout(number=1))
    for step, state, revision in steps:
        before = pb.Replica()
        before.CopyFrom(one)
        after = pb.Replica()
        after.CopyFrom(one)
        if take(after, step, state, revision) is None:
            continue
        one = after
        assert before.state not in replicas.ENDED
        if before.state == states.DELETING:
            assert after.state == states.DELETED
        if step == "allocation":
            assert after.allocation_revision > before.allocation_revision
            assert take(after, step, state, revision) is None
        if after.state == states.SUCCEEDED:
            assert after.http_address
            assert after.certificate
            assert step == "answered"


@given(st.lists(st.sampled_from([s for s in states.State.values() if s]), min_size=1, max_size=4))
def test_a_deployment_is_ready_when_all_replicas_are_and_failed_when_one_is(
    found: list[states.State.ValueType],
) -> None:
    deployment = pb.Deployment(name=NAME, state=states.CREATING, replica_count=len(found))
    rollouts.begin(deployment, pb.Rollout())
    existing = [replica(state, rollout=1) for state in found]
    deployments.observe(deployment, existing)
    if states.FAILED in found:
        assert deployment.state == states.FAILED
        assert deployment.reason.code == "TEST"
    elif set(found) == {states.SUCCEEDED}:
        assert deployment.state == states.SUCCEEDED
    else:
        assert deployment.state == states.CREATING
    serves = deployment.state == states.SUCCEEDED
    assert deployment.ready_replica_count == (len(found) if serves else 0)
    assert deployments.observe(deployment, existing) is None


@given(st.lists(st.floats(0, 1_200), max_size=20), st.integers(1, 3))
@example([599.9999999999999] * 6, 1)
def test_replacements_wait_longer_and_end(ages: list[float], wanted: int) -> None:
    deployment = pb.Deployment(name=NAME, state=states.SUCCEEDED, replica_count=wanted)
    failed = [replica(states.FAILED, age) for age in ages]
    # As times are kept: to the microsecond.
    recent = [age for age in ages if timedelta(seconds=age) < timedelta(minutes=10)]
    due = deployments.next_replacement(failed, NOW)
    if len(recent) <= 1:
        assert due == NOW
    assert due - NOW <= timedelta(seconds=30)
    ended = deployments.exhaust(deployment, failed, NOW)
    assert (ended is not None) == (len(recent) > 5 * wanted)
    assert (deployment.state == states.FAILED) == (ended is not None)


def test_a_failed_deployment_gets_no_replacement() -> None:
    deployment = pb.Deployment(name=NAME, state=states.FAILED, replica_count=2)
    assert deployments.missing_replicas(deployment, []) == 0
    deployment.state = states.SUCCEEDED
    assert deployments.missing_replicas(deployment, [replica(states.NOT_RESPONDING)]) == 1


def test_only_the_first_ready_deployment_takes_the_traffic() -> None:
    endpoint = pb.Endpoint(name="workspaces/demo/endpoints/e", state=states.SUCCEEDED)
    first = pb.Deployment(name=NAME, state=states.SUCCEEDED)
    other = pb.Deployment(name=NAME + "2", state=states.SUCCEEDED)
    assert endpoints.take_first(endpoint, first.name, [first, other]) is None
    assert endpoints.take_first(endpoint, first.name, [first]) is not None
    assert dict(endpoint.traffic) == {"d": 100}
    with pytest.raises(FailedPrecondition, match="100 %"):
        deployments.delete(first, 100)


def test_routes_hold_what_is_ready_or_takes_traffic() -> None:
    endpoint = pb.Endpoint(
        name="workspaces/demo/endpoints/e",
        traffic={"d": 60, "x": 40},
        mirror_traffic={"i": 5},
        sticky_header="s",
    )
    settings = pb.RequestSettings(timeout_ms=5)
    found = [
        pb.Deployment(name=NAME, state=states.SUCCEEDED, replica_count=2, request_settings=settings),
        pb.Deployment(name=NAME[:-1] + "x", state=states.FAILED, replica_count=1),
        pb.Deployment(name=NAME[:-1] + "f", state=states.FAILED, replica_count=1),
        pb.Deployment(name=NAME[:-1] + "i", state=states.SUCCEEDED),
    ]
    ready, silent = replica(states.SUCCEEDED), replica(states.NOT_RESPONDING)
    routes = table([endpoint, pb.Endpoint(name="workspaces/demo/endpoints/a")], found, [ready, silent])
    assert [(route.endpoint[-1], len(route.targets)) for route in routes.routes] == [("a", 0), ("e", 3)]
    assert routes.routes[1].sticky_header == "s"
    first, idle, failed = routes.routes[1].targets
    assert (first.deployment, first.percent, first.settings, first.starting) == (NAME, 60, settings, True)
    assert [one.name for one in first.replicas] == [ready.name]
    assert (idle.percent, idle.mirror_percent) == (0, 5)
    assert (failed.percent, len(failed.replicas), failed.starting) == (40, 0, False)


def test_copies_and_the_sticky_header_stay_until_they_are_replaced() -> None:
    endpoint = pb.Endpoint(name="workspaces/demo/endpoints/e", state=states.SUCCEEDED)
    found = [
        pb.Deployment(name=NAME, state=states.SUCCEEDED),
        pb.Deployment(name=NAME + "2", state=states.SUCCEEDED),
    ]
    mirrors = pb.MirrorTraffic(percents={"d2": 10})
    request = pb.SetTrafficRequest(traffic={"d": 100}, mirror_traffic=mirrors, sticky_header="X-User")
    assert endpoints.set_traffic(endpoint, request, found) is not None
    assert endpoints.set_traffic(endpoint, pb.SetTrafficRequest(traffic={"d": 100}), found) is None
    assert (dict(endpoint.mirror_traffic), endpoint.sticky_header) == ({"d2": 10}, "x-user")
    assert endpoints.forget(endpoint, "d2") is not None
    assert endpoints.forget(endpoint, "d2") is None
    assert (dict(endpoint.traffic), dict(endpoint.mirror_traffic)) == ({"d": 100}, {})
    for wrong in (
        pb.SetTrafficRequest(mirror_traffic=pb.MirrorTraffic(percents={"d": 101})),
        pb.SetTrafficRequest(sticky_header="no header"),
        pb.SetTrafficRequest(traffic={"d": 1 << 31 - 1}),
    ):
        with pytest.raises(InvalidArgument):
            endpoints.set_traffic(endpoint, wrong, found)
    request = pb.SetTrafficRequest(mirror_traffic=pb.MirrorTraffic(percents={"d3": 1}))
    with pytest.raises(NotFound):
        endpoints.set_traffic(endpoint, request, found)
