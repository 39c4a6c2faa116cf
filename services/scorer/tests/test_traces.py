"""Spans of the scorer continue the caller's trace; a collector of the test takes them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.scorer.tests.support import StartScorer
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as pb_grpc

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SCRIPT = "def init():\n    pass\ndef run(raw):\n    return [1]\n"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it gets, and the keys that were shown."""

    def __init__(self) -> None:
        self.spans: asyncio.Queue[Any] = asyncio.Queue()
        self.keys: set[str] = set()
        self.address = ""

    async def Export(self, request: Any, context: Any) -> Any:
        """Takes a batch."""
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put_nowait(span)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """A listening collector."""
    service = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    service.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield service
    await server.stop(None)


async def test_the_callers_trace_goes_on(scorer: StartScorer, collector: Collector) -> None:
    traceparent = f"00-{TRACE_ID}-{PARENT}-01"
    export = {"STELLWERK_OTLP_ENDPOINT": collector.address, "STELLWERK_OTLP_KEY": "swk_key"}
    async with scorer(SCRIPT, **export) as running, (await running.ready()).http() as http:
        await http.get("/v2/health/ready", headers={"traceparent": traceparent})
        await http.post("/score", content="1", headers={"traceparent": traceparent, "x-request-id": "abc"})
        request = pb.ModelInferRequest(model_name="digits")
        request.inputs.add(name="x", datatype="INT64", shape=[1]).contents.int64_contents.append(1)
        async with running.channel() as channel:
            metadata = (*running.metadata, ("traceparent", traceparent))
            await pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=metadata)
        found: dict[str, Any] = {}
        # Key checks are spans of their own, below those two.
        while len(found) < 2:
            span = await asyncio.wait_for(collector.spans.get(), 60)
            if span.parent_span_id.hex() == PARENT:
                found[span.name] = span
    assert set(found) == {"POST /score", "inference.GRPCInferenceService/ModelInfer"}
    assert {span.trace_id.hex() for span in found.values()} == {TRACE_ID}
    attributes = {item.key: item.value for item in found["POST /score"].attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["request.id"].string_value == "abc"
    assert collector.keys == {"Bearer swk_key"}
