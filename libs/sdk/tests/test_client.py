"""The client against a server that answers like the platform."""

import asyncio
import hashlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from stellwerk import AsyncClient, Client, StellwerkError, progress, transfer, translate
from stellwerk._async.runs import create_snapshot
from stellwerk.blob_store import Calls
from stellwerk.pack import pack
from stellwerk_protos.common.v1 import common_pb2
from stellwerk_protos.registry.v1 import blobs_pb2
from stellwerk_protos.runs.v1 import snapshots_pb2

from .conftest import KEY, Platform


@pytest.fixture
def client(platform: Platform) -> Iterator[Client]:
    with Client(grpc_address=platform.address, api_key=KEY) as client:
        yield client


def test_an_error_keeps_reason_cure_code_and_trace(client: Client, platform: Platform) -> None:
    with pytest.raises(StellwerkError) as caught:
        client.workspaces.get("none")
    error = caught.value
    assert (error.reason, error.code, error.cure) == ("WORKSPACE_NOT_FOUND", "NOT_FOUND", "List them.")
    assert error.message == "There is no workspaces/none."
    assert error.trace_id == platform.workspaces.seen[-1]["traceparent"].split("-")[1]


def test_an_error_without_details_is_still_one_of_ours(client: Client) -> None:
    with pytest.raises(StellwerkError, match="UPSTREAM_INTERNAL: boom"):
        client.workspaces.get("crash")


def test_a_service_that_is_gone_for_a_moment_is_waited_for(client: Client) -> None:
    assert client.workspaces.get("flaky").revision == 1


def test_lists_follow_all_pages_or_stop_at_the_limit(client: Client) -> None:
    assert len(client.workspaces.list()) == 6
    assert len(client.workspaces.list(limit=1)) == 2


def test_nobody_there_is_said_soon(platform: Platform) -> None:
    with Client(grpc_address="127.0.0.1:1", api_key=KEY) as client, pytest.raises(StellwerkError) as caught:
        client.workspaces.list()
    assert (caught.value.reason, caught.value.code) == ("SERVER_UNAVAILABLE", "UNAVAILABLE")
    assert "127.0.0.1:1" in caught.value.message
    assert "stellwerk up" in caught.value.cure


def test_without_address_or_key_nothing_is_tried() -> None:
    with pytest.raises(StellwerkError, match="ADDRESS_MISSING"):
        Client()
    with pytest.raises(StellwerkError, match="KEY_MISSING"):
        Client(grpc_address="127.0.0.1:1")


def test_an_empty_path_is_not_the_current_folder(client: Client) -> None:
    ws = client.workspace("demo")
    for upload in (
        lambda: ws.datasets.create_version("d", ""),
        lambda: ws.models.register("m", path=""),
        lambda: ws.runs.submit("true", code=""),
        lambda: ws.deployments.create("d", endpoint="e", models=["m:1"], environment="e:1", code=""),
    ):
        with pytest.raises(StellwerkError, match="INVALID_PATH"):
            upload()


def test_streams_go_on_where_they_broke(client: Client) -> None:
    run = client.workspace("demo").runs.get("torn")
    assert "".join(run.log(follow=True)) == "first ü\nsecond\nthird"
    steps = [point.step for update in run.watch_metrics() for point in update["loss"]]
    assert steps == [0, 1, 2]
    assert [now.state for now in run.watch()] == ["Running", "Completed"]
    assert run.is_over


def test_an_interrupt_ends_a_stream_whatever_it_does_at_its_end(client: Client) -> None:
    waits, ended = threading.Event(), threading.Event()

    async def answers() -> AsyncIterator[Any]:
        try:
            yield 1
            waits.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            ended.set()

    def interrupt() -> None:
        waits.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in client._core._iterate(answers()):
                pass
        assert ended.is_set()
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_a_stream_that_is_left_may_outlive_its_client(client: Client) -> None:
    pieces = client.workspace("demo").runs.get("r").log(follow=True)
    assert next(iter(pieces)).startswith("first")
    client.close()
    del pieces


def test_the_blocking_client_closes_twice_and_leaves_no_thread(platform: Platform) -> None:
    before = set(threading.enumerate())
    client = Client(grpc_address=platform.address, api_key=KEY)
    client.close()
    client.close()
    # Those of others come and go.
    assert not [one for one in set(threading.enumerate()) - before if one.name == "stellwerk"]


async def test_the_asynchronous_client_has_the_same_names(platform: Platform) -> None:
    async with AsyncClient(grpc_address=platform.address, api_key=KEY) as client:
        assert (await client.workspaces.get("demo")).tags["a"] == "ü"
        runs = client.workspace("demo").runs
        assert [run.state async for run in runs.watch("r")] == ["Running", "Completed"]


def test_a_request_that_grpc_itself_refuses_has_a_cure() -> None:
    none = grpc.aio.Metadata()
    text = "CLIENT: Sent message larger than max (20000000 vs. 16777216)"
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, none, none, details=text)
    found = translate.from_rpc(error, "127.0.0.1:1", "")
    assert (found.reason, found.code, bool(found.cure)) == ("MESSAGE_TOO_LARGE", "RESOURCE_EXHAUSTED", True)


def test_http_errors_are_translated_too() -> None:
    body = {"code": "not_found", "message": "No endpoint.", "details": []}
    error = translate.from_http(httpx.Response(404, json=body), "POST /x")
    assert (error.code, error.message) == ("NOT_FOUND", "No endpoint.")
    error = translate.from_http(httpx.Response(502, text="<html>"), "POST /x")
    assert error.reason == "HTTP_502"


def test_a_long_transfer_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.bar("Uploading code", 10, shown=True) as advance:
        advance(5)
    assert "Uploading code" in capsys.readouterr().err
    with progress.bar("Uploading code", 10) as advance:
        advance(5)
    assert capsys.readouterr().err == ""


def test_a_redirect_takes_the_key_nowhere(platform: Platform) -> None:
    seen: list[str] = []

    class Redirects(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(307)
            self.send_header("location", f"http://localhost:{server.server_port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirects)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with (
            Client(grpc_address=platform.address, gateway_url=url, api_key=KEY) as client,
            pytest.raises(StellwerkError),
        ):
            client._core.post("/here", b"{}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen == ["/here"]


def test_a_key_that_others_may_read_on_the_way_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    for address in ("overheard.example:7400", "https://far.example:7400", "127.0.0.1:7400"):
        Client(grpc_address=address, api_key=KEY).close()
    (record,) = caplog.records
    assert "overheard.example:7400 without TLS" in record.getMessage()


class _Store(BaseHTTPRequestHandler):
    """A blob store: keeps what is put, with a bad moment now and then."""

    blobs: dict[str, bytes]
    bad_moments: int

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if type(self).bad_moments:
            type(self).bad_moments -= 1
            return self._answer(503, b"<Code>SlowDown</Code>")
        if b"too much" in body:
            return self._answer(507, b"")
        self.blobs[self.path[1:]] = body
        return self._answer(200, b"")

    def do_GET(self) -> None:
        self._answer(200, self.blobs[self.path[1:]])

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        return


class _Blobs:
    """The URLs of a store."""

    def __init__(self) -> None:
        self.handler: Any = type("Handler", (_Store,), {"blobs": {}, "bad_moments": 0})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    async def uploads(self, request: blobs_pb2.PrepareUploadsRequest) -> blobs_pb2.PrepareUploadsResponse:
        missing = [blob for blob in request.blobs if blob.sha256 not in self.handler.blobs]
        uploads = [blobs_pb2.Upload(sha256=blob.sha256, url=self.url + blob.sha256) for blob in missing]
        return blobs_pb2.PrepareUploadsResponse(uploads=uploads)

    async def pack(self, request: blobs_pb2.CreatePackRequest) -> blobs_pb2.CreatePackResponse:
        raise AssertionError("nothing here is many")

    async def part(self, request: blobs_pb2.PreparePartRequest) -> blobs_pb2.PreparePartResponse:
        raise AssertionError("nothing here is large")

    async def complete(self, request: blobs_pb2.CompleteUploadRequest) -> blobs_pb2.CompleteUploadResponse:
        raise AssertionError("nothing here is large")

    async def downloads(
        self, request: blobs_pb2.PrepareDownloadsRequest
    ) -> blobs_pb2.PrepareDownloadsResponse:
        downloads = [blobs_pb2.Download(sha256=digest, url=self.url + digest) for digest in request.sha256]
        return blobs_pb2.PrepareDownloadsResponse(downloads=downloads)


@pytest.fixture
def blobs() -> Iterator[_Blobs]:
    blobs = _Blobs()
    yield blobs
    blobs.close()


async def _send(http: httpx.AsyncClient, blobs: _Blobs, folder: Path) -> int:
    todo = await transfer.missing(blobs.uploads, "workspaces/demo", pack(folder))
    calls = Calls(blobs.uploads, blobs.pack, blobs.part, blobs.complete)
    await transfer.upload(http, blobs.uploads, calls, "workspaces/demo", todo, lambda moved: None)
    return len(todo)


async def test_only_missing_blobs_travel_and_come_back_verified(blobs: _Blobs, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "run.sh").write_bytes(b"x" * 3_000_000)
    (source / "deep" / "run.sh").chmod(0o755)
    (source / "empty").touch()
    (source / "same").touch()
    blobs.handler.bad_moments = 1
    async with httpx.AsyncClient(trust_env=False) as http:
        assert await _send(http, blobs, source) == 2
        assert await _send(http, blobs, source) == 0
        files = [
            common_pb2.File(path=f.path, sha256=f.sha256, size_bytes=f.size_bytes, executable=f.executable)
            for f in pack(source)
        ]
        await transfer.download(http, blobs.downloads, "workspaces/demo", files, target, lambda moved: None)
        assert pack(target) == [
            type(f)(f.path, target / f.path, f.size_bytes, f.executable, f.sha256) for f in pack(source)
        ]
        digest = hashlib.sha256(b"").hexdigest()
        blobs.handler.blobs[digest] = b"something else"
        with pytest.raises(StellwerkError, match=r"BLOB_CORRUPT"):
            await transfer.download(
                http, blobs.downloads, "workspaces/demo", files, tmp_path / "other", lambda moved: None
            )
        assert not [path for path in (tmp_path / "other").rglob("*") if path.name in ("empty", "same")]


async def test_a_full_store_and_a_dead_one_are_named(blobs: _Blobs, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "big").write_bytes(b"too much")
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(StellwerkError, match=r"BLOB_STORE_FULL.*Free space"):
            await _send(http, blobs, tmp_path / "source")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", ""])
def test_no_path_leaves_the_folder(path: str) -> None:
    with pytest.raises(StellwerkError, match="PATH_UNSAFE"):
        transfer.safe_path(path)


async def test_the_files_of_a_large_snapshot_travel_as_a_manifest() -> None:
    class Core:
        channel = grpc.aio.insecure_channel("127.0.0.1:1")
        manifest = b""

        def __init__(self, count: int) -> None:
            self.files = [common_pb2.File(path=f"{n:05}", sha256="0" * 64) for n in range(count)]

        async def upload(self, parent: str, folder: Path, *, ignore: bool) -> list[common_pb2.File]:
            return self.files

        async def upload_bytes(self, parent: str, data: bytes, label: str) -> str:
            self.manifest = data
            return "f" * 64

        async def call(self, method: Any, request: Any, *, files: int = 0) -> Any:
            self.request, self.allowed_for = request, files
            return request

    small: Any = Core(5_000)
    large: Any = Core(5_001)
    for core in (small, large):
        with pytest.raises(AttributeError):  # the answer here has no name
            await create_snapshot(core, "workspaces/demo", Path())
    assert (len(small.request.files), small.request.manifest) == (5_000, "")
    assert (len(large.request.files), large.request.manifest) == (0, "f" * 64)
    assert list(snapshots_pb2.Manifest.FromString(large.manifest).files) == large.files
    # Checking them takes the service the same time in either form.
    assert large.allowed_for == 5_001
