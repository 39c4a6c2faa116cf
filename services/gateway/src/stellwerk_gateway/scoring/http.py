"""Scoring over HTTP: `/endpoints/{workspace}/{endpoint}/score`, `…/v2/…` and `…/swagger.json`.

The request goes to a replica as it came, but for the caller's key, which stays here.
When a replica cannot be reached, or hangs up before it answers, another one is asked
once: scoring changes nothing, so asking twice does no harm.
"""

import logging
import re
from collections.abc import Sequence

import aiohttp
from opentelemetry.trace import Span, SpanKind, StatusCode
from yarl import URL

from stellwerk_gateway import refusals
from stellwerk_gateway.asgi import Header, Receive, Scope, Send, send_error, send_response
from stellwerk_gateway.refusals import PayloadTooLarge
from stellwerk_gateway.scoring import access
from stellwerk_gateway.scoring.access import REQUEST_ID, Access
from stellwerk_gateway.scoring.routes import RouteTable
from stellwerk_platform import telemetry
from stellwerk_platform.errors import (
    DeadlineExceeded,
    Internal,
    NotFound,
    PlatformError,
    Unauthenticated,
    Unavailable,
)
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

log = logging.getLogger(__name__)
_PATH = re.compile(r"/endpoints/([^/]+)/([^/]+)/((score|swagger\.json|v2)(?:/.*)?)", re.DOTALL)
# What belongs to one connection, or is replaced.
_DROPPED = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("host", "content-length", "authorization", "traceparent", "expect", REQUEST_ID),
    }
)
_DROPPED_ANSWER = frozenset({"connection", "keep-alive", "transfer-encoding", "server", "date", REQUEST_ID})
# A smaller answer is sent in one piece.
_STREAMED_FROM_BYTES = 1 << 20
# So much of a body that is too large is still read, so that its client gets to read the answer.
_DISCARD_FACTOR = 4
# Less than the scorer's, so that it is never the one that closes.
_KEEP_ALIVE_SECONDS = 60


def client_session() -> aiohttp.ClientSession:
    """The pool of connections to replicas: bodies and headers pass as they are."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
    )


class _ClientGone(Exception):
    """The client hung up before its request was complete."""


class ScoringDoor:
    """The ASGI application below `/endpoints/`."""

    def __init__(
        self,
        routes: RouteTable,
        admission: Access,
        session: aiohttp.ClientSession,
        timeout_seconds: float,
        max_body_bytes: int,
    ) -> None:
        self._routes = routes
        self._access = admission
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = access.request_id(headers.get(REQUEST_ID))
        answer = _Answer(send, request_id)
        # As it was sent, so that an encoded character reaches the replica encoded.
        match = _PATH.fullmatch(scope["raw_path"].decode("latin-1"))
        with telemetry.tracer.start_as_current_span(
            f"{scope['method']} /endpoints/{{endpoint}}/{match[4] if match else ''}",
            telemetry.context_from(headers.get("traceparent", "")),
            kind=SpanKind.SERVER,
            attributes={"request.id": request_id},
            record_exception=False,
        ) as span:
            try:
                if match is None:
                    raise NotFound("PATH_NOT_FOUND", f"There is no {scope['path'][:200]}.", "Use …/score.")
                await self._score(scope, receive, answer, headers, match)
            except _ClientGone:
                return
            except Exception as error:
                if isinstance(error, PlatformError):
                    refusals.report(
                        f"{scope['method']} /endpoints/{{endpoint}}/{match[4] if match else ''}",
                        error,
                        refusals.address_of(scope),
                        f"workspaces/{match[1]}/endpoints/{match[2]}" if match else "",
                    )
                await _fail(answer, error, span)

    async def _score(
        self,
        scope: Scope,
        receive: Receive,
        answer: "_Answer",
        headers: dict[str, str],
        match: re.Match[str],
    ) -> None:
        try:
            endpoint = access.endpoint_name(match[1], match[2])
        except PlatformError as error:
            raise NotFound("ENDPOINT_NOT_FOUND", error.message, error.cure) from error
        onward = {name: value for name, value in headers.items() if name not in _DROPPED}
        await self._access.admit(headers.items(), endpoint)
        onward[REQUEST_ID] = headers.get(REQUEST_ID) or answer.request_id
        if parent := telemetry.traceparent() or headers.get("traceparent", ""):
            onward["traceparent"] = parent
        replicas = await self._routes.next(endpoint)
        onward["authorization"] = await self._access.authorization(endpoint)
        body = await self._body(receive)
        query = scope["query_string"].decode("latin-1")
        target = f"/{match[3]}" + (f"?{query}" if query else "")
        await self._forward(replicas, scope["method"], target, onward, body, answer)

    async def _forward(
        self,
        replicas: Sequence[pb.Replica],
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
        answer: "_Answer",
    ) -> None:
        """Asks the first replica, and once more the next one, which may be the same on a new connection."""
        first, second = replicas[0], replicas[1 % len(replicas)]
        for replica in (first, second):
            url = URL(f"http://{replica.http_address}{target}", encoded=True)
            try:
                async with self._session.request(
                    method, url, headers=headers, data=body, timeout=self._timeout, allow_redirects=False
                ) as response:
                    # Its worker is being started: the request has not reached the script.
                    if response.status == 503 and replica is first and second is not first:
                        continue
                    return await answer.relay(response)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    "SCORING_TIMEOUT",
                    "The replica did not answer in time.",
                    "Send less at a time.",
                ) from error
            except aiohttp.ClientError as error:
                log.warning("%s could not be asked: %s", replica.name, error or type(error).__name__)
                if answer.started:
                    raise
        raise Unavailable(
            "REPLICA_UNREACHABLE",
            "The replica ended while it was asked.",
            "Try again.",
            {"replica": first.name},
        )

    async def _body(self, receive: Receive) -> bytes:
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
            limit = f"The body is larger than {self._max_body_bytes:,} bytes."
            raise PayloadTooLarge("PAYLOAD_TOO_LARGE", limit, "Send fewer rows a request.")
        return b"".join(chunks)


class _Answer:
    """The one answer to a request; remembers whether it has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.started = False

    async def relay(self, response: aiohttp.ClientResponse) -> None:
        """Sends a replica's answer on."""
        headers = [
            (name.lower(), value)
            for name, value in response.raw_headers
            if name.lower().decode("latin-1") not in _DROPPED_ANSWER | {"content-length"}
        ]
        headers.append(self._request_id_header(response.headers.get(REQUEST_ID)))
        length = response.content_length
        if length is not None and length < _STREAMED_FROM_BYTES:
            body = await response.read()
            self.started = True
            return await send_response(self._send, response.status, headers, body)
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        self.started = True
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})
        async for chunk in response.content.iter_any():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: PlatformError, headers: Sequence[Header]) -> None:
        """Sends an error."""
        self.started = True
        await send_error(self._send, error, [*headers, self._request_id_header(None)])

    def _request_id_header(self, given: str | None) -> Header:
        return REQUEST_ID.encode(), (given or self.request_id).encode("latin-1")


async def _fail(answer: _Answer, error: Exception, span: Span) -> None:
    """The one place where an error becomes an answer; one that comes too late breaks the connection."""
    if answer.started:
        raise error
    if not isinstance(error, PlatformError):
        trace = telemetry.trace_id() or "not recorded"
        log.error("An unexpected error (trace %s)", trace, exc_info=error)
        error = Internal("INTERNAL", f"An unexpected error; trace {trace}.", "Report it.")
    headers: list[Header] = []
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, Unavailable):
        headers.append((b"retry-after", b"1"))
    if isinstance(error, PayloadTooLarge):
        headers.append((b"connection", b"close"))
    if error.http_status >= 500:
        span.set_status(StatusCode.ERROR, error.reason)
    await answer.fail(error, headers)
