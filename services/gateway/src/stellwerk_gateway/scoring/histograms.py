"""What was counted in buckets, as OpenTelemetry's histograms.

Its instruments would have to be told of each request; these are made of the counts when they are sent.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram, HistogramDataPoint, Metric

from stellwerk_gateway.scoring.counters import BOUNDS
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_gateway.scoring.usage import Usage
from stellwerk_platform import names

# The largest batch that a deployment can have is 10,000.
_BATCHES = tuple(1 << power for power in range(14))
_STARTED_NS = time.time_ns()
Labels = dict[str, str]


def histograms(table: RouteTable) -> list[Metric]:
    """Of all deployments; read in the exporter's thread while the loop counts."""
    known = [
        ({"endpoint": endpoint.name, "deployment": deployment.id}, deployment)
        for endpoint in list(table.endpoints.values())
        for deployment in list(endpoint.deployments.values())
    ]
    made = [
        _metric(
            "stellwerk.scoring.duration",
            "From the end of a request's head to the end of its answer",
            "s",
            [_duration(labels, deployment) for labels, deployment in known],
        ),
        _metric(
            "stellwerk.scoring.replica.batch.size",
            "Requests in a call of the script",
            "{request}",
            [point for labels, deployment in known for point in _batches(labels, deployment)],
        ),
    ]
    return [metric for metric in made if metric.data.data_points]


def _duration(labels: Labels, deployment: Deployment) -> HistogramDataPoint:
    counters = deployment.counters
    return _point(labels, list(counters.buckets), BOUNDS, counters.seconds)


def _batches(labels: Labels, deployment: Deployment) -> Iterator[HistogramDataPoint]:
    for replica in list(deployment.replicas):
        usage: Usage = replica.usage
        counts = [0] * (len(_BATCHES) + 1)
        for most, count in usage.batches.items():
            counts[bisect_left(_BATCHES, most)] += count
        yield _point({**labels, "replica": names.id_of(replica.name)}, counts, _BATCHES, usage.requests)


def _point(
    labels: Labels, counts: Sequence[int], bounds: Sequence[float], total: float
) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=labels,
        start_time_unix_nano=_STARTED_NS,
        time_unix_nano=time.time_ns(),
        count=sum(counts),
        sum=total,
        bucket_counts=counts,
        explicit_bounds=bounds,
        # OTLP may lack both, which were not counted.
        min=None,  # type: ignore[arg-type]
        max=None,  # type: ignore[arg-type]
    )


def _metric(name: str, description: str, unit: str, points: Sequence[HistogramDataPoint]) -> Metric:
    data = Histogram(data_points=points, aggregation_temporality=AggregationTemporality.CUMULATIVE)
    return Metric(name=name, description=description, unit=unit, data=data)
