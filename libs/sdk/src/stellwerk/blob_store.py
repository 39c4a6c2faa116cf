"""One blob to or from the store by presigned URL; a large one in parts, taken up again after any crash.

The SDK and the agent both move files with this and bring their own way to ask the registry, their own
patience and their own errors. A blob in one piece is tried once here, each part a few times.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from stellwerk_protos.registry.v1 import blobs_pb2

# Told the bytes that were moved since the last call.
Advance = Callable[[int], object]

PARALLEL = 4
# Smaller blobs come in one piece.
RANGE_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
_ATTEMPTS = 5
_FIRST_DELAY_SECONDS = 0.2
_ASK_AGAIN_SECONDS = 0.2
_FORBIDDEN = 403
ANSWER_SECONDS = 60.0
_SLOWEST_DISK_BYTES_PER_SECOND = 10_000_000


class Refused(Exception):
    """The store answered with an error; its body was read."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"HTTP {response.status_code}: {response.text[:300]}")
        self.response = response

    @property
    def may_pass(self) -> bool:
        """403: the URL is too old by now; 5xx: the store has a bad moment."""
        return self.response.status_code == _FORBIDDEN or self.response.status_code >= 500


class Changed(Exception):
    """The local file is not any more what was hashed."""


class Corrupt(Exception):
    """What came does not have the digest that it should have."""


@dataclass(frozen=True)
class Calls:
    """How the registry is asked; each raises what its caller knows."""

    prepare_uploads: Callable[[blobs_pb2.PrepareUploadsRequest], Awaitable[blobs_pb2.PrepareUploadsResponse]]
    create_pack: Callable[[blobs_pb2.CreatePackRequest], Awaitable[blobs_pb2.CreatePackResponse]]
    prepare_part: Callable[[blobs_pb2.PreparePartRequest], Awaitable[blobs_pb2.PreparePartResponse]]
    complete: Callable[[blobs_pb2.CompleteUploadRequest], Awaitable[blobs_pb2.CompleteUploadResponse]]


class _Sum:
    """Of the bytes of several parts that travel at a time."""

    def __init__(self, meter: "Meter") -> None:
        self._meter = meter
        self._moved = 0

    def add(self, moved_bytes: int) -> None:
        self._moved += moved_bytes
        self._meter.reach(self._moved)


class Meter:
    """Counts each byte of a file once, however often it is sent."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._most = 0

    def reach(self, moved_bytes: int) -> None:
        """So many bytes of the file were moved in this try."""
        if moved_bytes > self._most:
            self._advance(moved_bytes - self._most)
            self._most = moved_bytes


async def put(
    http: httpx.AsyncClient,
    calls: Calls,
    workspace: str,
    source: Path,
    size_bytes: int,
    offer: blobs_pb2.Upload,
    meter: Meter,
) -> None:
    """Brings a blob to the store as `PrepareUploads` offered it.

    Raises `Refused`, `Changed`, `OSError`, `httpx.TransportError` and what the calls raise.
    """
    if offer.part_size_bytes:
        await _put_parts(http, calls, workspace, source, size_bytes, offer, meter)
    else:
        await _put_whole(http, offer.url, offer.headers, source, 0, size_bytes, meter)


async def _put_whole(
    http: httpx.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    source: Path,
    start: int,
    size_bytes: int,
    meter: Meter,
) -> None:
    # The store answers once it has all of it on its disk.
    timeout = httpx.Timeout(ANSWER_SECONDS, read=ANSWER_SECONDS + size_bytes / _SLOWEST_DISK_BYTES_PER_SECOND)
    content: bytes | AsyncIterator[bytes]
    if size_bytes <= CHUNK_BYTES:
        content = _read(source, start, size_bytes)
    else:
        content = _chunks(source, start, size_bytes, meter)
    sent = {**headers, "content-length": str(size_bytes)}
    response = await http.put(url, content=content, headers=sent, timeout=timeout)
    if not response.is_success:
        raise Refused(response)
    meter.reach(size_bytes)


async def _put_parts(
    http: httpx.AsyncClient,
    calls: Calls,
    workspace: str,
    source: Path,
    size_bytes: int,
    offer: blobs_pb2.Upload,
    meter: Meter,
) -> None:
    """Puts the parts that are missing, and returns when the store has the whole and it was checked.

    What has arrived when this raises stays, and the next `PrepareUploads` names it.
    """
    step = offer.part_size_bytes
    moved = _Sum(meter)
    present = set(offer.present_parts)
    spans = {
        number: min(step, size_bytes - start) for number, start in enumerate(range(0, size_bytes, step), 1)
    }
    moved.add(sum(span for number, span in spans.items() if number in present))

    async def put_part(number: int) -> None:
        start, span = (number - 1) * step, spans[number]
        part_meter = Meter(moved.add)
        digest = await asyncio.to_thread(_digest, source, start, span)
        request = blobs_pb2.PreparePartRequest(
            parent=workspace, sha256=offer.sha256, number=number, part_sha256=digest
        )

        async def once() -> None:
            part = await calls.prepare_part(request)
            await _put_whole(http, part.url, part.headers, source, start, span, part_meter)

        await _repeated(once)

    await in_parallel((put_part(number) for number in spans if number not in present), PARALLEL)
    complete = blobs_pb2.CompleteUploadRequest(parent=workspace, sha256=offer.sha256)
    while True:
        # The answer comes after some seconds, or when it is done.
        if (await calls.complete(complete)).done:
            return
        await asyncio.sleep(_ASK_AGAIN_SECONDS)


async def get(http: httpx.AsyncClient, url: str, sha256: str, target: Path, meter: Meter, mode: int) -> None:
    """Writes a blob to `target`, which appears whole, verified and with this mode, or not at all.

    Raises `Refused`, `Corrupt`, `OSError` and `httpx.TransportError`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    digest, moved = hashlib.sha256(), 0
    try:
        async with http.stream("GET", url) as response:
            if not response.is_success:
                await response.aread()
                raise Refused(response)
            with place.open("wb") as out:
                async for chunk in response.aiter_bytes(CHUNK_BYTES):
                    digest.update(chunk)
                    if len(chunk) < CHUNK_BYTES:
                        out.write(chunk)
                    else:
                        await asyncio.to_thread(out.write, chunk)
                    moved += len(chunk)
                    meter.reach(moved)
                os.fchmod(out.fileno(), mode)
        if digest.hexdigest() != sha256:
            raise Corrupt(f"{digest.hexdigest()} instead of {sha256}")
        os.replace(place, target)
    finally:
        place.unlink(missing_ok=True)


async def get_in_ranges(
    http: httpx.AsyncClient,
    url_of: Callable[[], Awaitable[str]],
    sha256: str,
    size_bytes: int,
    target: Path,
    meter: Meter,
    mode: int,
    range_bytes: int = 0,
) -> None:
    """The same for a large blob, several ranges at a time.

    Those that have arrived when this raises lie in a hidden file beside `target`, and the next try goes
    on with them.
    """
    range_bytes = range_bytes or RANGE_BYTES
    with _partial(target, sha256) as place:
        done = await asyncio.to_thread(_begin, place, size_bytes)
        url, moved = await url_of(), _Sum(meter)

        async def get_range(start: int) -> None:
            span = min(range_bytes, size_bytes - start)
            range_meter = Meter(moved.add)

            async def once() -> None:
                nonlocal url
                try:
                    await _get_range(http, url, place, start, span, range_meter)
                except Refused as refusal:
                    if refusal.response.status_code == _FORBIDDEN:
                        url = await url_of()
                    raise

            await _repeated(once)
            await asyncio.to_thread(_note, place, start, span)

        missing = [
            start
            for start in range(0, size_bytes, range_bytes)
            if (start, min(range_bytes, size_bytes - start)) not in done
        ]
        moved.add(size_bytes - sum(min(range_bytes, size_bytes - start) for start in missing))
        await in_parallel((get_range(start) for start in missing), PARALLEL)
        found = await asyncio.to_thread(_digest, place, 0, size_bytes)
        if found != sha256:
            _drop(place)
            raise Corrupt(f"{found} instead of {sha256}")
        place.chmod(mode)
        os.replace(place, target)
        _drop(place)


async def _get_range(
    http: httpx.AsyncClient, url: str, place: Path, start: int, span: int, meter: Meter
) -> None:
    headers = {"range": f"bytes={start}-{start + span - 1}"}
    async with http.stream("GET", url, headers=headers) as response:
        if not response.is_success:
            await response.aread()
            raise Refused(response)
        if response.status_code != httpx.codes.PARTIAL_CONTENT and start:
            raise httpx.RemoteProtocolError("The blob store does not send ranges.")
        at, end = start, start + span
        with place.open("r+b") as out:
            async for chunk in response.aiter_bytes(CHUNK_BYTES):
                part = chunk[: end - at]
                await asyncio.to_thread(os.pwrite, out.fileno(), part, at)
                at += len(part)
                meter.reach(at - start)
                if at == end:
                    return
    if at != end:
        raise httpx.RemoteProtocolError(f"The blob store sent {at - start:,} of {span:,} bytes.")


async def _repeated(once: Callable[[], Awaitable[None]]) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            return await once()
        except httpx.TransportError:
            if attempt == _ATTEMPTS - 1:
                raise
        except Refused as refusal:
            if attempt == _ATTEMPTS - 1 or not refusal.may_pass:
                raise
        await asyncio.sleep(_FIRST_DELAY_SECONDS * 2**attempt)


def _read(source: Path, start: int, size_bytes: int) -> bytes:
    with open(source, "rb") as file:
        file.seek(start)
        content = file.read(size_bytes)
    if len(content) < size_bytes:
        raise Changed(str(source))
    return content


async def _chunks(source: Path, start: int, size_bytes: int, meter: Meter) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(source.open, "rb") as file:
        file.seek(start)
        left = size_bytes
        while left:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left))
            if not chunk:
                raise Changed(str(source))
            yield chunk
            left -= len(chunk)
            meter.reach(size_bytes - left)


async def in_parallel(jobs: Iterable[Awaitable[None]], most: int) -> None:
    """Runs `most` at a time; the first error ends all."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(most):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _digest(path: Path, start: int, size_bytes: int) -> str:
    digest, left = hashlib.sha256(), size_bytes
    with open(path, "rb") as file:
        file.seek(start)
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise Changed(str(path))
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


@contextmanager
def _partial(target: Path, sha256: str) -> Iterator[Path]:
    """The file that takes what comes, held by a lock; another one while somebody else writes to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target.with_name(f".{target.name[:100]}.{sha256[:16]}.part")
    lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        place = place.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield place
    finally:
        os.close(lock)


def _ranges(place: Path) -> Path:
    return place.with_name(place.name + ".ranges")


def _begin(place: Path, size_bytes: int) -> list[tuple[int, int]]:
    """The ranges, as (start, bytes), that an earlier try has written."""
    done: list[tuple[int, int]] = []
    if place.stat().st_size == size_bytes:
        with contextlib.suppress(FileNotFoundError, ValueError):
            for line in _ranges(place).read_text().splitlines():
                start, span = line.split()
                done.append((int(start), int(span)))
    else:
        _ranges(place).unlink(missing_ok=True)
        os.truncate(place, size_bytes)
    return done


def _note(place: Path, start: int, span: int) -> None:
    with _ranges(place).open("a") as file:
        file.write(f"{start} {span}\n")


def _drop(place: Path) -> None:
    place.unlink(missing_ok=True)
    _ranges(place).unlink(missing_ok=True)
