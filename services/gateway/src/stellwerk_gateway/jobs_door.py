"""Batch jobs over plain HTTP, for curl and for what cannot speak gRPC or Connect.

Thin: each route is one call of `BatchService` with the caller's own credential, and the
service decides. Beside full resource names the body may have the short ones of the
command line, and the answer is the job in proto JSON.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from stellwerk_gateway import refusals
from stellwerk_gateway.asgi import Header, Receive, Scope, Send, send_error, send_json
from stellwerk_gateway.backends import Backend, Backends
from stellwerk_gateway.forward import Metadata, is_lost_connection, traced, unary_timeout
from stellwerk_gateway.headers import carried
from stellwerk_gateway.refusals import PayloadTooLarge
from stellwerk_platform.addresses import METADATA_KEY
from stellwerk_platform.errors import (
    InvalidArgument,
    NotFound,
    PlatformError,
    Unauthenticated,
    Unimplemented,
    from_rpc,
)
from stellwerk_protos.inference.v1 import batches_pb2 as pb

# The third segment tells it apart from what goes to replicas.
_ROUTE = re.compile(r"/endpoints/([^/]+)/([^/]+)/jobs(?:/(.*))?", re.DOTALL)
_SERVICE = pb.DESCRIPTOR.services_by_name["BatchService"].full_name
_MAX_BODY_BYTES = 1 << 20
_ENDPOINT_KEY = "bearer swe_"


def is_route(path: str) -> bool:
    """Whether this door answers a path, which has no query."""
    return _ROUTE.fullmatch(path) is not None


class MethodNotAllowed(Unimplemented):
    """The path exists, but not with this HTTP method."""

    http_status = 405


@dataclass(frozen=True)
class _Call:
    """What a request is translated to, and how its answer is told."""

    method: str
    request: Message
    response: type[Message]
    status: int = 200


class JobsDoor:
    """The ASGI application for `/endpoints/{workspace}/{endpoint}/jobs` and what lies below."""

    def __init__(self, backends: Backends) -> None:
        self._backend: Backend = backends["inference"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        try:
            call = await self._parse(scope, receive)
            answer = call.response.FromString(await self._ask(scope, call))
        except PlatformError as error:
            refusals.report(
                f"{scope['method']} /endpoints/{{endpoint}}/jobs", error, refusals.address_of(scope)
            )
            headers: list[Header] = []
            if isinstance(error, MethodNotAllowed):
                headers = [(b"allow", error.metadata["allow"].encode())]
            await send_error(send, error, headers)
            return
        document = json_format.MessageToDict(answer, always_print_fields_with_no_presence=False)
        await send_json(send, call.status, document, _location(scope, call, answer))

    async def _parse(self, scope: Scope, receive: Receive) -> _Call:
        match = _ROUTE.fullmatch(scope["path"])
        job, _, action = (match[3] or "").removesuffix("/").partition("/") if match else ("", "", "")
        if match is None or action not in ("", "cancel") or (action and not job):
            raise NotFound(
                "PATH_NOT_FOUND", f"There is no {scope['path'][:200]}.", "Use …/jobs or …/jobs/JOB."
            )
        parent = f"workspaces/{match[1]}/endpoints/{match[2]}"
        name, verb = f"{parent}/jobs/{job}", scope["method"]
        if action:
            _check_method(verb, "POST")
            return _Call("CancelBatchJob", pb.CancelBatchJobRequest(name=name), pb.BatchJob)
        if job:
            _check_method(verb, "GET", "HEAD")
            return _Call("GetBatchJob", pb.GetBatchJobRequest(name=name), pb.BatchJob)
        _check_method(verb, "GET", "HEAD", "POST")
        if verb == "POST":
            body = await _body(scope, receive)
            return _Call("CreateBatchJob", _create(parent, match[1], body), pb.BatchJob, 201)
        return _Call("ListBatchJobs", _list(parent, scope), pb.ListBatchJobsResponse)

    async def _ask(self, scope: Scope, call: _Call) -> bytes:
        path = f"/{_SERVICE}/{call.method}"
        metadata = _metadata(scope)
        with self._translated(), traced(path, metadata) as onward:
            start = await self._backend.unary(path)
            running = start(call.request.SerializeToString(), metadata=onward, timeout=unary_timeout(None))
            try:
                answer: bytes = await running
                return answer
            finally:
                running.cancel()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if is_lost_connection(error):
                raise self._backend.unavailable(error.details() or "") from error
            raise from_rpc(error) from error


def _check_method(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise MethodNotAllowed(
            "METHOD_NOT_ALLOWED",
            f"This path does not take {method[:20]}.",
            f"Use {' or '.join(allowed)}.",
            {"allow": ", ".join(allowed)},
        )


def _metadata(scope: Scope) -> Metadata:
    kept = carried(scope["headers"])
    authorization = dict(kept).get("authorization", "")
    if authorization[: len(_ENDPOINT_KEY)].lower() == _ENDPOINT_KEY:
        raise Unauthenticated(
            "KEY_NOT_ACCEPTED",
            "The keys of an endpoint are for requests to it; jobs take a person's key.",
            "Show an API key or token of the platform.",
        )
    return [*kept, (METADATA_KEY, refusals.address_of(scope))]


async def _body(scope: Scope, receive: Receive) -> dict[str, Any]:
    counted = refusals.Counted(scope, receive, _MAX_BODY_BYTES)
    body, more = b"", True
    while more:
        message = await counted()
        body += message.get("body", b"")
        more = message.get("more_body", False) and message["type"] == "http.request"
        if len(body) > _MAX_BODY_BYTES:
            raise PayloadTooLarge(
                "PAYLOAD_TOO_LARGE",
                f"The body has more than {_MAX_BODY_BYTES:,} bytes.",
                "Send a smaller one.",
            )
    try:
        document = json.loads(body or b"{}")
        # Half a surrogate pair is JSON, and no text that a message can have.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _invalid(str(error)) from error
    if not isinstance(document, dict):
        raise _invalid("it is not an object")
    return document


def _create(parent: str, workspace: str, document: dict[str, Any]) -> pb.CreateBatchJobRequest:
    request = pb.CreateBatchJobRequest()
    try:
        json_format.ParseDict(document, request)
    except (json_format.ParseError, RecursionError) as error:
        raise _invalid(str(error)) from error
    request.parent = parent
    datasets = f"workspaces/{workspace}/datasets"
    if request.input and "/" not in request.input:
        dataset, _, version = request.input.partition(":")
        request.input = f"{datasets}/{dataset}/versions/{version or 'latest'}"
    if request.output_dataset and "/" not in request.output_dataset:
        request.output_dataset = f"{datasets}/{request.output_dataset}"
    return request


def _list(parent: str, scope: Scope) -> pb.ListBatchJobsRequest:
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))

    def value(*names: str) -> str:
        return next((query[name][-1] for name in names if name in query), "")

    size = value("page_size", "pageSize") or "0"
    if not size.isascii() or not size.isdigit() or len(size) > 4:
        raise InvalidArgument("INVALID_PAGE_SIZE", f"{size[:20]!r} is no page size.", "Use 1 to 1000.")
    token = value("page_token", "pageToken")
    return pb.ListBatchJobsRequest(parent=parent, page_size=int(size), page_token=token)


def _invalid(why: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_JSON",
        f"The body is no CreateBatchJobRequest in JSON: {why[:500]}",
        'Send for example {"input": "digits:3"}.',
    )


def _location(scope: Scope, call: _Call, answer: Any) -> list[Header]:
    if call.status != 201:
        return []
    return [(b"location", f"{scope['path'].rstrip('/')}/{answer.name.rpartition('/')[2]}".encode())]
