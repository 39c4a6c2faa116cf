"""From a deployment to its routes, with compute's side of the journal played by the test."""

from typing import Any

import grpc
import pytest

from services.inference.tests.support import WORKSPACE, Inference, Journal, Scorer, deployment_request
from stellwerk_inference import states
from stellwerk_platform.errors import from_rpc
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb


async def ready_deployment(
    inference: Inference, journal: Journal, scorer: Scorer, endpoint: str, deployment_id: str
) -> tuple[pb.Deployment, str]:
    """A deployment with one ready replica, and the replica's name."""
    deployment = await inference.create_deployment(endpoint, deployment_id)
    replica = (await journal.next("replica.created"))["subject"]
    await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    return await inference.deployment(deployment.name, states.SUCCEEDED), replica


async def reason_of(call: Any) -> str:
    """The reason code with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value).reason


async def test_a_deployment_comes_to_life_and_takes_the_traffic(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    endpoint = await inference.create_endpoint("life")
    assert (endpoint.path, endpoint.state) == ("/endpoints/demo/life", states.SUCCEEDED)
    scorer.ready = False
    deployment = await inference.create_deployment(endpoint.name, "blue")
    created = await journal.next("replica.created")
    workload = created["data"]["resource"]["workload"]
    assert workload["command"] == "score.py"
    assert workload["inputs"] == [{"name": "digits", "resource": f"{WORKSPACE}/models/digits/versions/3"}]
    assert workload["environment"] == f"{WORKSPACE}/environments/sklearn/versions/3"
    assert workload["variables"] == {"THRESHOLD": "0.5"}

    replica = created["subject"]
    await inference.allocate(replica, compute.ALLOCATION_STATE_PREPARING, code="ENVIRONMENT")
    assert (await journal.next("deployment.progressed"))["data"]["reason"]["code"] == "ENVIRONMENT"
    await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    await scorer.asked.wait()
    watch = inference.stub.WatchDeployment(pb.WatchDeploymentRequest(name=deployment.name))
    assert (await watch.read()).state == states.CREATING
    scorer.ready = True
    seen = [step async for step in watch]
    assert (seen[-1].state, seen[-1].ready_replica_count) == (states.SUCCEEDED, 1)

    endpoint = await inference.stub.GetEndpoint(pb.GetEndpointRequest(name=endpoint.name))
    assert dict(endpoint.traffic) == {"blue": 100}
    route = await routes_of(inference, endpoint.name)
    assert [target.percent for target in route.targets] == [100]
    assert route.targets[0].replicas[0].http_address == scorer.address
    assert not route.targets[0].replicas[0].HasField("workload")


async def routes_of(inference: Inference, endpoint: str) -> pb.Route:
    """The endpoint's route as a gateway that connects now sees it."""
    watch = inference.routes_stub.WatchRoutes(pb.WatchRoutesRequest())
    table: pb.WatchRoutesResponse = await watch.read()
    watch.cancel()
    return next(route for route in table.routes if route.endpoint == endpoint)


async def test_a_second_deployment_gets_traffic_when_asked_for(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    endpoint = (await inference.create_endpoint("split")).name
    await ready_deployment(inference, journal, scorer, endpoint, "blue")
    second = await inference.create_deployment(endpoint, "green")
    split = {"blue": 50, "green": 50}
    request = pb.SetTrafficRequest(name=endpoint, traffic=split)
    assert await reason_of(inference.stub.SetTraffic(request)) == "DEPLOYMENT_NOT_READY"
    replica = (await journal.next("replica.created"))["subject"]
    await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    await inference.deployment(second.name, states.SUCCEEDED)
    before = await inference.stub.GetEndpoint(pb.GetEndpointRequest(name=endpoint))
    assert dict(before.traffic) == {"blue": 100}
    assert dict((await inference.stub.SetTraffic(request)).traffic) == split
    for wrong, reason in (
        ({"blue": 60}, "INVALID_TRAFFIC"),
        ({"blue": 150, "green": -50}, "INVALID_TRAFFIC"),
        ({"red": 100}, "DEPLOYMENT_NOT_FOUND"),
    ):
        request = pb.SetTrafficRequest(name=endpoint, traffic=wrong)
        assert await reason_of(inference.stub.SetTraffic(request)) == reason
    mirrors = pb.MirrorTraffic(percents={"green": 10})
    request = pb.SetTrafficRequest(name=endpoint, traffic={"blue": 100}, mirror_traffic=mirrors)
    await inference.stub.SetTraffic(request)
    targets = (await routes_of(inference, endpoint)).targets
    assert [(target.percent, target.mirror_percent) for target in targets] == [(100, 0), (0, 10)]
    await inference.stub.DeleteDeployment(pb.DeleteDeploymentRequest(name=second.name))
    after = await inference.stub.GetEndpoint(pb.GetEndpointRequest(name=endpoint))
    assert not after.mirror_traffic
    stale = pb.SetTrafficRequest(name=endpoint, traffic={"blue": 100}, etag="1")
    assert await reason_of(inference.stub.SetTraffic(stale)) == "REVISION_CHANGED"


async def test_a_failed_rollout_keeps_its_reason_and_leaves_the_traffic(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    endpoint = (await inference.create_endpoint("failing")).name
    await ready_deployment(inference, journal, scorer, endpoint, "blue")
    bad = await inference.create_deployment(endpoint, "bad", replicas=2)
    first, second = [(await journal.next("replica.created"))["subject"] for _ in range(2)]
    await inference.allocate(first, compute.ALLOCATION_STATE_FAILED, code="SCRIPT_FAILED")
    failed = await inference.deployment(bad.name, states.FAILED)
    assert (failed.reason.code, failed.reason.message) == ("SCRIPT_FAILED", "SCRIPT_FAILED said compute")
    assert (await journal.next("replica.deleting"))["subject"] == second
    after = await inference.stub.GetEndpoint(pb.GetEndpointRequest(name=endpoint))
    assert dict(after.traffic) == {"blue": 100}


async def test_a_replica_scores_its_sample_before_it_is_ready(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    endpoint = (await inference.create_endpoint("sampled")).name
    scorer.example = {"data": [[1, 2]]}
    good, _ = await ready_deployment(inference, journal, scorer, endpoint, "good")
    assert scorer.scored == [{"data": [[1, 2]]}]
    assert "The sample request (@input_schema) was answered" in good.reason.message
    scorer.status = 500
    bad = await inference.create_deployment(endpoint, "bad")
    replica = (await journal.next("replica.created"))["subject"]
    await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    failed = await inference.deployment(bad.name, states.FAILED)
    assert failed.reason.code == "SAMPLE_FAILED"
    assert "500 SCRIPT_ERROR: The script raised KeyError" in failed.reason.message
    assert "stellwerk deployment logs sampled bad" in failed.reason.cure
    assert (await journal.next("replica.deleting"))["subject"] == replica
    after = await inference.stub.GetEndpoint(pb.GetEndpointRequest(name=endpoint))
    assert dict(after.traffic) == {"good": 100}


async def test_replicas_that_are_ready_at_the_same_moment_are_all_counted(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    endpoint = (await inference.create_endpoint("crowd")).name
    scorer.ready = False
    deployment = await inference.create_deployment(endpoint, "blue", replicas=6)
    for _ in range(6):
        replica = (await journal.next("replica.created"))["subject"]
        await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    for _ in range(6):
        await journal.next("replica.starting")
    scorer.ready = True
    assert (await inference.deployment(deployment.name, states.SUCCEEDED)).ready_replica_count == 6
    assert len((await routes_of(inference, endpoint)).targets[0].replicas) == 6


async def test_a_replica_that_was_ready_and_dies_is_replaced(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    endpoint = (await inference.create_endpoint("dying")).name
    deployment, replica = await ready_deployment(inference, journal, scorer, endpoint, "blue")
    await inference.allocate(replica, compute.ALLOCATION_STATE_FAILED, code="KILLED")
    event = await journal.next("replica.created")
    assert event["data"]["reason"]["code"] == "REPLICA_REPLACED"
    assert event["subject"] != replica
    target = (await routes_of(inference, endpoint)).targets[0]
    assert (target.percent, len(target.replicas), target.starting) == (100, 0, True)
    await inference.allocate(event["subject"], compute.ALLOCATION_STATE_RUNNING, scorer.address)
    await journal.next("replica.ready")
    assert (await routes_of(inference, endpoint)).targets[0].replicas[0].name == event["subject"]
    assert (await inference.deployment(deployment.name, states.SUCCEEDED)).reason.code == "READY"


async def test_a_replica_whose_node_is_silent_leaves_the_routes_and_returns(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    endpoint = (await inference.create_endpoint("silent")).name
    _, replica = await ready_deployment(inference, journal, scorer, endpoint, "blue")
    await inference.allocate(replica, compute.ALLOCATION_STATE_NOT_RESPONDING)
    await journal.next("replica.not_responding")
    target = (await routes_of(inference, endpoint)).targets[0]
    assert (target.percent, len(target.replicas), target.starting) == (100, 0, True)
    await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    await journal.next("replica.ready")
    assert (await routes_of(inference, endpoint)).targets[0].replicas


async def test_a_probe_goes_on_after_a_restart(unstarted: Inference, scorer: Scorer) -> None:
    scorer.ready = False
    async with unstarted.run() as inference, Journal().follow(inference.bus) as journal:
        endpoint = (await inference.create_endpoint("restart")).name
        deployment = await inference.create_deployment(endpoint, "blue")
        replica = (await journal.next("replica.created"))["subject"]
        await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
        await scorer.asked.wait()
    scorer.ready = True
    async with unstarted.run() as inference:
        await inference.deployment(deployment.name, states.SUCCEEDED)


async def test_a_scorer_that_is_never_ready_fails_the_deployment(
    unstarted: Inference, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer.ready = False
    monkeypatch.setattr(unstarted, "ready_seconds", 0.3)
    async with unstarted.run() as inference, Journal().follow(inference.bus) as journal:
        endpoint = (await inference.create_endpoint("never")).name
        deployment = await inference.create_deployment(endpoint, "blue")
        replica = (await journal.next("replica.created"))["subject"]
        await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
        failed = await inference.deployment(deployment.name, states.FAILED)
        assert failed.reason.code == "SCORER_NOT_READY"
        assert (await journal.next("replica.deleting"))["subject"] == replica


async def test_deletion_waits_for_the_replicas_and_the_name_is_free_again(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    endpoint = (await inference.create_endpoint("going")).name
    deployment, replica = await ready_deployment(inference, journal, scorer, endpoint, "blue")
    delete = pb.DeleteDeploymentRequest(name=deployment.name)
    assert await reason_of(inference.stub.DeleteDeployment(delete)) == "DEPLOYMENT_TAKES_TRAFFIC"
    await inference.stub.SetTraffic(pb.SetTrafficRequest(name=endpoint))
    assert (await inference.stub.DeleteDeployment(delete)).state == states.DELETING
    assert (await journal.next("replica.deleting"))["subject"] == replica
    await inference.allocate(replica, compute.ALLOCATION_STATE_CANCELED)
    await inference.deployment(deployment.name, states.DELETED)
    listed = await inference.stub.ListDeployments(pb.ListDeploymentsRequest(parent=endpoint))
    assert not listed.deployments

    again, replica = await ready_deployment(inference, journal, scorer, endpoint, "blue")
    assert again.revision > deployment.revision
    gone = await inference.stub.DeleteEndpoint(pb.DeleteEndpointRequest(name=endpoint))
    assert (gone.state, dict(gone.traffic)) == (states.DELETING, {})
    await inference.allocate(replica, compute.ALLOCATION_STATE_CANCELED)
    await inference.endpoint(endpoint, states.DELETED)
    assert (await inference.create_endpoint("going")).state == states.SUCCEEDED


async def test_a_repeated_request_is_answered_as_the_first_time(inference: Inference) -> None:
    request = pb.CreateEndpointRequest(parent=WORKSPACE, endpoint_id="twice", request_id="twice-1")
    first = await inference.stub.CreateEndpoint(request)
    assert await inference.stub.CreateEndpoint(request) == first
    other = pb.CreateEndpointRequest(parent=WORKSPACE, endpoint_id="twice")
    assert await reason_of(inference.stub.CreateEndpoint(other)) == "ALREADY_EXISTS"
    deployment = deployment_request(first.name, "blue")
    deployment.request_id = "twice-2"
    made = await inference.stub.CreateDeployment(deployment)
    assert await inference.stub.CreateDeployment(deployment) == made
    deployment.request_id = ""
    assert await reason_of(inference.stub.CreateDeployment(deployment)) == "ALREADY_EXISTS"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("deployment_id", "No Good", "INVALID_NAME"),
        ("parent", f"{WORKSPACE}/endpoints/missing", "ENDPOINT_NOT_FOUND"),
        ("compute", f"{WORKSPACE}/computes/moon", "NOT_FOUND_THERE"),
        ("environment", f"{WORKSPACE}/environments/other/versions/1", "NOT_FOUND_THERE"),
        ("environment", "workspaces/other/environments/sklearn/versions/1", "WORKSPACE_MISMATCH"),
        ("scoring_script", "missing.py", "SCORING_SCRIPT_NOT_FOUND"),
        ("replica_count", -1, "INVALID_REPLICA_COUNT"),
        ("replica_count", 1_000, "INVALID_REPLICA_COUNT"),
        ("request_settings", pb.RequestSettings(timeout_ms=-1), "INVALID_REQUEST_SETTINGS"),
        ("request_settings", pb.RequestSettings(max_queued_requests=1_000_000), "INVALID_REQUEST_SETTINGS"),
        ("models", [], "MODEL_MISSING"),
        ("models", [f"{WORKSPACE}/models/other/versions/1"], "NOT_FOUND_THERE"),
        (
            "models",
            [f"{WORKSPACE}/models/digits/versions/1", f"{WORKSPACE}/models/digits/versions/3"],
            "DUPLICATE_MODEL",
        ),
    ],
)
async def test_what_does_not_exist_or_fit_is_refused(
    inference: Inference, field: str, value: Any, reason: str
) -> None:
    checks = pb.CreateEndpointRequest(parent=WORKSPACE, endpoint_id="checks", request_id="checks")
    endpoint = await inference.stub.CreateEndpoint(checks)
    request = deployment_request(endpoint.name, "blue")
    request.ClearField(field)  # type: ignore[arg-type]
    if isinstance(value, pb.RequestSettings):
        request.request_settings.CopyFrom(value)
    elif isinstance(value, list):
        request.models.extend(value)
    else:
        setattr(request, field, value)
    assert await reason_of(inference.stub.CreateDeployment(request)) == reason


async def test_unknown_workspace_and_endpoint(inference: Inference) -> None:
    request = pb.CreateEndpointRequest(parent="workspaces/other", endpoint_id="e")
    assert await reason_of(inference.stub.CreateEndpoint(request)) == "NOT_FOUND_THERE"
    get = pb.GetEndpointRequest(name=f"{WORKSPACE}/endpoints/none")
    assert await reason_of(inference.stub.GetEndpoint(get)) == "ENDPOINT_NOT_FOUND"
    delete = pb.DeleteEndpointRequest(name=f"{WORKSPACE}/endpoints/none")
    assert await reason_of(inference.stub.DeleteEndpoint(delete)) == "ENDPOINT_NOT_FOUND"
