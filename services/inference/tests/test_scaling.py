"""Replicas by load in the running service; the test plays gateway and compute."""

import asyncio
from typing import Any

import grpc
import pytest

from services.inference.tests.support import Inference, Journal, Scorer, deployment_request
from services.inference.tests.test_inference import reason_of, routes_of
from stellwerk_inference import states
from stellwerk_protos.compute.v1 import computes_pb2 as compute
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import loads_pb2


class Gateway:
    """Reports what it is told to, five times a second."""

    def __init__(self, inference: Inference, deployment: str) -> None:
        self._inference = inference
        self._load = loads_pb2.GatewayLoad(deployment=deployment, buckets=[0] * 17)
        self._task = asyncio.create_task(self._run())

    def set(self, *, in_flight: float = 0, queued: float = 0, arrived: int = 0) -> None:
        self._load.in_flight, self._load.queued = in_flight, queued
        self._load.arrived += arrived
        self._load.answered += arrived

    async def _run(self) -> None:
        while True:
            request = loads_pb2.ReportLoadRequest(process="test", loads=[self._load])
            await self._inference.loads_of_gateways.ReportLoad(request)
            await asyncio.sleep(0.2)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def scaled(
    inference: Inference, journal: Journal, scorer: Scorer, endpoint_id: str, **settings: Any
) -> tuple[pb.Deployment, str]:
    """A ready deployment with scale settings, and its one replica."""
    endpoint = (await inference.create_endpoint(endpoint_id)).name
    request = deployment_request(endpoint, "blue")
    request.scale_settings.CopyFrom(pb.ScaleSettings(**settings))
    deployment = await inference.stub.CreateDeployment(request)
    replica = (await journal.next("replica.created"))["subject"]
    await inference.allocate(replica, compute.ALLOCATION_STATE_RUNNING, scorer.address)
    return await inference.deployment(deployment.name, states.SUCCEEDED), replica


async def test_replicas_follow_the_load_down_to_none_and_back(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    deployment, first = await scaled(
        inference,
        journal,
        scorer,
        "by-load",
        min_replicas=0,
        max_replicas=3,
        target_concurrency=2,
        scale_up_delay_seconds=1,
        scale_down_delay_seconds=2,
    )
    endpoint = deployment.name.rpartition("/deployments/")[0]
    gateway = Gateway(inference, deployment.name)
    try:
        gateway.set(in_flight=5.5, arrived=30)
        events = await journal.together(deployment_scaled=1, replica_created=2)
        event, new = events["deployment_scaled"][0], events["replica_created"]
        assert event["data"]["reason"]["code"] == "LOAD_ROSE"
        assert "5.5 requests at a time" in event["data"]["reason"]["message"]
        assert event["data"]["resource"]["lastScaling"]["toReplicas"] == 3
        assert {item["data"]["cause"] for item in new} == {event["id"]}
        for item in new:
            await inference.allocate(item["subject"], compute.ALLOCATION_STATE_RUNNING, scorer.address)
            await journal.next("replica.ready")

        gateway.set()
        events = await journal.together(deployment_scaled=1, replica_deleting=3)
        event, stopped = events["deployment_scaled"][0], [e["subject"] for e in events["replica_deleting"]]
        assert (event["data"]["reason"]["code"], event["data"]["resource"].get("replicaCount", 0)) == (
            "NO_REQUESTS",
            0,
        )
        assert first in stopped
        target = (await routes_of(inference, endpoint)).targets[0]
        assert (target.asleep, target.starting, len(target.replicas), target.percent) == (True, False, 0, 100)
        for replica in stopped:
            await inference.allocate(replica, compute.ALLOCATION_STATE_CANCELED)

        gateway.set(queued=1, arrived=1)
        event = await journal.next("deployment.scaled")
        assert event["data"]["reason"]["code"] == "REQUEST_WAITS"
        target = (await routes_of(inference, endpoint)).targets[0]
        assert (target.asleep, target.starting) == (False, True)
    finally:
        await gateway.stop()


async def test_load_is_shown_kept_and_played_again(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    deployment, _ = await scaled(inference, journal, scorer, "shown", min_replicas=1, max_replicas=1)
    simulation = loads_pb2.SimulateScalingRequest(
        name=deployment.name, scale_settings=pb.ScaleSettings(max_replicas=4)
    )
    assert await reason_of(inference.loads.SimulateScaling(simulation)) == "NO_LOAD_RECORDED"
    gateway = Gateway(inference, deployment.name)
    try:
        async with asyncio.timeout(60):
            while True:
                gateway.set(in_flight=1, arrived=2)
                endpoint = deployment.name.rpartition("/deployments/")[0]
                answer = await inference.loads.ListLoads(loads_pb2.ListLoadsRequest(parent=endpoint))
                history = await inference.loads.GetLoadHistory(
                    loads_pb2.GetLoadHistoryRequest(name=deployment.name)
                )
                if answer.loads[0].rate and history.service_seconds:
                    break
                await asyncio.sleep(0.1)
    finally:
        await gateway.stop()
    assert (answer.gateways, answer.loads[0].percent, answer.loads[0].ready_replica_count) == (1, 100, 1)
    assert answer.loads[0].start_count == 1
    assert answer.loads[0].start_seconds > 0
    played = await inference.loads.SimulateScaling(simulation)
    assert played.requests == sum(step.arrivals for step in played.seconds) > 0
    simulation.load.arrivals.extend([5] * 60)
    simulation.load.service_seconds = 0.1
    assert (await inference.loads.SimulateScaling(simulation)).requests == 300


async def test_settings_are_replaced_and_ended(
    inference: Inference, journal: Journal, scorer: Scorer
) -> None:
    deployment, _ = await scaled(inference, journal, scorer, "settings", max_replicas=2)
    request = loads_pb2.SetScaleSettingsRequest(
        name=deployment.name, scale_settings=pb.ScaleSettings(min_replicas=2, max_replicas=2)
    )
    assert (await inference.loads.SetScaleSettings(request)).replica_count == 2
    event = await journal.next("replica.created")
    assert event["data"]["reason"]["code"] == "SCALED_UP"
    request.scale_settings.max_replicas = 1
    assert await reason_of(inference.loads.SetScaleSettings(request)) == "INVALID_SCALE_SETTINGS"
    ended = await inference.loads.SetScaleSettings(loads_pb2.SetScaleSettingsRequest(name=deployment.name))
    assert (ended.HasField("scale_settings"), ended.replica_count) == (False, 2)


async def test_only_gateways_report(inference: Inference) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference.loads.ReportLoad(loads_pb2.ReportLoadRequest(process="me"))
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
