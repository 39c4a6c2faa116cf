"""One HTTP request on its way: its path, its ids, its span, and how it is answered."""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson
from opentelemetry.trace import Span, SpanKind, StatusCode

from stellwerk_platform import telemetry
from stellwerk_platform.errors import PlatformError
from stellwerk_scorer import cors, errors, proto_calls
from stellwerk_scorer.collection import Collection
from stellwerk_scorer.domain import (
    MAX_REQUEST_ID_LENGTH,
    MethodNotAllowed,
    PayloadTooLarge,
    RequestIdTooLong,
)
from stellwerk_scorer.http_server import Exchange
from stellwerk_scorer.job import Answer, Job
from stellwerk_scorer.worker import frames

_ID_HEADERS = (b"x-request-id", b"x-ms-client-request-id", b"x-ms-request-id")
JSON = b"content-type: application/json\r\n"
_SLASHES = re.compile("/{2,}")
# What a script must not set, for it is this server's business.
_OWN_HEADERS = frozenset({"content-length", "connection", "transfer-encoding", "keep-alive", "x-request-id"})


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """What else an answer depends on."""

    cors_origins: frozenset[str] = frozenset()
    server_version: str = ""
    max_body_bytes: int = 100_000_000
    # Whether everybody who may ask for readiness may ask for the usage; else it takes a key.
    usage_is_open: bool = True


class Call:
    """One exchange on its way: its path, its ids, its span, and how it is answered."""

    __slots__ = (
        "_collection",
        "_extra",
        "_request_id",
        "_settings",
        "_span",
        "exchange",
        "is_proto",
        "path",
        "query",
    )

    def __init__(
        self, exchange: Exchange, settings: HttpSettings, extra: bytes, *, names_request: bool = True
    ) -> None:
        path, _, query = exchange.target.partition(b"?")
        self.exchange = exchange
        self.path = _path(path)
        self.query = query
        self.is_proto = self.path.startswith(proto_calls.PREFIX)
        self._settings = settings
        self._extra = extra
        self._span: Span | None = None
        self._collection: Collection | None = None
        self._request_id = exchange.headers.get(b"x-request-id", b"")
        if not self._request_id and names_request:
            self._request_id = uuid.uuid4().hex.encode()

    @property
    def request_id(self) -> str:
        """The caller's id of the request, else the one that it was given here."""
        return self._request_id.decode("latin-1")

    def trace(self) -> None:
        """Starts a span, if the caller samples this trace."""
        parent = self.exchange.headers[b"traceparent"].decode("latin-1")
        if parent[-2:-1].isalnum() and not parent.endswith("0"):
            route = re.sub(r"/v2/models/[^/]+(/versions/[^/]+)?", "/v2/models/{model}", self.path)
            name = f"{self.exchange.method.decode()} {route[:100]}"
            context = telemetry.context_from(parent)
            self._span = telemetry.tracer.start_span(name, context, kind=SpanKind.SERVER)

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """The request's headers with its id, the trace context being that of our span."""
        pairs = self.exchange.pairs
        if b"x-request-id" not in self.exchange.headers:
            pairs = [*pairs, (b"x-request-id", self._request_id)]
        if self._span is None or not self._span.get_span_context().is_valid:
            return pairs
        context = self._span.get_span_context()
        here = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        return [pair for pair in pairs if pair[0] != b"traceparent"] + [(b"traceparent", here.encode())]

    def check_ids(self) -> None:
        """Raises `RequestIdTooLong` for ids that would not fit into logs and headers."""
        for name in _ID_HEADERS:
            if len(self.exchange.headers.get(name, b"")) > MAX_REQUEST_ID_LENGTH:
                raise RequestIdTooLong(
                    "REQUEST_ID_TOO_LONG",
                    f"{name.decode()} is longer than {MAX_REQUEST_ID_LENGTH} characters.",
                    "Use a shorter id.",
                )

    def allow(self, *methods: str) -> None:
        """Raises `MethodNotAllowed` for other methods."""
        method = self.exchange.method.decode()
        if method not in methods:
            allowed = ", ".join(methods)
            message = f"This path does not take {method}."
            raise MethodNotAllowed("METHOD_NOT_ALLOWED", message, f"Use {allowed}.", {"allow": allowed})

    def collect(self, collection: Collection) -> None:
        """Keeps the request, and later its answer, if it is sampled."""
        method, request_id = self.exchange.method, self._request_id.decode("latin-1")
        is_scored = self.path == "/score" or self.path.endswith(("/infer", "/ModelInfer"))
        is_real = b"x-stellwerk-sample" not in self.exchange.headers
        if is_scored and is_real and method != b"OPTIONS" and collection.samples(request_id):
            self._collection = collection
            subject = f"{method.decode()} {self.exchange.target.decode('latin-1')}"
            collection.request(request_id, subject, self.exchange.headers, self.exchange.body)

    def wait_for(self, job: Job, abandon: Callable[[Job], None] | None = None) -> None:
        """Forgets the job, or abandons it, if the client hangs up."""

        def gone() -> None:
            job.is_canceled = True
            if abandon is not None:
                abandon(job)
            self._end_span(499)

        self.exchange.gone = gone

    def guarded(
        self, done: Callable[[Answer | PlatformError], None]
    ) -> Callable[[Answer | PlatformError], None]:
        """`done`, with an answer for the client if it fails."""

        def call(answer: Answer | PlatformError) -> None:
            try:
                done(answer)
            except Exception as error:
                self.fail(error)

        return call

    def scored(self, answer: Answer | PlatformError) -> None:
        """Answers with what `run` returned."""
        if isinstance(answer, PlatformError):
            self.fail(answer)
            return
        took = b"x-ms-run-fn-exec-ms: %.3f\r\n" % (answer.took / 1000)
        if answer.kind == frames.RESULT:
            self.answer(200, JSON + took, answer.payload)
            return
        response = orjson.loads(answer.meta)
        status = response["status"]
        lines = [
            b"%b: %b\r\n" % (name.encode("latin-1"), value.encode("latin-1", "replace"))
            for name, value in response["headers"]
            if name.lower() not in _OWN_HEADERS and _is_header(name, value)
        ]
        if status >= 500:
            lines = [line for line in lines if not line.lower().startswith(b"x-ms-run-function-failed")]
            lines.append(errors.RUN_FAILED)
        self.answer(status, b"".join(lines) + took, answer.payload)

    def answer_json(self, document: Any, status: int = 200) -> None:
        """Answers with JSON."""
        self.answer(status, JSON, orjson.dumps(document))

    def answer(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        """Answers with header lines and a body."""
        exchange = self.exchange
        exchange.gone = None
        headers = exchange.headers
        head += self._extra
        if self._request_id:
            head += b"x-request-id: %b\r\n" % self._request_id[:MAX_REQUEST_ID_LENGTH]
        client_id = headers.get(b"x-ms-client-request-id") or headers.get(b"x-ms-request-id")
        if client_id:
            legacy = headers.get(b"x-ms-request-id") or client_id
            shown = client_id[:MAX_REQUEST_ID_LENGTH], legacy[:MAX_REQUEST_ID_LENGTH]
            head += b"x-ms-client-request-id: %b\r\nx-ms-request-id: %b\r\n" % shown
        elif self.path == "/score":
            head += b"x-ms-request-id: %b\r\n" % self._request_id[:MAX_REQUEST_ID_LENGTH]
        if b"traceid" in headers:
            head += b"TraceId: %b\r\n" % headers[b"traceid"]
        if self._settings.cors_origins and b"origin" in headers:
            head += cors.simple(headers, self._settings.cors_origins)
        self._end_span(status)
        exchange.answer(status, head, body, close=close)
        if self._collection is not None:
            self._collection.response(self._request_id.decode("latin-1"), status, head, body)
            self._collection = None

    def fail(self, error: Exception) -> None:
        """The one place where an error becomes an HTTP answer."""
        problem = errors.known(error)
        head = errors.headers_of(problem)
        close = isinstance(problem, PayloadTooLarge)
        if self.is_proto:
            self.answer(
                problem.http_status, proto_calls.CONTENT_TYPE + head, errors.status_of(problem), close=close
            )
        else:
            self.answer(problem.http_status, JSON + head, errors.document_of(problem), close=close)

    def _end_span(self, status: int) -> None:
        if self._span is not None:
            self._span.set_attribute("http.response.status_code", status)
            self._span.set_attribute("request.id", self._request_id.decode("latin-1"))
            if status >= 500:
                self._span.set_status(StatusCode.ERROR)
            self._span.end()
            self._span = None


def _path(target: bytes) -> str:
    """The path of a target, which may be a whole URL (RFC 9112, 3.2.2) and have quoted characters."""
    if not target.startswith(b"/"):
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path = target.decode("latin-1")
    if "%" in path:
        path = unquote(path)
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return path.rstrip("/") if path.startswith("/v2") else path


def _is_header(name: str, value: str) -> bool:
    """Whether a script's header can be sent: nothing in it may end the line."""
    return (
        name.isascii()
        and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is not None
        and not (set(value) & {"\r", "\n", "\0"})
    )
