"""The connection: channel, deadlines, retries, trace context, transfers. Everything above is plain calls.

`stellwerk._sync.core` runs this same class on a thread, so that nothing here exists twice.
"""

import asyncio
import contextlib
import functools
import logging
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
from google.protobuf.message import Message

from stellwerk import addresses, git, tracing, transfer, translate
from stellwerk.blob_store import Calls
from stellwerk.errors import StellwerkError
from stellwerk.pack import LocalFile, pack
from stellwerk.progress import bar
from stellwerk.settings import Settings, require
from stellwerk.zipping import write_zip
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.registry.v1 import blobs_pb2_grpc
from stellwerk_protos.runs.v1 import runs_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

log = logging.getLogger(__name__)
DEADLINE_SECONDS = 10.0
# A service looks each file up in the blob store.
DEADLINE_SECONDS_PER_FILE = 0.05
# A server that was never there is given up sooner than one that restarts.
FIRST_CONTACT_SECONDS = 4.0
STREAM_OUTAGE_SECONDS = 60.0
_RETRY_SECONDS = 0.2
# Repeating these is harmless; so is what carries a request id.
_SAFE = (
    *("Get", "List", "Search", "Compare", "Explain", "Prepare", "CreateSnapshot", "CreateArtifacts"),
    "CompleteUpload",
    "CreatePack",
    "CancelBatchJob",
    *("SetScaleSettings", "SetAuthMode", "Simulate"),
    *("SetTraffic", "SetRetentionRule", "CancelRun", "ArchiveRun", "RestoreRun", "RenewRun", "FinishRun"),
)


class AsyncCore:
    """One channel and one HTTP client; made inside the event loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = require(settings)
        local = addresses.is_loopback(settings.grpc_address)
        if settings.token_file is None:
            for address in filter(addresses.is_clear, (settings.grpc_address, settings.gateway_url)):
                _warn_of_clear(address)
        self.channel = _channel(settings.grpc_address, _options(local))
        self._api_key, self._key_mtime_ns = settings.api_key, 0
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(60.0, connect=5.0),
            trust_env=not local,
            limits=httpx.Limits(max_connections=2 * transfer.PARALLEL),
        )
        self._blobs = blobs_pb2_grpc.BlobServiceStub(self.channel)
        self._calls = Calls(self._prepare_uploads, self._create_pack, self._prepare_part, self._complete)
        self._connected = False

    @property
    def _authorization(self) -> tuple[str, str]:
        """What each request shows. The token of a run lives a day, and its agent writes the next one."""
        if self.settings.token_file is not None:
            with contextlib.suppress(OSError):
                modified_ns = self.settings.token_file.stat().st_mtime_ns
                if modified_ns != self._key_mtime_ns:
                    self._api_key = self.settings.token_file.read_text().strip() or self._api_key
                    self._key_mtime_ns = modified_ns
        return "authorization", f"Bearer {self._api_key}"

    async def close(self) -> None:
        """Ends all connections."""
        await self._http.aclose()
        await self.channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        files: int = 0,
    ) -> Response:
        """The answer, within ten seconds and some time for each file that the request has or stands for.

        Raises `StellwerkError`.
        """
        if "request_id" in request.DESCRIPTOR.fields_by_name and not getattr(request, "request_id"):  # noqa: B009
            setattr(request, "request_id", uuid.uuid4().hex)  # noqa: B010
        safe = type(request).__name__.startswith(_SAFE) or bool(getattr(request, "request_id", ""))
        began, limit = (
            time.monotonic(),
            DEADLINE_SECONDS + DEADLINE_SECONDS_PER_FILE * (files or _files(request)),
        )
        with tracing.client_span(_span_name(method, request)) as (traceparent, trace_id):
            while True:
                metadata = (self._authorization, ("traceparent", traceparent))
                left = began + limit - time.monotonic()
                try:
                    answer = await method(request, timeout=max(left, 0.1), metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    if not (safe and self._worth_another_try(error, began, DEADLINE_SECONDS - 1)):
                        raise self._translated(error, trace_id) from error
                    await asyncio.sleep(_RETRY_SECONDS)
                else:
                    self._connected = True
                    return answer

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        on_start: Callable[[Mapping[str, str]], None] | None = None,
    ) -> AsyncIterator[Response]:
        """The answers as they come, across restarts of the server.

        `on_start` gets the initial metadata of each call, before its first answer.

        After a break the request is sent again as it is then: the caller moves its cursor on while it
        consumes. Raises `StellwerkError` once the server was gone for a minute.
        """
        began = time.monotonic()
        with tracing.client_span(_span_name(method, request)) as (traceparent, trace_id):
            trace = ("traceparent", traceparent)
        while True:
            call = method(request, metadata=(self._authorization, trace))
            try:
                if on_start is not None:
                    on_start({key: str(value) for key, value in await call.initial_metadata()})
                async for answer in call:
                    self._connected = True
                    yield answer
                    began = time.monotonic()
            except grpc.aio.AioRpcError as error:
                if not self._worth_another_try(error, began, STREAM_OUTAGE_SECONDS):
                    raise self._translated(error, trace_id) from error
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return
            finally:
                call.cancel()

    async def once(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> AsyncIterator[Response]:
        """The answers of one call: what cannot be taken up where it broke. Raises `StellwerkError`."""
        with tracing.client_span(_span_name(method, request)) as (traceparent, trace_id):
            trace = ("traceparent", traceparent)
        call = method(request, metadata=(self._authorization, trace))
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, trace_id) from error
        finally:
            call.cancel()

    def duplex(
        self, method: grpc.aio.StreamStreamMultiCallable[Request, Response], requests: AsyncIterator[Request]
    ) -> grpc.aio.StreamStreamCall[Request, Response]:
        """A stream both ways. It ends with its connection; errors are `grpc.aio.AioRpcError`."""
        with tracing.client_span(_span_name(method, None)) as (traceparent, _):
            return method(requests, metadata=(self._authorization, ("traceparent", traceparent)))

    def translated(self, error: grpc.aio.AioRpcError) -> StellwerkError:
        """What a stream of `duplex` ended with."""
        return self._translated(error, "")

    async def pages(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        limit: int | None = None,
    ) -> list[Response]:
        """All pages of a list, or as many as hold `limit` items, which are the first field of a page."""
        paged: Any = request
        pages: list[Response] = []
        left = limit
        while True:
            paged.page_size = min(1_000, left) if left is not None else 1_000
            page: Any = await self.call(method, request)
            pages.append(page)
            if left is not None:
                left -= len(getattr(page, page.DESCRIPTOR.fields[0].name))
            paged.page_token = page.next_page_token
            if not page.next_page_token or (left is not None and left <= 0):
                return pages

    async def upload(self, workspace: str, path: Path, *, ignore: bool = False) -> list[common_pb2.File]:
        """Uploads what the store lacks of a file or folder; returns all of its files.

        With `ignore` it is a source folder: the ignore rules count and links stay links.
        """
        with tracing.span("pack"):
            files = await asyncio.to_thread(pack, path, ignore=ignore)
        with tracing.span("upload"):
            await self._upload(workspace, files, path.name)
        return [_described(file) for file in files]

    async def upload_bytes(self, workspace: str, data: bytes, label: str) -> str:
        """Uploads one blob; returns its SHA-256."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / label
            await asyncio.to_thread(place.write_bytes, data)
            return (await self.upload(workspace, place))[0].sha256

    async def _upload(self, workspace: str, files: Sequence[LocalFile], label: str) -> None:
        todo = await transfer.missing(self._prepare_uploads, workspace, files)
        with bar(f"Uploading {label}", sum(file.size_bytes for file, _ in todo)) as advance:
            await transfer.upload(self._http, self._prepare_uploads, self._calls, workspace, todo, advance)

    async def git(self, folder: Path, workspace: str) -> git.Facts:
        """What git says about a source folder; what is not committed is uploaded as a patch."""
        facts = await asyncio.to_thread(git.facts, folder)
        if not facts.get("dirty"):
            return facts
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary) / "uncommitted.patch"
            if await asyncio.to_thread(git.write_patch, folder, place):
                facts["patch"] = (await self.upload(workspace, place))[0].sha256
        return facts

    async def download(
        self, workspace: str, files: Sequence[common_pb2.File], folder: Path, *, overwrite: bool = True
    ) -> None:
        """Writes the files below `folder`, verified; without `overwrite` it may raise LOCAL_FILES_DIFFER."""
        with bar("Downloading", sum(file.size_bytes for file in files)) as advance:
            await transfer.download(
                self._http, self._prepare_downloads, workspace, files, folder, advance, overwrite=overwrite
            )

    async def read_blob(self, workspace: str, sha256: str) -> bytes:
        """The bytes of one blob, verified."""
        with tempfile.TemporaryDirectory() as folder:
            file = common_pb2.File(path="blob", sha256=sha256)
            await self.download(workspace, [file], Path(folder))
            return await asyncio.to_thread((Path(folder) / "blob").read_bytes)

    async def download_zip(self, workspace: str, files: Sequence[common_pb2.File], target: Path) -> None:
        """Writes the files into a zip archive, which appears whole or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            folder, archive = Path(temporary) / "files", Path(temporary) / "archive.zip"
            await self.download(workspace, [file for file in files if not file.link_target], folder)
            await asyncio.to_thread(write_zip, files, folder, archive)
            os.replace(archive, target)

    async def pause(self, seconds: float) -> None:
        """Waits for so long."""
        await asyncio.sleep(seconds)

    async def ship(self, folder: Path) -> runs_pb2.Run:
        """Delivers the folder of an interactive run whose process is gone."""
        from stellwerk import interactive_folder

        return await interactive_folder.ship(self, folder)

    async def post(self, path: str, body: bytes) -> bytes:
        """POSTs JSON to the gateway's HTTP door; raises `StellwerkError`."""
        url = self.settings.gateway_url.rstrip("/")
        if not url:
            raise StellwerkError(
                "ADDRESS_MISSING",
                "The HTTP address of Stellwerk is not known here.",
                "Set STELLWERK_GATEWAY_URL or give --gateway-url.",
                code="UNAVAILABLE",
            )
        with tracing.client_span(f"POST {path}") as (traceparent, trace_id):
            headers = {
                "authorization": self._authorization[1],
                "content-type": "application/json",
                "traceparent": traceparent,
            }
            try:
                response = await self._http.post(url + path, content=body, headers=headers)
            except httpx.TransportError as error:
                raise translate.no_answer(url, str(error), trace_id=trace_id) from error
            if not response.is_success:
                raise translate.from_http(response, f"POST {path}", trace_id)
            return response.content

    async def _prepare_uploads(self, request: Any) -> Any:
        return await self.call(self._blobs.PrepareUploads, request)

    async def _create_pack(self, request: Any) -> Any:
        return await self.call(self._blobs.CreatePack, request)

    async def _prepare_part(self, request: Any) -> Any:
        return await self.call(self._blobs.PreparePart, request)

    async def _complete(self, request: Any) -> Any:
        return await self.call(self._blobs.CompleteUpload, request)

    async def _prepare_downloads(self, request: Any) -> Any:
        return await self.call(self._blobs.PrepareDownloads, request)

    def _worth_another_try(self, error: grpc.aio.AioRpcError, began: float, limit_seconds: float) -> bool:
        """Whether the server is gone for a moment only, as far as one can know, or wants a newer token."""
        if error.code() is grpc.StatusCode.UNAUTHENTICATED and self.settings.token_file is not None:
            # A stream ends with the token that it began with; the agent keeps a newer one in the file.
            return self._connected and self._translated(error, "").reason == "TOKEN_EXPIRED"
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return False
        limit = limit_seconds if self._connected else min(FIRST_CONTACT_SECONDS, limit_seconds)
        return time.monotonic() - began < limit

    def _translated(self, error: grpc.aio.AioRpcError, trace_id: str) -> StellwerkError:
        return translate.from_rpc(error, self.settings.grpc_address, trace_id)


def _described(file: LocalFile) -> common_pb2.File:
    if file.link_target:
        return common_pb2.File(path=file.path, link_target=file.link_target)
    return common_pb2.File(
        path=file.path, sha256=file.sha256, size_bytes=file.size_bytes, executable=file.executable
    )


def _span_name(method: object, request: Message | None) -> str:
    """`stellwerk.runs.v1.RunService/CreateRun`, as servers name their spans."""
    path = getattr(method, "_method", b"")
    return path.decode().lstrip("/") if isinstance(path, bytes) and path else type(request).__name__


def _files(request: Message) -> int:
    """How many files or blobs a request names."""
    names = (name for name in ("files", "blobs", "sha256") if name in request.DESCRIPTOR.fields_by_name)
    return sum(len(getattr(request, name)) for name in names)


@functools.cache
def _warn_of_clear(address: str) -> None:
    """Once a process. No error: something in front may encrypt what the address does not show."""
    log.warning("The key goes to %s without TLS, and who is on the way can read it: use https://.", address)


def _channel(address: str, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    """With `https://` to a door with a certificate; gRPC and httpx trust the system's authorities, and
    those that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH and SSL_CERT_FILE name."""
    if address.startswith(addresses.TLS):
        credentials = grpc.ssl_channel_credentials()
        return grpc.aio.secure_channel(address.removeprefix(addresses.TLS), credentials, options=options)
    return grpc.aio.insecure_channel(address, options=options)


def _options(local: bool) -> list[tuple[str, Any]]:
    size = 16 * 1024 * 1024
    return [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_http_proxy", 0 if local else 1),
    ]
