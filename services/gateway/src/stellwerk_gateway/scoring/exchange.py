"""One request of the HTTP door on its way to a replica and back, body and answer in pieces.

It stands in uvicorn's connection where an ASGI cycle would: `response_complete`,
`disconnected`, `message_event` and `keep_alive` are what uvicorn looks at.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from opentelemetry.trace import Span
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from stellwerk_gateway import refusals
from stellwerk_gateway.asgi import Header
from stellwerk_gateway.refusals import PayloadTooLarge
from stellwerk_gateway.scoring import access, tracing
from stellwerk_gateway.scoring.call import CLIENT_GONE, Call
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.headers import Given, forward, read
from stellwerk_gateway.scoring.router import PREFIX, Router, Target
from stellwerk_platform import telemetry
from stellwerk_platform.errors import (
    DeadlineExceeded,
    Internal,
    NotFound,
    PlatformError,
    ResourceExhausted,
    Unauthenticated,
)

log = logging.getLogger(__name__)
# Of the answer; headers of one connection, or that are set here.
_DROPPED = frozenset(
    {
        *(b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"upgrade", b"trailer"),
        *(b"proxy-connection", b"server", b"date", b"traceresponse"),
    }
)
_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
_RETRY_STATUS = frozenset({429, 503})
# A body must come at least that fast.
_BYTES_PER_SECOND = 1024


class BodyTooSlow(DeadlineExceeded):
    """The body does not come."""

    http_status = 408


class _Event:
    """What uvicorn sets when a connection ends; an exchange is told otherwise."""

    def set(self) -> None:
        """Does nothing."""


class Exchange(Call):
    """A request, from the end of its head until its answer is written."""

    message_event: ClassVar[_Event] = _Event()

    def __init__(
        self,
        router: Router,
        protocol: Any,
        method: bytes,
        url: bytes,
        headers: Sequence[Header],
        *,
        is_old: bool,
        keep_alive: bool,
    ) -> None:
        super().__init__(router.limits.park_seconds)
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.is_idempotent = method in _SAFE
        self._router = router
        self._protocol = protocol
        self._method = method
        self._url = url
        self._is_old = is_old
        self._given: Given = read(headers)
        self._target: Target | None = None
        self._onward = ""
        self._chosen: Deployment | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._span: Span | None = None
        self._traceparent = b""
        self._request_id = self._given.request_id or access.new_request_id()
        # Of the request's body: what is here and not sent, how much there was, whether that is all.
        self._chunks: list[bytes] = []
        self._kept = 0
        self._size = 0
        self._is_whole = False
        self._is_sent = False
        self._checked_size = 0
        self._body_timer: asyncio.TimerHandle | None = None
        # Of the answer.
        self._out: list[bytes] = []
        self._status = 0
        self._is_chunked = False
        self._begun = False

    # The client's side

    def start(self) -> None:
        """Begins, when all earlier requests of the connection are answered."""
        try:
            self._start()
        except Exception as error:
            self._fail_now(error)

    def _start(self) -> None:
        given = self._given
        target = self._target = self._router.target(self._url)
        if target is None:
            path = self._url.decode("latin-1")[:200]
            raise NotFound("PATH_NOT_FOUND", f"There is no {path}.", "Use …/score.")
        if not target.endpoint:
            raise NotFound("ENDPOINT_NOT_FOUND", "No endpoint can have such a name.", "List the endpoints.")
        if self._method == b"OPTIONS" and given.is_preflight:
            self._answer_preflight()
            return
        access.check_request_id(given.request_id)
        access.check_request_id(given.client_request_id)
        self._traceparent, self._span = self._router.tracer.begin(
            f"{self._method.decode()} {target.label}", given.traceparent, self._request_id
        )
        if given.length is not None and given.length > self._router.limits.max_body_bytes:
            raise self._too_large()
        onward = self._router.access.remembered(given.authorization, target.endpoint)
        endpoint = self._router.endpoint(target.endpoint)
        if onward is not None and endpoint is not None:
            sticky = given.value(endpoint.sticky_header)
            deployment = endpoint.choose(given.deployment, sticky)
            if deployment is not None:
                self._prepared(onward, deployment)
                return
        self._preparing = self._loop.create_task(self._prepare(target))

    async def _prepare(self, target: Target) -> None:
        try:
            endpoint = self._router.endpoint(target.endpoint)
            sticky = self._given.value(endpoint.sticky_header) if endpoint is not None else b""
            onward, deployment = await self._router.prepare(
                target.endpoint, self._given.authorization, self._given.deployment, sticky
            )
            if not self._is_over:
                self._prepared(onward, deployment)
        except Exception as error:
            self._fail_now(error)

    def _prepared(self, onward: str, deployment: Deployment) -> None:
        self._onward, self._chosen = onward, deployment
        if self._given.expects_continue and not self._is_whole:
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._is_whole or self._kept > self._router.limits.held_body_bytes:
            self._dispatch()

    def watch_body(self) -> None:
        """A read has not brought the whole body: from now on it has to come at some speed."""
        if self._body_timer is None and not self._is_whole and not self.response_complete:
            seconds = self._router.limits.body_check_seconds
            self._body_timer = self._loop.call_later(seconds, self._check_body_speed)

    def _dispatch(self) -> None:
        assert self._chosen is not None
        deployment, self._chosen = self._chosen, None
        self._copy(deployment)
        self.send_to(deployment, deployment.timeout_seconds if self._is_whole else None)

    def _copy(self, deployment: Deployment) -> None:
        assert self._target is not None
        endpoint = self._router.endpoint(self._target.endpoint)
        if endpoint is None or not endpoint.copies or self._given.deployment:
            return
        due = endpoint.mirrors(deployment)
        if due and not self._is_whole:
            self._router.mirrors.send(due, None)
        elif due:
            head = self._head(b"x-stellwerk-mirrored: true\r\ncontent-length: %d\r\n\r\n" % self._size)
            self._router.mirrors.send(due, head + b"".join(self._chunks))

    def receive(self, data: bytes) -> None:
        """A part of the request's body."""
        if self.response_complete or self._is_over:
            return
        self._size += len(data)
        if self._size > self._router.limits.max_body_bytes:
            self._abort_with(self._too_large())
        elif self._is_sent:
            self._send_more(data)
        else:
            self._hold(data)

    def _hold(self, data: bytes) -> None:
        self._chunks.append(data)
        self._kept += len(data)
        self._router.held_bytes += len(data)
        if self._router.held_bytes > self._router.limits.held_bytes:
            self._abort_with(
                ResourceExhausted(
                    "QUEUE_FULL",
                    "The requests that wait take all the room that the gateway has for them.",
                    "Try again in a moment.",
                )
            )
        elif self._kept > self._router.limits.held_body_bytes:
            self._protocol.flow.pause_reading()
            if self._chosen is not None:
                self._dispatch()

    def received(self) -> None:
        """The request's body is whole."""
        self._is_whole = True
        if self._body_timer is not None:
            self._body_timer.cancel()
        if self.response_complete or self._is_over:
            return
        if self._chosen is not None:
            self._dispatch()
        elif self.deployment is not None:
            self.start_clock(self.deployment.timeout_seconds)
            if self._is_sent and self._connection is not None:
                self._connection.send(b"" if self._given.length is not None else b"0\r\n\r\n", True)

    @property
    def is_received(self) -> bool:
        """Whether the whole request has come."""
        return self._is_whole

    def client_gone(self) -> None:
        """The client hung up."""
        self.disconnected = True
        if not self.response_complete:
            self.cancel()
            self._end(CLIENT_GONE)

    def _send_more(self, data: bytes) -> None:
        if self._connection is not None:
            if self._given.length is None:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self._connection.send(data, False)

    def _check_body_speed(self) -> None:
        seconds = self._router.limits.body_check_seconds
        if self._is_whole or self._is_over or self.response_complete:
            return
        paused = self._protocol.flow.read_paused
        if not paused and self._size - self._checked_size < seconds * _BYTES_PER_SECOND:
            self._abort_with(
                BodyTooSlow("BODY_TOO_SLOW", "The body of the request does not come.", "Send it faster.")
            )
            return
        self._checked_size = self._size
        self._body_timer = self._loop.call_later(seconds, self._check_body_speed)

    # The replica's side

    def request(self, deployment: Deployment) -> tuple[bytes, bool]:
        """The head and what is here of the body."""
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        if self._is_whole:
            return self._head(b"content-length: %d\r\n\r\n" % self._size) + body, True
        # From here on the body passes through.
        self._is_sent, self.is_repeatable = True, False
        self._release()
        self._protocol.flow.resume_reading()
        if self._given.length is not None:
            return self._head(b"content-length: %d\r\n\r\n" % self._given.length) + body, False
        return self._head(b"transfer-encoding: chunked\r\n\r\n") + b"%x\r\n%b\r\n" % (len(body), body), False

    def _head(self, ending: bytes) -> bytes:
        assert self._target is not None
        lines = [
            self._method,
            b" ",
            self._target.onward,
            b" HTTP/1.1\r\nhost: replica\r\nauthorization: ",
            self._onward.encode(),
            b"\r\ntraceparent: ",
            self._traceparent,
            b"\r\nx-request-id: ",
            self._request_id.encode("latin-1"),
            b"\r\nx-ms-client-request-id: ",
            (self._given.client_request_id or self._request_id).encode("latin-1"),
            b"\r\n",
        ]
        lines += self._given.onward
        lines.append(ending)
        return b"".join(lines)

    def pause_request(self, yes: bool) -> None:
        """The client is read no faster than the replica."""
        if yes:
            self._protocol.flow.pause_reading()
        else:
            self._protocol.flow.resume_reading()

    def pause_answer(self, yes: bool) -> None:
        """The replica is read no faster than the client."""
        if self._connection is not None:
            self._connection.pause(yes)

    def head(self, status: int, headers: Sequence[Header], length: int | None) -> None:
        """Writes the answer's head."""
        assert self.deployment is not None
        self._status = status
        self._begun = True
        lines, names = forward(headers, _DROPPED)
        if b"x-request-id" not in names:
            lines += (b"x-request-id: ", self._request_id.encode("latin-1"), b"\r\n")
        if b"retry-after" not in names and status in _RETRY_STATUS:
            lines.append(b"retry-after: 1\r\n")
        lines += (b"azureml-model-deployment: ", self.deployment.id.encode(), b"\r\n")
        if length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif self._is_old:
            self.keep_alive = False
        else:
            self._is_chunked = self._method != b"HEAD"
            lines.append(b"transfer-encoding: chunked\r\n")
        self._write_head(status, lines)

    def _answer_preflight(self) -> None:
        """Tells a browser to send the request, with its key; this question shows none and is not counted.

        Which pages may read the answer, the deployment says then (`AML_CORS_ORIGINS`).
        """
        asked = self._given.text(b"access-control-request-headers").encode("latin-1")
        lines = [b"access-control-allow-origin: *\r\naccess-control-allow-methods: GET, POST\r\n"]
        if asked:
            lines.append(b"access-control-allow-headers: %b\r\n" % asked)
        self._write_head(200, [*lines, b"content-length: 0\r\n"])
        self.flush()
        self._be_done()

    def _write_head(self, status: int, lines: list[bytes]) -> None:
        # A body that nobody takes any more ends with its connection.
        self.keep_alive = self.keep_alive and self._is_whole
        self._out = [STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for name, value in self._protocol.server_state.default_headers:
            self._out += (name, b": ", value, b"\r\n")
        self._out += lines
        self._out += (b"traceresponse: ", self._traceparent, b"\r\n") if self._traceparent else ()
        self._out.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def body(self, data: bytes) -> None:
        """Writes a part of the answer."""
        if self._is_chunked:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._out.append(data)

    def flush(self) -> None:
        """Sends what is written."""
        if self._out and not self.disconnected:
            self._protocol.transport.write(b"".join(self._out))
        self._out = []

    def finish(self) -> None:
        """Ends the answer."""
        if self._is_chunked:
            self._out.append(b"0\r\n\r\n")
        self.flush()
        self._end(self._status)

    # Errors and the end

    def fail(self, error: PlatformError) -> None:
        """Answers with an error; where the answer has begun, its connection breaks off."""
        if self._begun:
            if not self.disconnected:
                self._protocol.transport.abort()
            self._end(error.http_status, error.reason)
            return
        self._report(error)
        document = {"error": error.message, "reason": error.reason}
        if error.cure:
            document["cure"] = error.cure
        body = json.dumps(document, separators=(",", ":")).encode()
        request_id = self._request_id[: access.MAX_REQUEST_ID_LENGTH].encode("latin-1")
        lines = [b"content-type: application/json\r\nx-request-id: ", request_id, b"\r\n"]
        if isinstance(error, Unauthenticated):
            lines.append(b"www-authenticate: Bearer\r\n")
        if error.http_status in _RETRY_STATUS:
            lines.append(b"retry-after: 1\r\n")
        lines.append(b"content-length: %d\r\n" % len(body))
        self._write_head(error.http_status, lines)
        if self._method != b"HEAD":
            self._out.append(body)
        self.flush()
        self._end(error.http_status, error.reason)

    def _report(self, error: PlatformError) -> None:
        target = self._target
        action = f"{self._method.decode()} {target.label if target is not None else PREFIX}"
        address = self._protocol.address(self._given.text(b"x-forwarded-for"))
        refusals.report(action, error, address, target.endpoint if target is not None else "")

    def _fail_now(self, error: Exception) -> None:
        """The end of a request that has not reached a deployment."""
        if self._is_over or self.response_complete:
            return
        if not isinstance(error, PlatformError):
            trace = self._traceparent[3:35].decode() or telemetry.trace_id() or "not recorded"
            log.error("An unexpected error (trace %s)", trace, exc_info=error)
            error = Internal("INTERNAL", f"An unexpected error; trace {trace}.", "Report it.")
        self._give_up(error)

    def _abort_with(self, error: PlatformError) -> None:
        """Ends the request in the middle of its body."""
        self.cancel()
        self.fail(error)

    def _end(self, status: int, reason: str = "") -> None:
        target = self._target
        endpoint = target.endpoint if target else ""
        self.count(status, None if self.deployment else self._router.counters(endpoint))
        if self._span is not None:
            deployment = self.deployment.id if self.deployment else ""
            tracing.end(self._span, status, reason, endpoint, deployment)
        self._be_done()

    def _be_done(self) -> None:
        self.response_complete = True
        self._release()
        if self._body_timer is not None:
            self._body_timer.cancel()
        if self._preparing is not None:
            self._preparing.cancel()
        if not self.disconnected:
            self._protocol.answered(self)

    def _release(self) -> None:
        self._router.held_bytes -= self._kept
        self._kept = 0
        self._chunks = [] if self._is_sent or self.response_complete else self._chunks

    def _too_large(self) -> PayloadTooLarge:
        limit = f"The body is larger than {self._router.limits.max_body_bytes:,} bytes."
        return PayloadTooLarge("PAYLOAD_TOO_LARGE", limit, "Send fewer rows a request.")
