"""Looks, before a monitor is stored, whether its baseline has the columns that it names.

Baselines come from users, so they are read where checks read them: in a process without rights. What
cannot be read in time is not held against the monitor; its first check reads it again.
"""

import asyncio
import logging
from collections.abc import Mapping

from stellwerk_inference.monitors import process, requests
from stellwerk_inference.monitors.compare.failures import CheckFailed
from stellwerk_inference.upstream import Upstream
from stellwerk_platform import names
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import monitors_pb2 as pb
from stellwerk_protos.registry.v1.datasets_pb2 import DatasetVersion

log = logging.getLogger(__name__)
# Clients wait ten seconds for a monitor.
LOOK_SECONDS = 6.0
# The memory limit of the pod has room for as many.
_AT_A_TIME = 2
# What a version of a dataset is, it stays: the first check would find the same.
_LASTING = frozenset({"COLUMN_NOT_FOUND", "BASELINE_EMPTY", "BASELINE_UNREADABLE"})
# The fields of a monitor on which it depends.
FIELDS = frozenset({"baseline", "baseline_path", "columns", "thresholds"})


class Baselines:
    """One of each process; a few are looked at at a time."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._room = asyncio.Semaphore(_AT_A_TIME)

    async def check(self, monitor: pb.Monitor, version: DatasetVersion) -> None:
        """Raises `InvalidArgument` when checks of the monitor could not be made."""
        files = requests.baseline_files(version, monitor.baseline_path)
        columns = list(
            dict.fromkeys([*monitor.columns, *(one.column for one in monitor.thresholds if one.column)])
        )
        if not columns:
            return
        digests = list({file.sha256 for file in files})
        urls = await self._upstream.download_urls(names.parent_of(monitor.name), digests)
        request = {"baseline": [blob(file, urls) for file in files], "columns": columns}
        try:
            async with asyncio.timeout(LOOK_SECONDS), self._room:
                await process.look(request)
        except TimeoutError:
            log.info("The columns of %s are not known in time", version.name)
        except CheckFailed as error:
            if error.code in _LASTING:
                raise InvalidArgument(error.code, error.message, error.cure) from error
            log.info("The columns of %s are not known: %s", version.name, error)


def blob(file: File, urls: Mapping[str, str]) -> dict[str, str]:
    """A file as the process wants it."""
    return {"path": file.path, "url": urls.get(file.sha256, ""), "sha256": file.sha256}
