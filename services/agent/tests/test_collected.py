"""Collected files reach the index, whoever dies on the way.

Blob store and index are stand-ins that note what they get: the real ones are in
tests/system/test_collected_data.py, and cannot be told to fail between two steps.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stellwerk_agent.blobs import Uploaded
from stellwerk_agent.collected import FOLDER, Collected
from stellwerk_platform.errors import FailedPrecondition
from stellwerk_protos.inference.v1 import collections_pb2 as pb
from stellwerk_scorer.worker.collecting import Event, Settings, Writer

REPLICA = "workspaces/demo/endpoints/digits/deployments/blue/replicas/r1"
WRITER = """
import sys, time
from stellwerk_scorer.worker.collecting import Event, Settings, Writer
writer = Writer(Settings(folder=sys.argv[1]))
for number in range(100):
    writer.put("request", Event("request", str(number), str(number), "application/json", b"1"))
print("put", flush=True)
time.sleep(60)
"""


class Stored:
    """The blob store and the index."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.files: dict[str, pb.CollectedFile] = {}
        self.failures = 0

    async def upload(self, workspace: str, files: Mapping[str, Path]) -> Uploaded:
        self.blobs |= {digest: path.read_bytes() for digest, path in files.items()}
        return Uploaded(len(files), set())

    async def RecordCollectedFiles(self, request: pb.RecordCollectedFilesRequest, timeout: float) -> None:
        assert request.parent == REPLICA
        if self.failures:
            self.failures -= 1
            raise FailedPrecondition("BLOB_MISSING", "Not there.", "Upload it.")
        self.files |= {item.file.path: item for item in request.files}

    @property
    def events(self) -> list[dict[str, Any]]:
        contents = [self.blobs[item.file.sha256] for item in self.files.values()]
        return [json.loads(line) for content in contents for line in content.splitlines()]


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
def collected(stored: Stored, tmp_path: Path) -> Collected:
    service: Any = stored
    return Collected(tmp_path, REPLICA, service, service)


def write(folder: Path, *bodies: bytes) -> Writer:
    writer = Writer(Settings(folder=str(folder / FOLDER)))
    for body in bodies:
        writer.put("request", Event("request", "id", "id", "application/json", body))
    return writer


async def test_files_are_delivered_under_their_hour_and_removed(
    collected: Collected, stored: Stored, tmp_path: Path
) -> None:
    write(tmp_path, b"1", b"2").close()
    await collected.finish()
    ((path, item),) = stored.files.items()
    parts = path.split("/")
    assert parts[:3] == ["digits", "blue", "request"]
    assert [len(part) for part in parts[3:7]] == [4, 2, 2, 2]
    assert parts[7].startswith("r1-")
    assert (item.event_count, item.dropped_count) == (2, 0)
    assert [event["data"] for event in stored.events] == [1, 2]
    assert not list((tmp_path / FOLDER).iterdir())


async def test_what_the_index_does_not_take_is_brought_again(
    collected: Collected, stored: Stored, tmp_path: Path
) -> None:
    write(tmp_path, b"1").close()
    stored.failures = 1
    await collected.finish()
    assert not stored.files
    await collected.finish()
    assert len(stored.events) == 1


async def test_a_writer_that_is_killed_leaves_what_it_had_written(
    collected: Collected, stored: Stored, tmp_path: Path
) -> None:
    folder = tmp_path / FOLDER
    with subprocess.Popen(  # noqa: ASYNC220  # nothing else runs here
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not (found := list(folder.glob("*.open"))) or found[0].read_bytes().count(b"\n") < 100:
            assert process.poll() is None
        # Its writer lives: nobody else touches it.
        await collected.finish()
        assert not stored.files
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open(found[0], "ab") as torn:
        torn.write(b'{"torn')
    await collected.finish()
    assert [event["xrequestid"] for event in stored.events] == [str(number) for number in range(100)]
    assert not list(folder.iterdir())
