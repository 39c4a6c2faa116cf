"""Batch jobs over plain HTTP: what of a request reaches the service, and what comes back."""

import io
from typing import Any

import aiohttp
import grpc
import pytest

from services.gateway.tests.backend import EchoBackend
from stellwerk_platform.errors import NotFound
from stellwerk_platform.grpc_server import abort
from stellwerk_protos.inference.v1 import batches_pb2 as pb

JOBS = "/endpoints/demo/digits/jobs"
PARENT = "workspaces/demo/endpoints/digits"


@pytest.fixture
def asked(backend: EchoBackend) -> list[Any]:
    """What the service was asked; it knows one job."""
    seen: list[Any] = []

    def method(request_type: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            message = request_type.FromString(request)
            seen.append(message)
            if isinstance(message, pb.ListBatchJobsRequest):
                return pb.ListBatchJobsResponse(next_page_token="more").SerializeToString()
            name = getattr(message, "name", "") or f"{message.parent}/jobs/first"
            if not name.endswith("/first"):
                await abort(context, NotFound("BATCH_JOB_NOT_FOUND", f"There is no {name}.", "List them."))
            return pb.BatchJob(name=name, state=pb.BATCH_JOB_STATE_QUEUED).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)

    for kind in ("CreateBatchJob", "GetBatchJob", "ListBatchJobs", "CancelBatchJob"):
        backend._methods[kind] = method(getattr(pb, f"{kind}Request"))
    return seen


async def test_short_names_become_resource_names(
    web: aiohttp.ClientSession, backend: EchoBackend, asked: list[Any]
) -> None:
    body = {
        "input": "digits:3",
        "output_dataset": "mine",
        "jobId": "first",
        "settings": {"miniBatchSize": 5, "errorThreshold": 0},
        "parent": "workspaces/other/endpoints/x",
    }
    headers = {"authorization": "Bearer swk_owner"}
    async with web.post(JOBS, json=body, headers=headers) as answer:
        assert (answer.status, answer.headers["location"]) == (201, f"{JOBS}/first")
        document = await answer.json()
        assert document == {"name": f"{PARENT}/jobs/first", "state": "BATCH_JOB_STATE_QUEUED"}
    assert backend.metadata["authorization"] == "Bearer swk_owner"
    (request,) = asked
    assert (request.parent, request.job_id) == (PARENT, "first")
    assert request.input == "workspaces/demo/datasets/digits/versions/3"
    assert request.output_dataset == "workspaces/demo/datasets/mine"
    assert request.settings.HasField("error_threshold")
    full = {"input": "workspaces/demo/datasets/digits/versions/latest"}
    async with web.post(JOBS, json=full):
        assert asked[-1].input == full["input"]


async def test_jobs_are_read_listed_and_canceled(web: aiohttp.ClientSession, asked: list[Any]) -> None:
    async with web.get(f"{JOBS}/first") as answer:
        assert (answer.status, (await answer.json())["name"]) == (200, f"{PARENT}/jobs/first")
    async with web.get(f"{JOBS}?page_size=2&pageToken=abc") as answer:
        assert await answer.json() == {"nextPageToken": "more"}
    assert (asked[-1].page_size, asked[-1].page_token) == (2, "abc")
    async with web.post(f"{JOBS}/first/cancel") as answer:
        assert answer.status == 200
    assert isinstance(asked[-1], pb.CancelBatchJobRequest)
    async with web.get(f"{JOBS}/none%3Fx") as answer:
        assert (answer.status, (await answer.json())["reason"]) == (404, "BATCH_JOB_NOT_FOUND")
    assert asked[-1].name == f"{PARENT}/jobs/none?x", "a question mark in the name of a job is no query"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("POST", JOBS, b"no json", 400, "INVALID_JSON"),
        ("POST", JOBS, b"[]", 400, "INVALID_JSON"),
        ("POST", JOBS, b'{"inputs": "x"}', 400, "INVALID_JSON"),
        ("POST", JOBS, b"[" * 100_000, 400, "INVALID_JSON"),
        ("POST", JOBS, rb'{"settings": "\ud800"}', 400, "INVALID_JSON"),
        ("POST", JOBS, b" " * 1_100_000, 413, "PAYLOAD_TOO_LARGE"),
        ("GET", f"{JOBS}?page_size=many", b"", 400, "INVALID_PAGE_SIZE"),
        ("DELETE", f"{JOBS}/first", b"", 405, "METHOD_NOT_ALLOWED"),
        ("GET", f"{JOBS}/first/cancel", b"", 405, "METHOD_NOT_ALLOWED"),
        ("POST", f"{JOBS}/first/start", b"", 404, "PATH_NOT_FOUND"),
        ("POST", f"{JOBS}/first/cancel/twice", b"", 404, "PATH_NOT_FOUND"),
        ("POST", f"{JOBS}//cancel", b"", 404, "PATH_NOT_FOUND"),
    ],
)
async def test_what_cannot_be_is_refused(
    web: aiohttp.ClientSession,
    asked: list[Any],
    method: str,
    path: str,
    body: bytes,
    status: int,
    reason: str,
) -> None:
    async with web.request(method, path, data=io.BytesIO(body)) as answer:
        document = await answer.json()
        assert (answer.status, document["reason"]) == (status, reason)
        assert document["cure"]
    assert not asked


async def test_headers_that_cannot_go_on_are_refused_or_left_out(
    web: aiohttp.ClientSession, backend: EchoBackend, asked: list[Any]
) -> None:
    async with web.get(JOBS, headers={"authorization": "Bearer \u00e9"}) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (400, "INVALID_HEADER")
    assert not asked
    odd = {"traceparent": "\u00e9", "tracestate": "\u00e9", "x-request-id": "\u00e9"}
    async with web.get(JOBS, headers=odd) as answer:
        assert answer.status == 200
    assert len(backend.metadata["x-request-id"]) == 32


async def test_a_key_of_the_endpoint_starts_no_jobs(web: aiohttp.ClientSession, asked: list[Any]) -> None:
    headers = {"authorization": "Bearer swe_0123456789"}
    async with web.post(JOBS, json={"input": "digits"}, headers=headers) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (401, "KEY_NOT_ACCEPTED")
    assert not asked
