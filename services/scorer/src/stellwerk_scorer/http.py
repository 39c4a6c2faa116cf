"""The HTTP face: `/score` of Azure's contract, and the Open Inference Protocol.

Requests are answered by callbacks, without a task each; only who is not known yet, or
sends what has to be unpacked, waits.
"""

import asyncio
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from opentelemetry.trace import Span, SpanKind, StatusCode

from stellwerk_platform import telemetry
from stellwerk_platform.errors import NotFound, PlatformError
from stellwerk_scorer import __version__, bodies, cors, data_plane, errors, open_inference, proto_calls
from stellwerk_scorer.auth import Gate
from stellwerk_scorer.data_plane import DataPlane, outputs_of
from stellwerk_scorer.domain import (
    MAX_REQUEST_ID_LENGTH,
    MethodNotAllowed,
    PayloadTooLarge,
    RequestIdTooLong,
    UnsupportedMediaType,
)
from stellwerk_scorer.http_server import Exchange
from stellwerk_scorer.job import Answer, Job
from stellwerk_scorer.worker import frames

_LIVE, _READY = b"/v2/health/live", b"/v2/health/ready"
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>ready|infer))?")
_ID_HEADERS = (b"x-request-id", b"x-ms-client-request-id", b"x-ms-request-id")
_JSON = b"content-type: application/json\r\n"
# What a script must not set, for it is this server's business.
_OWN_HEADERS = frozenset({"content-length", "connection", "transfer-encoding", "keep-alive", "x-request-id"})


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """What else an answer depends on."""

    cors_origins: frozenset[str] = frozenset()
    server_version: str = ""
    max_body_bytes: int = 100_000_000


class HttpApp:
    """Answers exchanges."""

    def __init__(self, plane: DataPlane, gate: Gate, settings: HttpSettings) -> None:
        self._plane = plane
        self._gate = gate
        self._settings = settings
        self._extra = b""
        if settings.server_version:
            self._extra = b"x-ms-server-version: %b\r\n" % settings.server_version.encode("latin-1")
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: Exchange) -> None:
        """Answers one exchange, now or later."""
        target = exchange.target
        if target in (_LIVE, _READY):
            # Probes come every second: no key, no span.
            self._health(exchange)
            return
        call = Call(exchange, self._settings, self._extra)
        if b"traceparent" in exchange.headers:
            call.trace()
        try:
            call.check_ids()
            is_preflight = exchange.method == b"OPTIONS" and call.path == "/score"
            if not is_preflight and not self._gate.knows(exchange.headers.get(b"authorization")):
                self._start(self._later(call))
            elif b"content-encoding" in exchange.headers or exchange.is_too_large:
                self._start(self._unpacked(call))
            else:
                self._route(call)
        except Exception as error:
            call.fail(error)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _later(self, call: "Call") -> None:
        try:
            await self._gate.admit(call.exchange.headers.get(b"authorization"))
        except Exception as error:
            call.fail(error)
            return
        await self._unpacked(call)

    async def _unpacked(self, call: "Call") -> None:
        exchange, limit = call.exchange, self._settings.max_body_bytes
        try:
            if exchange.is_too_large:
                raise PayloadTooLarge(
                    "PAYLOAD_TOO_LARGE",
                    f"The body is larger than {limit} bytes.",
                    "Send fewer rows a request.",
                )
            encoding = exchange.headers.get(b"content-encoding", b"identity")
            exchange.body = await bodies.unpack(exchange.body, encoding.decode("latin-1"), limit)
            self._route(call)
        except Exception as error:
            call.fail(error)

    def _route(self, call: "Call") -> None:
        path = call.path
        if path == "/score":
            self._score(call)
        elif call.is_proto:
            self._proto(call)
        elif path == "/":
            call.allow("GET")
            call.answer(200, b"content-type: text/plain; charset=utf-8\r\n", b"Healthy")
        elif path == "/swagger.json":
            call.allow("GET")
            self._swagger(call)
        elif path == "/v2":
            call.allow("GET")
            server = {"name": data_plane.SERVER_NAME, "version": __version__}
            call.answer_json({**server, "extensions": data_plane.EXTENSIONS})
        elif path == "/v2/models":
            call.allow("GET")
            call.answer_json({"models": [self._plane.model.name]})
        else:
            self._model(call)

    def _health(self, exchange: Exchange) -> None:
        call = Call(exchange, self._settings, self._extra, names_request=False)
        try:
            call.allow("GET")
        except MethodNotAllowed as error:
            call.fail(error)
            return
        if exchange.target == _LIVE:
            call.answer_json({"live": True})
        else:
            ready = self._plane.ready
            call.answer_json({"ready": ready}, 200 if ready else 503)

    def _score(self, call: "Call") -> None:
        exchange = call.exchange
        method = exchange.method
        if method == b"OPTIONS":
            call.answer(200, cors.preflight(exchange.headers, self._settings.cors_origins), b"")
            return
        call.allow("GET", "POST", "OPTIONS")
        mode = self._plane.pool.description.get("mode")
        body = exchange.body
        if method == b"GET" and mode != "rawhttp":
            body = bodies.from_query(call.query)
        elif mode == "schema" and not bodies.is_json(exchange.headers.get(b"content-type", b"")):
            raise UnsupportedMediaType(
                "CONTENT_TYPE_UNSUPPORTED",
                "The body must be JSON, and the header content-type say so.",
                "Send the header 'content-type: application/json'.",
            )
        target = exchange.target.decode("latin-1")
        call.wait_for(self._plane.score(body, method.decode(), target, call.pairs(), call.scored))

    def _swagger(self, call: "Call") -> None:
        asked = bodies.query_of(call.query).get("version", ["2"])[0]
        documents = self._plane.pool.description.get("swagger", {})
        if asked not in documents:
            offered = ", ".join(documents) or "none"
            raise NotFound(
                "SWAGGER_VERSION_NOT_FOUND",
                f"There is no OpenAPI document of version {asked[:20]!r}; there are: {offered}.",
                "Ask for another version, or wait until the scoring script is ready.",
            )
        call.answer_json(documents[asked])

    def _model(self, call: "Call") -> None:
        match = _MODEL.fullmatch(call.path)
        if match is None:
            raise NotFound("PATH_NOT_FOUND", f"There is no {call.path} here.", "Use /score or /v2/models/….")
        model, verb = self._plane.model, match["verb"]
        model.check(match["name"], match["version"] or "")
        call.allow("POST" if verb == "infer" else "GET")
        if verb == "infer":
            self._infer(call)
        elif verb == "ready":
            ready = self._plane.ready
            call.answer_json({"name": model.name, "ready": ready}, 200 if ready else 503)
        else:
            versions = [model.version] if model.version else []
            call.answer_json({"name": model.name, "versions": versions, **self._plane.tensors()})

    def _infer(self, call: "Call") -> None:
        exchange = call.exchange
        length = exchange.headers.get(open_inference.JSON_LENGTH_HEADER)
        request = open_inference.parse_request(
            exchange.body, None if length is None else length.decode("latin-1")
        )

        def inferred(answer: Answer | PlatformError) -> None:
            outputs = outputs_of(answer, request.infer)
            body, json_length = open_inference.render_response(request, self._plane.model, outputs)
            head = _JSON
            if json_length is not None:
                name = open_inference.JSON_LENGTH_HEADER
                head = b"content-type: application/octet-stream\r\n%b: %d\r\n" % (name, json_length)
            call.answer(200, head, body)

        call.wait_for(self._plane.infer(request.infer, call.pairs(), None, call.guarded(inferred)))

    def _proto(self, call: "Call") -> None:
        call.allow("POST")
        method = call.path.removeprefix(proto_calls.PREFIX)
        if method != "ModelInfer":
            call.answer(
                200, proto_calls.CONTENT_TYPE, proto_calls.answer(self._plane, method, call.exchange.body)
            )
            return
        request, is_raw = proto_calls.parse(self._plane.model, call.exchange.body)

        def inferred(answer: Answer | PlatformError) -> None:
            body = proto_calls.render(self._plane.model, request, outputs_of(answer, request), is_raw)
            call.answer(200, proto_calls.CONTENT_TYPE, body)

        timeout = proto_calls.timeout_seconds(call.exchange.headers)
        call.wait_for(self._plane.infer(request, call.pairs(), timeout, call.guarded(inferred)))


class Call:
    """One exchange on its way: its path, its ids, its span, and how it is answered."""

    __slots__ = ("_extra", "_request_id", "_settings", "_span", "exchange", "is_proto", "path", "query")

    def __init__(
        self, exchange: Exchange, settings: HttpSettings, extra: bytes, *, names_request: bool = True
    ) -> None:
        path, _, query = exchange.target.partition(b"?")
        self.exchange = exchange
        self.path = path.decode("latin-1")
        self.query = query
        self.is_proto = self.path.startswith(proto_calls.PREFIX)
        self._settings = settings
        self._extra = extra
        self._span: Span | None = None
        self._request_id = exchange.headers.get(b"x-request-id", b"")
        if not self._request_id and names_request:
            self._request_id = uuid.uuid4().hex.encode()

    def trace(self) -> None:
        """Starts a span, if the caller samples this trace."""
        parent = self.exchange.headers[b"traceparent"].decode("latin-1")
        if parent[-2:-1].isalnum() and not parent.endswith("0"):
            route = re.sub(r"/v2/models/[^/]+(/versions/[^/]+)?", "/v2/models/{model}", self.path)
            name = f"{self.exchange.method.decode()} {route[:100]}"
            context = telemetry.context_from(parent)
            self._span = telemetry.tracer.start_span(name, context, kind=SpanKind.SERVER)

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """The request's headers, the trace context being that of our span."""
        pairs = self.exchange.pairs
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

    def wait_for(self, job: Job) -> None:
        """Forgets the job if the client hangs up."""

        def gone() -> None:
            job.is_canceled = True
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
            self.answer(200, _JSON + took, answer.payload)
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
        self.answer(status, _JSON, orjson.dumps(document))

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
            self.answer(problem.http_status, _JSON + head, errors.document_of(problem), close=close)

    def _end_span(self, status: int) -> None:
        if self._span is not None:
            self._span.set_attribute("http.response.status_code", status)
            self._span.set_attribute("request.id", self._request_id.decode("latin-1"))
            if status >= 500:
                self._span.set_status(StatusCode.ERROR)
            self._span.end()
            self._span = None


def _is_header(name: str, value: str) -> bool:
    """Whether a script's header can be sent: nothing in it may end the line."""
    return (
        name.isascii()
        and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is not None
        and not (set(value) & {"\r", "\n", "\0"})
    )
