"""What HTTP and gRPC have in common: requests become jobs of the pool, answers become tensors."""

import asyncio
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import orjson

from stellwerk_platform.errors import InvalidArgument, PlatformError
from stellwerk_scorer import domain
from stellwerk_scorer.domain import InferRequest, Model, Tensor
from stellwerk_scorer.job import Answer, Job
from stellwerk_scorer.pool import Pool
from stellwerk_scorer.tensors import TensorError
from stellwerk_scorer.worker import frames

SERVER_NAME = "stellwerk"
# For which a mini-batch waits for a worker, before its client is to send it again.
_MINI_BATCH_WAIT_SECONDS = 60.0
EXTENSIONS = ("binary_tensor_data",)
# The token that let a request in may do everything that the gateway may: user code must not see it.
_HIDDEN_HEADERS = frozenset({b"authorization", b"proxy-authorization"})

# What a client of tensors says of its body; the script gets another, which is JSON.
_BODY_HEADERS = frozenset(
    {
        *(b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"),
        b"inference-header-content-length",
    }
)

Headers = Sequence[tuple[bytes, bytes]]
Done = Callable[[Answer | PlatformError], None]


class DataPlane:
    """Scores with one model; methods raise `PlatformError` or tell it to `done`."""

    def __init__(self, model: Model, pool: Pool, timeout_seconds: float) -> None:
        self.model = model
        self.pool = pool
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._draining = False

    def usage(self) -> bytes:
        """What this process and the workers use, as the line of an answer."""
        return self.pool.usage.header([os.getpid(), *self.pool.pids])

    @property
    def ready(self) -> bool:
        """Whether new requests should come here."""
        return self.pool.ready and not self._draining

    def drain(self) -> None:
        """Turns readiness off; what is under way goes on."""
        self._draining = True

    def tensors(self) -> dict[str, Any]:
        """Platform and tensors of the model; a scoring script does not say what it takes and gives."""
        described = self.pool.description
        return {
            "platform": described.get("platform", "stellwerk_script"),
            "inputs": described.get("inputs", []),
            "outputs": described.get("outputs", []),
        }

    def score(self, body: bytes, method: str, target: str, headers: Headers, done: Done) -> Job:
        """Calls `run` with a body as it came."""
        job = Job(frames.SCORE, self._envelope(method, target, headers), body, self._deadline(None), done)
        job.batch_key = frames.SCORE
        self.pool.submit(job)
        return job

    def mini_batch(self, request: bytes, run_seconds: float, done: Done) -> Job:
        """Calls `run` with the files of a mini-batch (`mini_batches.py`)."""
        deadline = self._loop.time() + _MINI_BATCH_WAIT_SECONDS
        job = Job(frames.SCORE, b"", request, deadline, done, run_seconds=run_seconds)
        self.pool.submit(job)
        return job

    def infer(
        self, request: InferRequest, headers: Headers, timeout_seconds: float | None, done: Done
    ) -> Job:
        """Calls `run` with tensors; the caller's own time-out can only shorten ours."""
        domain.check_inputs(request.inputs)
        form = self.pool.description.get("tensors")
        key: Hashable = frames.INFER
        try:
            if form == "binary":
                meta, payload = domain.as_binary(request.inputs, request.outputs)
                if self.pool.batches:
                    key = (request.outputs, tuple((t.name, t.datatype, t.shape[1:]) for t in request.inputs))
            elif form == domain.NO_TENSORS:
                raise domain.only_mini_batches()
            else:
                meta = self._envelope("POST", "/score", headers, of_tensors=True)
                payload = domain.as_text(request.inputs, named=form == "named")
        except TensorError as error:
            raise InvalidArgument("INVALID_TENSOR", f"An input is wrong: {error}.") from None
        job = Job(frames.INFER, meta, payload, self._deadline(timeout_seconds), done, key)
        self.pool.submit(job)
        return job

    async def infer_and_wait(
        self, request: InferRequest, headers: Headers, timeout_seconds: float | None
    ) -> list[Tensor]:
        """The output tensors; raises `PlatformError`."""
        outcome: asyncio.Future[Answer | PlatformError] = self._loop.create_future()
        job = self.infer(request, headers, timeout_seconds, outcome.set_result)
        try:
            answer = await outcome
        except asyncio.CancelledError:
            job.is_canceled = True
            raise
        return outputs_of(answer, request)

    def _deadline(self, timeout_seconds: float | None) -> float:
        limit = self._timeout_seconds
        if timeout_seconds is not None:
            limit = max(min(timeout_seconds, limit), 0.0)
        return self._loop.time() + limit

    def _envelope(self, method: str, target: str, headers: Headers, *, of_tensors: bool = False) -> bytes:
        """What only some scripts ask for: headers, and with `@rawhttp` the whole request."""
        if not self.pool.description.get("envelope"):
            return b""
        if of_tensors:
            others = [pair for pair in headers if pair[0] not in _BODY_HEADERS]
            headers = [*others, (b"content-type", b"application/json")]
        shown = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers
            if name not in _HIDDEN_HEADERS
        ]
        return orjson.dumps({"method": method, "target": target, "headers": shown})


def outputs_of(answer: Answer | PlatformError, request: InferRequest) -> list[Tensor]:
    """The tensors in an answer; raises `PlatformError`."""
    if isinstance(answer, PlatformError):
        raise answer
    if answer.kind == frames.TENSORS:
        return domain.outputs_of_tensors(answer.meta, answer.payload, request.outputs)
    return domain.outputs_of(answer.payload, orjson.loads(answer.meta)["arrays"], request.outputs)
