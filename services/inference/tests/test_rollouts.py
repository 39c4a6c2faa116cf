"""Rollouts over random histories: what serves goes on serving until the next one can; no server."""

from hypothesis import given
from hypothesis import strategies as st

from stellwerk_inference import states
from stellwerk_inference.deployments import domain as deployments
from stellwerk_inference.deployments import requests, rollouts
from stellwerk_inference.endpoints import domain as endpoints
from stellwerk_inference.replicas import domain as replicas
from stellwerk_inference.routes.domain import table
from stellwerk_platform.errors import FailedPrecondition, NotFound
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

ENDPOINT = "workspaces/demo/endpoints/e"
CREATE = pb.CreateDeploymentRequest(
    parent=ENDPOINT,
    deployment_id="d",
    models=["workspaces/demo/models/m/versions/1"],
    snapshot="workspaces/demo/snapshots/s",
    scoring_script="score.py",
    replica_count=2,
    rollout_limit=3,
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["update", "ready", "fail", "roll_back", "count", "die", "delete", "silent"]),
        st.integers(0, 6),
    ),
    max_size=40,
)


class World:
    """A deployment and its replicas, moved by the rules alone, as the life cycle applies them."""

    def __init__(self) -> None:
        self.deployment = deployments.new(CREATE, list(CREATE.models), "e", [], "tester")
        self.replicas: list[pb.Replica] = []
        self.version = 1
        self.settle()

    def settle(self) -> None:
        """Starts, observes, stops and replaces until nothing changes."""
        for _ in range(10):
            before = self.deployment.SerializeToString(deterministic=True), len(self.replicas)
            target = rollouts.target(self.deployment)
            if target is not None and self.deployment.state not in states.LEAVING:
                live = [r for r in self.of(target.number) if r.state in replicas.LIVE]
                failed = any(replicas.has_failed(r) for r in self.of(target.number))
                wanted = 0 if failed else deployments.target_replicas(self.deployment) - len(live)
                self.add(target, wanted)
            deployments.observe(self.deployment, self.replicas)
            if self.deployment.state in states.LEAVING:
                surplus = self.replicas
            else:
                surplus = deployments.surplus_replicas(self.deployment, self.replicas)
            for replica in surplus:
                replicas.stop(replica, "STOP", "")
            serving = rollouts.find(self.deployment, self.deployment.rollout)
            if serving is not None:
                self.add(serving, deployments.missing_replicas(self.deployment, self.replicas))
            if before == (self.deployment.SerializeToString(deterministic=True), len(self.replicas)):
                return
        raise AssertionError("The rules do not come to rest.")

    def add(self, rollout: pb.Rollout, count: int) -> None:
        self.replicas += [replicas.new(self.deployment, rollout) for _ in range(count)]

    def of(self, number: int) -> list[pb.Replica]:
        return deployments.of_rollout(self.replicas, number)

    def take(self, step: str, number: int) -> None:
        """One thing that happens; what is refused changes nothing."""
        live = [r for r in self.replicas if r.state in replicas.LIVE]
        if step == "update":
            self.version += 1
            request = pb.UpdateDeploymentRequest(models=[f"workspaces/demo/models/m/versions/{self.version}"])
            request.update_mask.paths.append("models")
            wanted = requests.change(self.deployment, request)
            rollout = deployments.rollout_of(wanted, list(wanted.models), "e", [], "tester")
            deployments.update(self.deployment, rollout, wanted, ["models"])
        elif step == "count":
            request = pb.UpdateDeploymentRequest(replica_count=1 + number % 3)
            request.update_mask.paths.append("replica_count")
            wanted = requests.change(self.deployment, request)
            rollout = deployments.rollout_of(wanted, list(wanted.models), "e", [], "tester")
            deployments.update(self.deployment, rollout, wanted, ["replica_count"])
        elif step == "roll_back":
            deployments.roll_back(self.deployment, number, "tester")
        elif step == "delete":
            deployments.delete(self.deployment, 0 if number == 6 else 100)
        elif live:
            replica = live[number % len(live)]
            if step == "ready":
                replica.state = states.SUCCEEDED
            elif step == "silent":
                replica.state = states.NOT_RESPONDING
            else:
                replica.state = states.FAILED
                replica.reason.CopyFrom(Reason(code="KILLED", message="as the test wants"))

    def served(self) -> set[str]:
        """The replicas that get requests."""
        endpoint = pb.Endpoint(name=ENDPOINT, traffic={"d": 100})
        targets = table([endpoint], [self.deployment], self.replicas).routes[0].targets
        return {replica.name for target in targets for replica in target.replicas}


@given(STEPS)
def test_what_serves_goes_on_until_the_next_rollout_is_whole(steps: list[tuple[str, int]]) -> None:
    world = World()
    for step, number in steps:
        before, served = pb.Deployment(), world.served()
        before.CopyFrom(world.deployment)
        try:
            world.take(step, number)
        except (FailedPrecondition, NotFound):
            assert world.deployment == before
            continue
        world.settle()
        after = world.deployment
        _check(world, before)
        if after.rollout == before.rollout and step not in ("count", "fail", "die", "silent", "delete"):
            # Updates, failures of a rollout and going back take nothing from what serves.
            assert served <= world.served()
        if after.rollout != before.rollout:
            assert len(world.served()) == after.replica_count
        if after.state == states.DELETED:
            return


def _check(world: World, before: pb.Deployment) -> None:
    deployment = world.deployment
    numbers = [rollout.number for rollout in deployment.rollouts]
    assert numbers == sorted(set(numbers))
    assert len(numbers) <= deployment.rollout_limit
    assert deployment.rollout == 0 or deployment.rollout in numbers
    assert deployment.target_rollout == 0 or deployment.target_rollout == numbers[-1]
    assert max(numbers) >= max(rollout.number for rollout in before.rollouts)
    for replica in world.replicas:
        if replica.name in world.served():
            assert replica.rollout == deployment.rollout
    for rollout in deployment.rollouts:
        going_on = rollout.number == deployment.target_rollout
        assert (rollout.state == states.CREATING) == going_on
        assert rollout.reason.code
    assert (deployment.state == states.CREATING) <= (deployment.rollout == 0)
    assert deployment.reason.code


def test_an_update_to_what_serves_already_changes_nothing_and_a_failed_one_can_be_repeated() -> None:
    world = World()
    for _ in range(2):
        world.take("ready", 0)
        world.take("ready", 1)
    world.settle()
    assert (world.deployment.rollout, world.deployment.state) == (1, states.SUCCEEDED)
    wanted = requests.request_of(world.deployment)
    same = deployments.rollout_of(wanted, list(wanted.models), "e", [], "tester")
    assert deployments.update(world.deployment, same, wanted, ["models"]) is None
    world.take("update", 0)
    world.settle()
    broken = next(r for r in world.replicas if r.rollout == 2)
    broken.state = states.FAILED
    broken.reason.CopyFrom(Reason(code="SCRIPT_FAILED", message="NameError"))
    world.settle()
    second = world.deployment.rollouts[1]
    assert (second.state, second.reason.code) == (states.FAILED, "SCRIPT_FAILED")
    assert (world.deployment.rollout, world.deployment.state) == (1, states.SUCCEEDED)
    assert len(world.served()) == 2
    assert rollouts.models_of(world.deployment) == {"workspaces/demo/models/m/versions/1"}


def test_the_split_of_an_endpoint_is_not_touched_by_a_rollout() -> None:
    endpoint = pb.Endpoint(name=ENDPOINT, state=states.SUCCEEDED, traffic={"other": 100})
    deployment = pb.Deployment(name=f"{ENDPOINT}/deployments/d", state=states.SUCCEEDED)
    assert endpoints.take_first(endpoint, deployment.name, [deployment]) is None
