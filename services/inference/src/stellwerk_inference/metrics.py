"""What no gateway sees of deployments, as OpenTelemetry metrics: how long replicas take to start."""

from datetime import UTC, datetime

from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider

from stellwerk_inference.replicas.domain import deployment_of
from stellwerk_platform import names
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

# Seconds; most starts take one to five, one that builds an environment minutes.
_BOUNDS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Starts:
    """Counts them, each process those that it saw, if there is a sink."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self._seconds: Histogram | None = None
        if provider is not None:
            self._seconds = provider.get_meter("stellwerk.scoring").create_histogram(
                "stellwerk.scoring.replica.start.duration",
                "s",
                "From the creation of a replica until it was ready",
                explicit_bucket_boundaries_advisory=_BOUNDS,
            )

    def ready(self, replica: pb.Replica) -> None:
        """A replica is ready now."""
        if self._seconds is not None:
            deployment = deployment_of(replica.name)
            took = datetime.now(UTC) - replica.create_time.ToDatetime(UTC)
            labels = {"endpoint": names.parent_of(deployment), "deployment": names.id_of(deployment)}
            self._seconds.record(took.total_seconds(), labels)
