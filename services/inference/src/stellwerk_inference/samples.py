"""Scores the sample request that ships with a scoring script, on a replica that is about to be ready."""

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc

from stellwerk_inference.deployments import rollouts
from stellwerk_inference.replicas.domain import SAMPLE_FAILED_CODE, deployment_of
from stellwerk_platform import names, replica_tls
from stellwerk_platform.errors import PlatformError
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.registry.v1 import blobs_pb2
from stellwerk_protos.runs.v1 import logs_pb2
from stellwerk_protos.secrets.v1 import tokens_pb2

if TYPE_CHECKING:
    from stellwerk_protos.registry.v1.blobs_pb2_grpc import BlobServiceAsyncStub
    from stellwerk_protos.runs.v1.logs_pb2_grpc import LogServiceAsyncStub
    from stellwerk_protos.secrets.v1.tokens_pb2_grpc import TokenServiceAsyncStub

log = logging.getLogger(__name__)
_TIMEOUT_MS = 65_000
# What says nothing of the script: it is asked again.
_ASK_AGAIN = frozenset({429, 503})
_LOG_BYTES, _LOG_LINES = 4_096, 12
_LOG_TRIES, _LOG_PAUSE_SECONDS = 10, 0.2
_NONE = (
    "No sample request was scored: the script has no @input_schema with a sample, and no "
    f"{rollouts.SAMPLE_NAMES[0]} lies beside it."
)
_NONE_OF_MODEL = (
    "No sample request was scored: the model's folder has no "
    f"{' and no '.join(rollouts.MODEL_SAMPLE_NAMES[:3])}."
)


@dataclass(frozen=True)
class Result:
    """What came of it: a note, or the reason of a failure."""

    note: str = ""
    failure: Reason | None = None


class NotNow(Exception):
    """The replica cannot answer at the moment, which is not the fault of its script."""


class Samples:
    """Knows where sample requests come from; holds nothing."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        tokens: "TokenServiceAsyncStub",
        blobs: "BlobServiceAsyncStub",
        logs: "LogServiceAsyncStub",
    ) -> None:
        self._session = session
        self._tokens = tokens
        self._blobs = blobs
        self._logs = logs

    async def score(self, replica: pb.Replica, rollout: pb.Rollout) -> Result:
        """Sends the sample and judges the answer.

        Raises `NotNow`, `aiohttp.ClientError`, `TimeoutError` or `AioRpcError` when it has to be tried again.
        """
        owner = names.parent_of(deployment_of(replica.name))
        issued = await self._tokens.IssueWorkloadToken(
            tokens_pb2.IssueWorkloadTokenRequest(owner=owner), timeout=10
        )
        url = replica_tls.url_of(replica.http_address)
        headers = {
            "authorization": f"Bearer {issued.token}",
            "content-type": "application/json",
            # Nobody asked it: it is not collected as data.
            "x-stellwerk-sample": "true",
            "x-request-id": f"sample-{names.id_of(replica.name)}",
        }
        options: dict[str, Any] = {"headers": headers, "ssl": replica_tls.context_of(replica.certificate)}
        origin, body = await self._sample(url, options, replica, rollout)
        if body is None:
            return Result(note=_NONE if rollout.workload.command else _NONE_OF_MODEL)
        timeout = aiohttp.ClientTimeout(total=(rollout.request_settings.timeout_ms or _TIMEOUT_MS) / 1000)
        began = time.monotonic()
        try:
            async with self._session.post(f"{url}/score", data=body, timeout=timeout, **options) as answer:
                status, text = answer.status, await answer.text(errors="replace")
        except TimeoutError:
            return await self._failed(replica, origin, f"was not answered within {timeout.total:g} s")
        if status in _ASK_AGAIN:
            raise NotNow(f"{status} {text[:200]}")
        if status >= 400:
            return await self._failed(replica, origin, f"was answered with {status} {_error(text)}")
        milliseconds = (time.monotonic() - began) * 1000
        return Result(note=f"The sample request ({origin}) was answered in {milliseconds:.0f} ms.")

    async def _sample(
        self, url: str, options: dict[str, Any], replica: pb.Replica, rollout: pb.Rollout
    ) -> tuple[str, bytes | None]:
        """Where the sample comes from, and the request; None if there is none."""
        if not rollout.sample_chosen and (found := await self._of_schema(url, options)) is not None:
            return "@input_schema", found
        if not rollout.sample:
            return "", None
        request = blobs_pb2.PrepareDownloadsRequest(
            parent=f"workspaces/{names.workspace_of(replica.name)}", sha256=[rollout.sample_sha256]
        )
        downloads = (await self._blobs.PrepareDownloads(request)).downloads
        async with self._session.get(downloads[0].url) as answer:
            answer.raise_for_status()
            return rollout.sample, await answer.read()

    async def _of_schema(self, url: str, options: dict[str, Any]) -> bytes | None:
        async with self._session.get(f"{url}/swagger.json", **options) as answer:
            if answer.status in _ASK_AGAIN:
                raise NotNow(f"{answer.status} for the swagger document")
            if answer.status != 200:
                return None
            try:
                document = json.loads(await answer.read())
            except ValueError:
                return None
        example = _example(document)
        return None if not example else json.dumps(example).encode()

    async def _failed(self, replica: pb.Replica, origin: str, how: str) -> Result:
        endpoint, deployment, replica_id = replica.name.split("/")[3::2]
        lines = await self._last_lines(replica.name)
        return Result(
            failure=Reason(
                code=SAMPLE_FAILED_CODE,
                message=f"Step sample: the sample request ({origin}) {how}.\n{lines}".strip(),
                cure="Correct the script, the model, or the sample; all it said: `stellwerk deployment logs "
                f"{endpoint} {deployment} --replica {replica_id}`.",
            )
        )

    async def _last_lines(self, replica: str) -> str:
        """The end of the replica's log, once it tells of an error; it travels while this waits."""
        text = ""
        for _ in range(_LOG_TRIES):
            try:
                request = logs_pb2.ReadLogRequest(parent=replica, tail_bytes=_LOG_BYTES)
                parts = [part.data async for part in self._logs.ReadLog(request, timeout=5)]
            except (grpc.aio.AioRpcError, PlatformError) as error:
                log.warning("The log of %s cannot be read now: %s", replica, error)
                return text
            text = "\n".join(b"".join(parts).decode(errors="replace").splitlines()[-_LOG_LINES:])
            if "Traceback" in text or "Error" in text:
                break
            await asyncio.sleep(_LOG_PAUSE_SECONDS)
        return text


def _example(document: Any) -> Any:
    """The example in an OpenAPI document of version 2; {} of a script without @input_schema is none."""
    try:
        return document["definitions"]["ServiceInput"].get("example")
    except (KeyError, TypeError, AttributeError):
        return None


def _error(text: str) -> str:
    try:
        found = json.loads(text)
        return f"{found['reason']}: {found['message']}"[:1_000].rstrip(".")
    except (ValueError, KeyError, TypeError):
        return text[:200].strip()
