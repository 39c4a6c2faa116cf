"""The HTTP face: `/score` of the Azure contract and the Open Inference Protocol over REST.

A bare ASGI application: the routes are few and fixed, and a framework's request objects
and response schemas are where such servers were measured to lose their time.
"""

import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import SpanKind, StatusCode

from stellwerk_platform import auth, telemetry
from stellwerk_platform.errors import Internal, NotFound, PlatformError
from stellwerk_scorer import __version__, data_plane, open_inference
from stellwerk_scorer.auth import Verify
from stellwerk_scorer.data_plane import DataPlane
from stellwerk_scorer.domain import (
    MAX_REQUEST_ID_LENGTH,
    MethodNotAllowed,
    PayloadTooLarge,
    RequestIdTooLong,
    ScriptFailed,
    UnsupportedMediaType,
)

REQUEST_ID = "x-request-id"
# Azure's mark of answers for which user code is to blame.
_RUN_FAILED = ("x-ms-run-function-failed", "true")
_LIVE, _READY = "/v2/health/live", "/v2/health/ready"
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>ready|infer))?")
# So much of a body that is too large is still read, so that its client gets to read the answer.
_DISCARD_FACTOR = 4

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

log = logging.getLogger(__name__)


class _ClientGone(Exception):
    """The client hung up before its request was complete."""


@dataclass(slots=True)
class Response:
    """An answer; `headers` beyond type, length and request id."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)


class HttpApp:
    """The ASGI application."""

    def __init__(self, plane: DataPlane, verify: Verify, max_body_bytes: int) -> None:
        self._plane = plane
        self._verify = verify
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        if path in (_LIVE, _READY):
            # Probes come every second: no key, no span.
            await _send(send, headers.get(REQUEST_ID, ""), self._health(method, path))
            return
        request_id = headers.get(REQUEST_ID) or uuid.uuid4().hex
        context = telemetry.context_from(headers.get("traceparent", ""))
        with telemetry.tracer.start_as_current_span(
            f"{method} {_route(path)}", context, kind=SpanKind.SERVER
        ) as span:
            try:
                response = await self._respond(method, path, headers, request_id, receive)
            except _ClientGone:
                return
            except Exception as error:
                response = _failure(error)
            span.set_attributes({"http.response.status_code": response.status, "request.id": request_id})
            if response.status >= 500:
                span.set_status(StatusCode.ERROR)
        await _send(send, request_id[:MAX_REQUEST_ID_LENGTH], response)

    async def _respond(
        self, method: str, path: str, headers: dict[str, str], request_id: str, receive: Receive
    ) -> Response:
        if len(request_id) > MAX_REQUEST_ID_LENGTH:
            raise RequestIdTooLong(
                "REQUEST_ID_TOO_LONG", f"{REQUEST_ID} is longer than {MAX_REQUEST_ID_LENGTH} characters."
            )
        await self._verify(auth.bearer(headers.items()))
        if path == "/":
            _allow(method, "GET")
            return Response(b"Healthy", content_type="text/plain; charset=utf-8")
        if path == "/score":
            _allow(method, "POST")
            return Response(await self._plane.score(await self._body(headers, receive), headers))
        if path == "/v2":
            _allow(method, "GET")
            server = {
                "name": data_plane.SERVER_NAME,
                "version": __version__,
                "extensions": data_plane.EXTENSIONS,
            }
            return _json(server)
        match = _MODEL.fullmatch(path)
        if match is None:
            raise NotFound("PATH_NOT_FOUND", f"There is no {path} here.", "Use /score or /v2/models/….")
        self._plane.model.check(match["name"], match["version"] or "")
        _allow(method, "POST" if match["verb"] == "infer" else "GET")
        if match["verb"] == "infer":
            return await self._infer(await self._body(headers, receive), headers)
        return self._model(match["verb"] == "ready")

    async def _infer(self, body: bytes, headers: dict[str, str]) -> Response:
        request = open_inference.parse_request(body, headers.get(open_inference.JSON_LENGTH_HEADER))
        outputs = await self._plane.infer(request.infer, headers)
        body, json_length = open_inference.render_response(request, self._plane.model, outputs)
        if json_length is None:
            return Response(body)
        length_header = (open_inference.JSON_LENGTH_HEADER, str(json_length))
        return Response(body, content_type="application/octet-stream", headers=[length_header])

    def _health(self, method: str, path: str) -> Response:
        if method != "GET":
            return _failure(_not_allowed(method, "GET"))
        if path == _LIVE:
            return _json({"live": True})
        return _json({"ready": self._plane.ready}, 200 if self._plane.ready else 503)

    def _model(self, readiness: bool) -> Response:
        model = self._plane.model
        if readiness:
            ready = self._plane.ready
            return _json({"name": model.name, "ready": ready}, 200 if ready else 503)
        # A script does not say what it takes and gives; an empty list says so.
        tensors: dict[str, Any] = {"platform": data_plane.PLATFORM, "inputs": [], "outputs": []}
        return _json({"name": model.name, "versions": [model.version] if model.version else [], **tensors})

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        encoding = headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise UnsupportedMediaType(
                "CONTENT_ENCODING_UNSUPPORTED", f"The body is encoded as {encoding}.", "Send it as it is."
            )
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= self._max_body_bytes:
                chunks.append(chunk)
            else:
                chunks.clear()
            if not message.get("more_body", False) or size > _DISCARD_FACTOR * self._max_body_bytes:
                break
        if size > self._max_body_bytes:
            limit = f"The body is larger than {self._max_body_bytes} bytes."
            raise PayloadTooLarge("PAYLOAD_TOO_LARGE", limit, "Send fewer rows a request.")
        return b"".join(chunks)


def _route(path: str) -> str:
    """A path without the parts that callers choose, for span names."""
    match = _MODEL.fullmatch(path)
    if match is not None:
        return f"/v2/models/{{model}}/{match['verb'] or ''}".rstrip("/")
    return path if path in ("/", "/score", "/v2") else "/other"


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(document, separators=(",", ":")).encode(), status)


def _allow(method: str, allowed: str) -> None:
    if method != allowed:
        raise _not_allowed(method, allowed)


def _not_allowed(method: str, allowed: str) -> PlatformError:
    message = f"This path does not take {method}."
    return MethodNotAllowed("METHOD_NOT_ALLOWED", message, f"Use {allowed}.", {"allow": allowed})


def _failure(error: Exception) -> Response:
    """The one place where an error becomes an HTTP answer."""
    if not isinstance(error, PlatformError):
        trace = telemetry.trace_id() or "none"
        log.error("An unexpected error (trace %s)", trace, exc_info=error)
        error = Internal("INTERNAL", f"An unexpected error; trace {trace}.", "Report it.")
    document = {"error": error.message, "reason": error.reason}
    if error.cure:
        document["cure"] = error.cure
    response = _json(document, error.http_status)
    if isinstance(error, ScriptFailed) or error.reason == "SCORING_TIMEOUT":
        response.headers.append(_RUN_FAILED)
    if isinstance(error, MethodNotAllowed):
        response.headers.append(("allow", error.metadata["allow"]))
    if isinstance(error, PayloadTooLarge):
        response.headers.append(("connection", "close"))
    return response


async def _send(send: Send, request_id: str, response: Response) -> None:
    headers = [
        ("content-type", response.content_type),
        ("content-length", str(len(response.body))),
        *response.headers,
        *([(REQUEST_ID, request_id)] if request_id else []),
    ]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": response.status, "headers": encoded})
    await send({"type": "http.response.body", "body": response.body})
