"""What a deployment does reaches a collector of the operator's own, over OTLP as it is spoken."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from services.gateway.tests.replica import FakeReplica, route, until
from services.gateway.tests.test_scoring import STRANGER, URL, score
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_gateway.scoring.statistics import Metrics
from stellwerk_platform import otlp
from stellwerk_platform.settings import Settings

USAGE = {
    "cpu_seconds": 1.5,
    "memory_bytes": 1000,
    "calls": 6,
    "requests": 110,
    "batches": {"1": 3, "8": 1, "48": 2},
}


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps what it got last, by name, and the keys that were shown."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.keys: set[str] = set()
        self.services: set[str] = set()
        self.address = ""

    async def Export(self, request: Any, context: Any) -> Any:
        """Takes a batch."""
        self.keys.add(dict(context.invocation_metadata()).get("authorization", ""))
        for resource in request.resource_metrics:
            self.services |= {
                one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
            }
            for scope in resource.scope_metrics:
                assert scope.scope.name == "stellwerk.scoring"
                self.metrics |= {metric.name: metric for metric in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def points(self, name: str) -> list[Any]:
        """Of one metric, without the beginning that all their names have."""
        metric = self.metrics[f"stellwerk.scoring.{name}"]
        return list(getattr(metric, metric.WhichOneof("data")).data_points)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    service = Collector()
    server = grpc.aio.server()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    service.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield service
    await server.stop(None)


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    fake = FakeReplica("a")
    fake.usage = json.dumps(USAGE)
    await fake.start()
    yield fake
    await fake.stop()


def labels(point: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in point.attributes}


async def test_a_collector_of_the_operator_gets_what_deployments_do(
    web: aiohttp.ClientSession,
    table: RouteTable,
    replica: FakeReplica,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(otlp, "_TIMEOUT_SECONDS", 60)
    settings = Settings(
        otlp_endpoint="http://127.0.0.1:1",
        otlp_key="swk_spans",
        otlp_metrics_endpoint=collector.address,
        otlp_metrics_key="metrics",
    )
    made = route(blue=(100, [replica]))
    table.replace([made])
    deployment = table.endpoints[made.endpoint].deployments["blue"]
    for _ in range(3):
        assert (await score(web))[0] == 200
    async with web.post(f"{URL}/score", headers=STRANGER, data=b"1") as refused:
        assert refused.status == 403
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with web.options(f"{URL}/score", headers=preflight) as allowed:
        assert allowed.status == 200
    await until(lambda: deployment.replicas[0].usage.calls > 0)
    metrics = Metrics(settings, table)
    assert metrics._provider is not None
    assert await asyncio.to_thread(metrics._provider.force_flush, 60_000)

    assert (collector.keys, collector.services) == ({"Bearer metrics"}, {"gateway"})
    own = {"endpoint": made.endpoint, "deployment": "blue"}
    (requests,) = collector.points("requests")
    assert (labels(requests), requests.as_int) == ({**own, "code": 200}, 3)
    (refused_point,) = collector.points("refused")
    assert (labels(refused_point), refused_point.as_int) == ({"endpoint": made.endpoint, "code": 403}, 1)
    (duration,) = collector.points("duration")
    assert (labels(duration), duration.count, sum(duration.bucket_counts)) == (own, 3, 3)
    assert len(duration.bucket_counts) == len(duration.explicit_bounds) + 1
    assert duration.sum > 0
    assert not duration.HasField("min")
    assert collector.metrics["stellwerk.scoring.duration"].unit == "s"
    (batches,) = collector.points("replica.batch.size")
    assert labels(batches) == {**own, "replica": "a"}
    counted = zip(batches.explicit_bounds, batches.bucket_counts, strict=False)
    assert {bound: count for bound, count in counted if count} == {1: 3, 8: 1, 64: 2}
    assert (batches.count, batches.sum) == (6, 110)
    for name in ("replica.cpu.time", "replica.memory"):
        assert [labels(point) for point in collector.points(name)] == [{**own, "replica": "a"}]
    for name in ("in_flight", "queued", "replicas", "cold_starts", "cold_start.wait", "retries", "ejections"):
        assert [labels(point) for point in collector.points(name)] == [own]
    await asyncio.to_thread(metrics.close)
