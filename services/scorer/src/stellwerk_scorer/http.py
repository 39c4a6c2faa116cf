"""The HTTP face: `/score` of Azure's contract, and the Open Inference Protocol.

Requests are answered by callbacks, without a task each; only who is not known yet, or
sends what has to be unpacked, waits.
"""

import asyncio
import contextlib
import re
from typing import Any

from stellwerk_platform.errors import NotFound, PlatformError
from stellwerk_scorer import __version__, bodies, cors, data_plane, open_inference, proto_calls
from stellwerk_scorer.auth import Gate
from stellwerk_scorer.call import JSON, Call, HttpSettings
from stellwerk_scorer.collection import Collection
from stellwerk_scorer.data_plane import DataPlane, outputs_of
from stellwerk_scorer.domain import (
    MethodNotAllowed,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from stellwerk_scorer.http_server import Exchange
from stellwerk_scorer.job import Answer

# So long a probe waits for whether its key is good.
_GATE_SECONDS = 1.0
_LIVE, _READY = b"/v2/health/live", b"/v2/health/ready"
_HEALTH = frozenset({_LIVE, _READY})
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>ready|infer))?")


class HttpApp:
    """Answers exchanges."""

    def __init__(self, plane: DataPlane, gate: Gate, settings: HttpSettings, collection: Collection) -> None:
        self._plane = plane
        self._collection = collection if collection.is_on else None
        self._gate = gate
        self._settings = settings
        self._extra = b""
        if settings.server_version:
            self._extra = b"x-ms-server-version: %b\r\n" % settings.server_version.encode("latin-1")
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: Exchange) -> None:
        """Answers one exchange, now or later."""
        target = exchange.target
        if target in _HEALTH or target.partition(b"?")[0].rstrip(b"/") in _HEALTH:
            # Probes come every second: no key, no span.
            if self._shows_usage(exchange):
                self._health(exchange)
            else:
                self._start(self._usage(exchange))
            return
        call = Call(exchange, self._settings, self._extra)
        if b"traceparent" in exchange.headers:
            call.trace()
        try:
            call.check_ids()
            if exchange.method == b"OPTIONS":
                # Browsers ask so before a request, and show no key.
                call.answer(200, cors.preflight(exchange.headers, self._settings.cors_origins), b"")
            elif not self._gate.knows(exchange.headers.get(b"authorization")):
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

    async def _later(self, call: Call) -> None:
        try:
            await self._gate.admit(call.exchange.headers.get(b"authorization"))
        except Exception as error:
            call.fail(error)
            return
        await self._unpacked(call)

    async def _unpacked(self, call: Call) -> None:
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

    def _route(self, call: Call) -> None:
        path = call.path
        if self._collection is not None:
            call.collect(self._collection)
        if path == "/score":
            self._score(call)
        elif call.is_proto:
            self._proto(call)
        elif path == "/":
            call.allow("GET", "HEAD")
            call.answer(200, b"content-type: text/plain; charset=utf-8\r\n", b"Healthy")
        elif path == "/swagger.json":
            call.allow("GET", "HEAD")
            self._swagger(call)
        elif path == "/v2":
            call.allow("GET", "HEAD")
            server = {"name": data_plane.SERVER_NAME, "version": __version__}
            call.answer_json({**server, "extensions": data_plane.EXTENSIONS})
        elif path == "/v2/models":
            call.allow("GET", "HEAD")
            call.answer_json({"models": [self._plane.model.name]})
        else:
            self._model(call)

    def _shows_usage(self, exchange: Exchange) -> bool:
        """Whether this caller may see the usage, or does not ask for it."""
        headers = exchange.headers
        if self._settings.usage_is_open or b"x-stellwerk-usage" not in headers:
            return True
        return self._gate.knows(headers.get(b"authorization"))

    async def _usage(self, exchange: Exchange) -> None:
        """Health of a replica in a network, whose usage is for those with a key; the rest is not held up."""
        with contextlib.suppress(PlatformError, TimeoutError):
            async with asyncio.timeout(_GATE_SECONDS):
                await self._gate.admit(exchange.headers.get(b"authorization"))
        self._health(exchange)

    def _health(self, exchange: Exchange) -> None:
        call = Call(exchange, self._settings, self._extra, names_request=False)
        try:
            call.allow("GET", "HEAD")
        except MethodNotAllowed as error:
            call.fail(error)
            return
        if call.path.encode() == _LIVE:
            call.answer_json({"live": True})
        else:
            ready = self._plane.ready
            wanted = b"x-stellwerk-usage" in exchange.headers and self._shows_usage(exchange)
            head = JSON + self._plane.usage() if wanted else JSON
            call.answer(200 if ready else 503, head, b'{"ready":true}' if ready else b'{"ready":false}')

    def _score(self, call: Call) -> None:
        exchange = call.exchange
        method = exchange.method
        mode = self._plane.pool.description.get("mode")
        call.allow("GET", "POST", "OPTIONS", *(("HEAD",) if mode == "rawhttp" else ()))
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

    def _swagger(self, call: Call) -> None:
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

    def _model(self, call: Call) -> None:
        match = _MODEL.fullmatch(call.path)
        if match is None:
            raise NotFound("PATH_NOT_FOUND", f"There is no {call.path} here.", "Use /score or /v2/models/….")
        model, verb = self._plane.model, match["verb"]
        model.check(match["name"], match["version"] or "")
        call.allow(*(("POST",) if verb == "infer" else ("GET", "HEAD")))
        if verb == "infer":
            self._infer(call)
        elif verb == "ready":
            ready = self._plane.ready
            call.answer_json({"name": model.name, "ready": ready}, 200 if ready else 503)
        else:
            versions = [model.version] if model.version else []
            call.answer_json({"name": model.name, "versions": versions, **self._plane.tensors()})

    def _infer(self, call: Call) -> None:
        exchange = call.exchange
        length = exchange.headers.get(open_inference.JSON_LENGTH_HEADER)
        request = open_inference.parse_request(
            exchange.body, None if length is None else length.decode("latin-1")
        )

        def inferred(answer: Answer | PlatformError) -> None:
            outputs = outputs_of(answer, request.infer)
            body, json_length = open_inference.render_response(
                request, self._plane.model, outputs, call.request_id
            )
            head = JSON
            if json_length is not None:
                name = open_inference.JSON_LENGTH_HEADER
                head = b"content-type: application/octet-stream\r\n%b: %d\r\n" % (name, json_length)
            call.answer(200, head, body)

        call.wait_for(self._plane.infer(request.infer, call.pairs(), None, call.guarded(inferred)))

    def _proto(self, call: Call) -> None:
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
