"""A replica: prepare, fetch, start the scoring server, and stay until it ends."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from stellwerk.shipping import MetricFolder
from stellwerk_agent import replica_place
from stellwerk_agent.batches import FOLDER, Batches, batch_variables
from stellwerk_agent.collected import Collected, collection_variables
from stellwerk_agent.command import Exit
from stellwerk_agent.environments import Environment, clean_environment
from stellwerk_agent.failure import StepFailed, Stopped
from stellwerk_agent.files import tail
from stellwerk_agent.folder import STD_LOG
from stellwerk_agent.ingest import Shipper
from stellwerk_agent.logs import LogFolder
from stellwerk_agent.replica_place import Place
from stellwerk_agent.scoring import Scoring
from stellwerk_agent.worker import CANCELED, FAILED, PREPARING, RUNNING, Outcome, Worker
from stellwerk_platform import names, replica_tls, telemetry
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.compute.v1 import workloads_pb2

log = logging.getLogger(__name__)
# A replica that has ended waits so long for `runs` to take the end of its log.
_LAST_WORDS_SECONDS = 30.0
_SCORER_MORE_SECONDS = 5
_READY_PATH = "/v2/health/ready"
# A request may wait for the server; one that loads for minutes need not be asked all the time.
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.02, 0.25


class ReplicaWorker(Worker):
    """The life of a replica on the node."""

    def where(self, log: str) -> str:
        endpoint, deployment, replica = self.allocation.owner.split("/")[3::2]
        return f"`stellwerk deployment logs {endpoint} {deployment} --replica {replica} --log {log}`"

    async def _live(self) -> Outcome:
        path = self.folder.path
        shipper = Shipper(
            self.node.ingest,
            self.allocation.owner,
            LogFolder(path, self.folder.work, path / "logs"),
            MetricFolder(self.folder.metrics),
        )
        shipping = asyncio.create_task(shipper.run())
        try:
            async with self._collecting():
                return await self._serve()
        finally:
            shipper.finish()
            await asyncio.wait((shipping,), timeout=_LAST_WORDS_SECONDS)
            shipping.cancel()
            for failure in await asyncio.gather(shipping, return_exceptions=True):
                if isinstance(failure, Exception):
                    log.warning("%s: the end of its log is lost: %s", self.allocation.owner, failure)

    @asynccontextmanager
    async def _collecting(self) -> AsyncIterator[None]:
        """Delivers what is collected, to the last of it once the scoring server has ended."""
        if not self.workload.HasField("data_collection"):
            yield
            return
        collected = Collected(self.folder.path, self.allocation.owner, self.node.blobs, self.node.collections)
        delivering = asyncio.create_task(collected.run())
        try:
            yield
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)
            # Of an agent that ends, the next one goes on.
            if self.command.has_ended:
                await collected.finish()

    async def _serve(self) -> Outcome:
        environment = None if self.command.was_started else await self._prepare()
        async with self.phase("run_command", PREPARING, "STARTING_REPLICA", "The scoring server starts."):
            if environment is not None:
                await self._start(environment)
            announcing = asyncio.create_task(self._announce())
            try:
                async with self._scoring_batches():
                    ended, stopped = await self.wait_for_command()
            finally:
                announcing.cancel()
                await asyncio.gather(announcing, return_exceptions=True)
        if stopped:
            return Outcome(CANCELED, self.stopped().reason)
        return Outcome(FAILED, failure_of(ended, tail(self.folder.path / STD_LOG)), ended.code)

    @asynccontextmanager
    async def _scoring_batches(self) -> AsyncIterator[None]:
        """Works on mini-batches once the server is ready, if that is what the replica is for."""
        place = replica_place.noted(self.folder)
        if not self.workload.HasField("batch_settings") or place is None:
            yield
            return
        async with _client(place) as server:
            folder, service = self.folder.path / FOLDER, self.node.batches
            scoring = Scoring(folder, self.node.blobs, service, server, lambda: self.command.has_ended)
            batches = Batches(self.allocation.owner, self.workload.batch_settings, folder, service, scoring)
            leasing = asyncio.create_task(self._lease(place, batches))
            try:
                yield
            finally:
                leasing.cancel()
                await asyncio.gather(leasing, return_exceptions=True)
                # Of an agent that ends, the next one goes on.
                await (batches.finish() if self.command.has_ended else batches.drop())

    async def _lease(self, place: Place, batches: Batches) -> None:
        await _until_ready(place)
        with suppress(Stopped):
            await self.unless_stopped(batches.run())

    async def _prepare(self) -> Environment:
        environment = await self.prepare_environment()
        await self.fetch_snapshot()
        await self.fetch_inputs()
        if self._stop.is_set():
            raise self.stopped()
        return environment

    async def _start(self, environment: Environment) -> None:
        place = replica_place.noted(self.folder) or replica_place.choose(self.folder, self.node.settings)
        argv = [sys.executable, "-m", "stellwerk_scorer"]
        variables = self._variables(environment, place)
        await self.command.start(argv, self.folder.work, variables, self.folder.path / STD_LOG)

    def _variables(self, environment: Environment, place: Place) -> dict[str, str]:
        settings = self.node.settings
        traceparent = telemetry.traceparent()
        return {
            **clean_environment(),
            # So that a script below the root of its code imports what lies there.
            "AML_APP_ROOT": str(self.folder.work),
            **environment.variables,
            **self.workload.variables,
            **self._model_variables(),
            "PYTHONUNBUFFERED": "1",
            "STELLWERK_NAMESPACE": settings.namespace,
            "STELLWERK_WORKSPACE": f"workspaces/{self.workspace}",
            "STELLWERK_TOKEN_FILE": str(self.folder.token),
            "STELLWERK_GRPC_ADDRESS": settings.grpc_address,
            "STELLWERK_SECRETS_ADDRESS": settings.grpc_address,
            "STELLWERK_OTLP_ENDPOINT": settings.otlp_endpoint,
            "STELLWERK_OTLP_KEY": settings.otlp_key,
            **place.variables(self.folder),
            "STELLWERK_SCORER_PYTHON": str(environment.python),
            "STELLWERK_SCORER_SCRIPT": self._script(),
            "STELLWERK_SCORER_DRAIN_SECONDS": str(max(int(self.grace_seconds) - _SCORER_MORE_SECONDS, 1)),
            **collection_variables(self.workload, self.folder.path, self.allocation.owner),
            **batch_variables(self.workload, self.folder.path),
            "STELLWERK_SCORER_ENDPOINT": names.parent_of(self.allocation.owner, 2),
            **({"TRACEPARENT": traceparent} if traceparent else {}),
        }

    def _script(self) -> str:
        """The path of the scoring script; empty where the model is served without one."""
        if not self.workload.command:
            return ""
        script = (self.folder.work / self.workload.command).resolve()
        if not script.is_relative_to(self.folder.work.resolve()) or not script.is_file():
            raise StepFailed(
                "SCORING_SCRIPT_NOT_FOUND",
                f"The code has no scoring script {self.workload.command!r}.",
                "Name a file of the source folder, relative to it.",
            )
        return str(script)

    def _models(self) -> list[workloads_pb2.Input]:
        return [item for item in self.workload.inputs if "/models/" in item.resource]

    def _model_variables(self) -> dict[str, str]:
        models = self._models()
        if not models:
            return {"AZUREML_MODEL_DIR": str(self.folder.inputs)}
        _, _, _, name, _, version = models[0].resource.split("/")
        folder = self.input_folder(models[0]) if len(models) == 1 else self.folder.inputs / "models"
        return {
            "AZUREML_MODEL_DIR": str(folder),
            "STELLWERK_SCORER_MODEL_NAME": name,
            "STELLWERK_SCORER_MODEL_VERSION": version,
        }

    def input_folder(self, item: workloads_pb2.Input) -> Path:
        """Several models lie side by side as Azure lays them: `<model>/<version>`."""
        if len(self._models()) > 1 and "/models/" in item.resource:
            _, _, _, name, _, version = item.resource.split("/")
            return self.folder.inputs / "models" / name / version
        return super().input_folder(item)

    async def _announce(self) -> None:
        """Reports Running once the server answers, unless that was reported before a restart."""
        place = replica_place.noted(self.folder)
        if place is None or self._state.state == RUNNING:
            return
        await _until_ready(place)
        self._state.http_address = place.http_address
        self._state.grpc_address = place.grpc_address
        self._state.certificate = place.certificate
        self.report(RUNNING, common_pb2.Reason(code="REPLICA_READY", message="The scoring server answers."))


def _client(place: Place, **options: Any) -> httpx.AsyncClient:
    trust = replica_tls.context_of(place.certificate)
    return httpx.AsyncClient(trust_env=False, base_url=place.url, verify=trust, **options)


async def _until_ready(place: Place) -> None:
    async with _client(place, timeout=5) as client:
        # Another process cannot set an event of ours.
        pause = _FIRST_POLL_SECONDS
        while not await _is_ready(client):
            await asyncio.sleep(pause)
            pause = min(pause * 1.05, _LONGEST_POLL_SECONDS)


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get(_READY_PATH)).is_success
    except httpx.HTTPError:
        return False


def failure_of(ended: Exit, log_tail: str) -> common_pb2.Reason:
    """Why a replica is gone, with the end of its log."""
    how = ended.error or f"exited with code {ended.code}"
    if ended.code is not None and ended.code < 0:
        how = f"was ended by signal {-ended.code}"
    return common_pb2.Reason(
        code="REPLICA_FAILED",
        message=f"The scoring server {how}.\n{log_tail}".strip(),
        cure="Correct the scoring script or its environment, then deploy again.",
    )
