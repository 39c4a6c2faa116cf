"""What HTTP and gRPC have in common: one request to the worker, within the time-out."""

from collections.abc import Mapping

from stellwerk_scorer.domain import InferRequest, Model, Tensor, outputs_of, run_argument
from stellwerk_scorer.worker_client import WorkerClient

SERVER_NAME = "stellwerk"
EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "stellwerk_script"


class DataPlane:
    """Scores with one model; every method raises `PlatformError`."""

    def __init__(self, model: Model, client: WorkerClient, timeout_seconds: float) -> None:
        self.model = model
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether new requests should come here."""
        return self._client.ready and not self._draining

    def drain(self) -> None:
        """Turns readiness off; what is under way goes on."""
        self._draining = True

    async def score(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """What `run` returns for a body, as JSON."""
        return (await self._client.score(body, headers, self._timeout_seconds)).body

    async def infer(
        self, request: InferRequest, headers: Mapping[str, str], timeout_seconds: float | None = None
    ) -> list[Tensor]:
        """The output tensors for a request; the caller's own time-out can only shorten ours."""
        limit = (
            self._timeout_seconds if timeout_seconds is None else min(timeout_seconds, self._timeout_seconds)
        )
        result = await self._client.score(run_argument(request.inputs), headers, limit, tensors=True)
        return outputs_of(result.body, result.arrays, request.outputs)
