"""Events on their way into files of the node: which requests are sampled, how an event looks, who writes.

Used by the front and by the workers, hence standard library only. A file is named
`{collection}~{yyyyMMddHH}~{instance}~{dropped}.jsonl`; the agent delivers it (docs/interfaces.md, "Collected
data"). While it is written its name ends with `.open` and its writer holds a lock on it, so that the agent
knows what a writer that was killed has left.
"""

from __future__ import annotations

import atexit
import base64
import fcntl
import json
import os
import secrets
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, Any

AGENT = "stellwerk-scorer"
PREFIX = "STELLWERK_SCORER_COLLECT"
DEFAULT_PAYLOAD_BYTES = 262_144
# How long an event may be in memory alone: what a writer that is killed can lose.
GATHER_SECONDS = 0.2
_QUEUE_BYTES = 16 << 20
_FILE_BYTES = 4 << 20
_FILE_SECONDS = 60.0
# Of the folder: beyond that the agent cannot deliver, and the node's disk is not ours.
_FOLDER_BYTES = 256 << 20
_SAMPLING_STEPS = 1_000_000
_UTC = timezone.utc  # noqa: UP017  # Python 3.9 has no other


@dataclass(frozen=True)
class Settings:
    """What is collected of a replica; without a folder nothing is."""

    folder: str = ""
    collections: frozenset[str] = frozenset()
    percent: float = 100.0
    headers: tuple[str, ...] = ()
    max_bytes: int = DEFAULT_PAYLOAD_BYTES
    source: str = ""
    model_version: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Reads `STELLWERK_SCORER_COLLECT…`; raises ValueError for what is no number."""

        def split(name: str) -> list[str]:
            return [part.strip() for part in environment.get(name, "").split(",") if part.strip()]

        return cls(
            folder=environment.get(f"{PREFIX}_FOLDER", ""),
            collections=frozenset(split(PREFIX)),
            percent=float(environment.get(f"{PREFIX}_PERCENT") or 100),
            headers=tuple(name.lower() for name in split(f"{PREFIX}_HEADERS")),
            max_bytes=int(environment.get(f"{PREFIX}_MAX_BYTES") or DEFAULT_PAYLOAD_BYTES),
            source=environment.get("STELLWERK_SCORER_DEPLOYMENT", ""),
            model_version=environment.get("STELLWERK_SCORER_MODEL_VERSION", ""),
        )

    def wants(self, collection: str) -> bool:
        """Whether the collection is kept."""
        return bool(self.folder) and collection in self.collections

    def samples(self, request_id: str) -> bool:
        """Whether a request is kept: the same for all that belongs to it, in every process."""
        return zlib.crc32(request_id.encode()) % _SAMPLING_STEPS < self.percent * _SAMPLING_STEPS / 100


@dataclass(frozen=True)
class Event:
    """One body, not rendered yet."""

    type: str
    request_id: str
    correlation_id: str
    content_type: str
    body: bytes
    data_type: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = field(default_factory=time.time)


def render(event: Event, settings: Settings) -> bytes:
    """The event as one line: CloudEvents 1.0 with the attributes of Azure's data collector."""
    body = event.body[: settings.max_bytes]
    moment = datetime.fromtimestamp(event.seconds, _UTC)
    attributes = {
        "specversion": "1.0",
        "id": secrets.token_hex(16),
        "source": f"/{settings.source}",
        "type": f"azureml.inference.{event.type}",
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": event.content_type,
        "correlationid": event.correlation_id,
        "xrequestid": event.request_id,
        "modelversion": settings.model_version,
        "collectdatatype": event.data_type,
        "agent": AGENT,
        "contentrange": f"bytes 0-{max(len(body) - 1, 0)}/{len(event.body)}",
        **event.more,
    }
    is_whole = len(body) == len(event.body)
    if not is_whole:
        attributes["truncated"] = True
    return _line(attributes, body, is_json=is_whole and _is_json(event.content_type))


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in ("application/json", "text/json")


def _line(attributes: dict[str, Any], body: bytes, *, is_json: bool) -> bytes:
    text = _text(body, is_cut="truncated" in attributes)
    if text is None:
        return _dump({**attributes, "data_base64": base64.b64encode(body).decode()})
    if is_json:
        try:
            return _dump({**attributes, "data": json.loads(text, parse_constant=_refuse)})
        except (ValueError, RecursionError):
            pass  # kept as the text that it is
    return _dump({**attributes, "data": text})


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _text(body: bytes, *, is_cut: bool) -> str | None:
    """None for what is no UTF-8; a cut may go through a character."""
    for end in range(len(body), max(len(body) - (4 if is_cut else 1), -1), -1):
        try:
            return body[:end].decode()
        except UnicodeDecodeError:
            continue
    return None


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


class Writer:
    """Takes events without ever waiting, and writes them from a thread of its own."""

    def __init__(self, settings: Settings, *, queue_bytes: int = _QUEUE_BYTES) -> None:
        self._settings = settings
        self._queue: deque[tuple[str, Event]] = deque()
        self._room = queue_bytes
        self._dropped: dict[str, int] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._files: dict[str, _File] = {}
        self._instance = secrets.token_hex(4)
        self._number = 0
        self._thread = threading.Thread(target=self._run, name="collect", daemon=True)
        os.makedirs(settings.folder, mode=0o700, exist_ok=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, collection: str, event: Event) -> bool:
        """Takes an event unless too much waits; it is counted as dropped then."""
        size = len(event.body) + 1_000
        with self._lock:
            if size > self._room or self._closing.is_set():
                self._dropped[collection] = self._dropped.get(collection, 0) + 1
                return False
            self._room -= size
            self._queue.append((collection, event))
        if not self._wake.is_set():
            self._wake.set()
        return True

    def close(self) -> None:
        """Writes what waits and gives the files to the agent; again, nothing happens."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(GATHER_SECONDS * 5 if self._files else None)
            self._closing.wait(GATHER_SECONDS)
            self._wake.clear()
            self._drain()
            self._finish(lambda file: file.is_due)
        self._drain()
        self._finish(lambda _file: True)

    def _drain(self) -> None:
        while self._queue:
            collection, event = self._queue.popleft()
            try:
                self._file(collection, event.seconds).write(render(event, self._settings))
            except Exception as error:  # also what cannot be rendered: the thread must go on
                self._give_up(collection, error)
            with self._lock:
                self._room += len(event.body) + 1_000

    def _file(self, collection: str, seconds: float) -> _File:
        hour = datetime.fromtimestamp(seconds, _UTC).strftime("%Y%m%d%H")
        file = self._files.get(collection)
        if file is not None and (file.hour != hour or file.size >= _FILE_BYTES):
            self._close(collection)
            file = None
        if file is None:
            if _size(self._settings.folder) > _FOLDER_BYTES:
                raise OSError("too much waits to be delivered")
            self._number += 1
            name = f"{collection}~{hour}~{self._instance}-{self._number:06d}"
            file = self._files[collection] = _File(self._settings.folder, name, hour)
        return file

    def _finish(self, is_due: Callable[[_File], bool]) -> None:
        for collection in [name for name, file in self._files.items() if is_due(file)]:
            self._close(collection)

    def _close(self, collection: str) -> None:
        file = self._files.pop(collection)
        with self._lock:
            dropped = self._dropped.pop(collection, 0)
        if dropped:
            _say(f"{dropped} events of {collection!r} were not collected")
        try:
            file.close(dropped)
        except OSError as error:
            _say(f"a file of {collection!r} waits for the end of this process: {error}")

    def _give_up(self, collection: str, error: Exception) -> None:
        """A line may be torn: what is whole before it the agent delivers."""
        file = self._files.pop(collection, None)
        if file is not None:
            file.abandon()
        with self._lock:
            is_first = not self._dropped.get(collection)
            self._dropped[collection] = self._dropped.get(collection, 0) + 1
        if is_first:
            _say(f"{collection!r} is not collected: {error}")


class _File:
    """One file while it grows."""

    def __init__(self, folder: str, name: str, hour: str) -> None:
        self.hour = hour
        self.size = 0
        self._begun = time.monotonic()
        self._folder, self._name = folder, name
        self._path = os.path.join(folder, f"{name}~0.jsonl.open")
        hidden = os.path.join(folder, f".{name}")
        self._file: IO[bytes] = open(hidden, "xb", buffering=0)  # noqa: SIM115
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(hidden, self._path)

    @property
    def is_due(self) -> bool:
        """Whether it has been open for long enough."""
        return time.monotonic() - self._begun >= _FILE_SECONDS or self.size >= _FILE_BYTES

    def write(self, line: bytes) -> None:
        """Appends; raises OSError, after which the file may end with a torn line."""
        if self._file.write(line) != len(line):
            raise OSError("the disk is full")
        self.size += len(line)

    def close(self, dropped: int) -> None:
        """Gives it to the agent."""
        os.rename(self._path, os.path.join(self._folder, f"{self._name}~{dropped}.jsonl"))
        self._file.close()

    def abandon(self) -> None:
        """Leaves it to the agent as it is."""
        self._file.close()


def _size(folder: str) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat().st_size
            except OSError:
                continue  # delivered meanwhile
    return total


def _say(text: str) -> None:
    print(f"stellwerk-scorer: {text}", file=sys.stderr, flush=True)
