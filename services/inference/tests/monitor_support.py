"""A data set, collected data and a blob store for the tests of monitors."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from aiohttp import web

from services.inference.tests.support import WORKSPACE, Inference
from stellwerk_inference.collected.domain import Place
from stellwerk_inference.collected.store import CollectedStore
from stellwerk_platform.mongo import Database
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import collections_pb2
from stellwerk_protos.inference.v1 import monitors_pb2 as pb
from stellwerk_protos.registry.v1 import blobs_pb2, datasets_pb2

TRAINING = f"{WORKSPACE}/datasets/training/versions"
WIDTH = 4


class Data:
    """What the registry would answer of a data set and of blobs, and the HTTP server of their content."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._blobs: dict[str, bytes] = {}
        self._url = ""
        self._written = 0
        # How many files were asked for, that one is, and that they may be had.
        self.fetched = 0
        self.asked, self.open = asyncio.Event(), asyncio.Event()
        self.open.set()
        header = ",".join([*(f"x{index}" for index in range(WIDTH)), "target"])
        rows = "\n".join(",".join(f"{cell:.4f}" for cell in row) for row in draw(0, 1_000, WIDTH + 1))
        self.files = [self._keep("train/data.csv", f"{header}\n{rows}\n".encode())]

    def _keep(self, path: str, content: bytes) -> File:
        digest = hashlib.sha256(content).hexdigest()
        self._blobs[digest] = content
        return File(path=path, sha256=digest, size_bytes=len(content))

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Data"]:
        application = web.Application()
        application.router.add_get("/{digest}", self._get)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        answers = self._inference.others.answers
        answers[datasets_pb2.GetDatasetVersionRequest] = self._version
        answers[blobs_pb2.PrepareDownloadsRequest] = self._downloads
        try:
            yield self
        finally:
            answers.clear()
            await runner.cleanup()

    async def _get(self, request: web.Request) -> web.Response:
        self.fetched += 1
        self.asked.set()
        await self.open.wait()
        return web.Response(body=self._blobs[request.match_info["digest"]])

    def _version(self, request: datasets_pb2.GetDatasetVersionRequest) -> datasets_pb2.DatasetVersion:
        return datasets_pb2.DatasetVersion(name=request.name.replace("latest", "2"), files=self.files)

    def _downloads(self, request: blobs_pb2.PrepareDownloadsRequest) -> blobs_pb2.PrepareDownloadsResponse:
        found = [blobs_pb2.Download(sha256=one, url=f"{self._url}/{one}") for one in request.sha256]
        return blobs_pb2.PrepareDownloadsResponse(downloads=found)

    async def collect(self, endpoint: str, rows: int, *, shift: float = 0.0, hours_ago: float = 0.0) -> None:
        """Records a file of requests with a row each, as a node does."""
        self._written += 1
        moment = datetime.now(UTC) - timedelta(hours=hours_ago, seconds=1)
        hour = moment.strftime("%Y/%m/%d/%H")
        path = f"{endpoint.rpartition('/')[2]}/blue/request/{hour}/r1-{self._written}.jsonl"
        events = [
            {"specversion": "1.0", "source": "/x", "time": moment.isoformat(), "data": {"data": [row]}}
            for row in draw(self._written, rows, WIDTH, shift)
        ]
        content = "".join(json.dumps(event) + "\n" for event in events).encode()
        item = collections_pb2.CollectedFile(file=self._keep(path, content), event_count=rows)
        servers = self._inference.secrets.servers
        database = Database(servers.mongodb_uri, self._inference.bus.names.namespace, "inference")
        place = Place.of(path, f"{endpoint}/deployments/blue/replicas/r1")
        await CollectedStore(database).record(endpoint, [item], [place])
        database.close()


def draw(seed: int, rows: int, width: int, shift: float = 0.0) -> list[list[float]]:
    """Rows of a normal distribution, the first column of which is shifted."""
    table = np.random.default_rng(seed).normal(size=(rows, width))
    table[:, 0] += shift
    found: list[list[float]] = table.tolist()
    return found


def monitor_request(endpoint: str, monitor_id: str, /, **values: Any) -> pb.CreateMonitorRequest:
    monitor = pb.Monitor(
        **{"endpoint": endpoint, "collection": "request", "baseline": f"{TRAINING}/latest", **values}
    )
    return pb.CreateMonitorRequest(parent=WORKSPACE, monitor_id=monitor_id, monitor=monitor)


async def checked(inference: Inference, monitor: str, **values: Any) -> pb.MonitorCheck:
    """A check once it has ended."""
    request = pb.CheckMonitorRequest(name=monitor, **values)
    return await ended(inference, (await inference.monitors.CheckMonitor(request, timeout=30)).name)


async def ended(inference: Inference, check: str) -> pb.MonitorCheck:
    """The same for one that was begun."""
    request = pb.WatchMonitorCheckRequest(name=check)
    seen: list[pb.MonitorCheck] = [
        one async for one in inference.monitors.WatchMonitorCheck(request, timeout=240)
    ]
    return seen[-1]
