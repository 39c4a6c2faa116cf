# Generated from ../_async/loads.py by scripts/generate_sync.py; do not edit.
"""The load of deployments, and the replicas that follow from it."""

from collections.abc import Sequence

from stellwerk import names
from stellwerk._sync.core import Core
from stellwerk_protos.inference.v1 import endpoints_pb2, loads_pb2, loads_pb2_grpc


class Loads:
    """What the gateways count for the deployments of a workspace."""

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = loads_pb2_grpc.LoadServiceStub(core.channel)

    def list(self, endpoint: str = "") -> loads_pb2.ListLoadsResponse:
        """The load over the last ten seconds, of the deployments of one endpoint or of all."""
        parent = names.resource(self._parent, "endpoints", endpoint) if endpoint else self._parent
        return self._core.call(self._stub.ListLoads, loads_pb2.ListLoadsRequest(parent=parent))

    def history(self, endpoint: str, deployment: str, seconds: int = 0) -> loads_pb2.LoadHistory:
        """The load second by second, the latest `seconds` of them; 0 is all that is kept."""
        request = loads_pb2.GetLoadHistoryRequest(name=self._name(endpoint, deployment), seconds=seconds)
        return self._core.call(self._stub.GetLoadHistory, request)

    def set_scale(
        self, endpoint: str, deployment: str, settings: endpoints_pb2.ScaleSettings | None
    ) -> endpoints_pb2.Deployment:
        """Lets the load decide on the replicas of a deployment; None keeps as many as there are."""
        request = loads_pb2.SetScaleSettingsRequest(
            name=self._name(endpoint, deployment), scale_settings=settings
        )
        return self._core.call(self._stub.SetScaleSettings, request)

    def simulate(
        self,
        endpoint: str,
        deployment: str,
        settings: endpoints_pb2.ScaleSettings,
        *,
        arrivals: Sequence[int] | None = None,
        service_seconds: float = 0.0,
        start_seconds: float = 0.0,
        parallel: int = 0,
    ) -> loads_pb2.SimulateScalingResponse:
        """What other settings would make of a load, with the rules that scaling itself goes by.

        `arrivals`: requests by second, else those that are kept. `service_seconds`: how long a replica
        works on one, 0 for what was seen. `start_seconds`: from decision to readiness, 0 for 5.
        `parallel`: how many a replica works on at a time, 0 for its worker processes.
        """
        request = loads_pb2.SimulateScalingRequest(
            name=self._name(endpoint, deployment),
            scale_settings=settings,
            start_seconds=start_seconds,
            parallel=parallel,
        )
        if arrivals is None and service_seconds:
            arrivals = (self.history(endpoint, deployment)).arrivals
        if arrivals is not None:
            request.load.arrivals.extend(arrivals)
            request.load.service_seconds = service_seconds
        return self._core.call(self._stub.SimulateScaling, request)

    def _name(self, endpoint: str, deployment: str) -> str:
        return names.resource(names.resource(self._parent, "endpoints", endpoint), "deployments", deployment)
