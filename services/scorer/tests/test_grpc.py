"""Scoring over gRPC: every datatype typed and raw, health, reflection, errors, traces."""

from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from services.scorer.tests.support import Keys, Scorer, StartScorer
from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as pb
from stellwerk_protos.open_inference import grpc_predict_v2_pb2_grpc as pb_grpc

# Gives back what it got, as an array of the type that the second input names.
ECHO = """
    import json
    import numpy as np

    def init():
        pass

    def run(raw):
        request = json.loads(raw)
        if "data" in request:
            return request["data"]
        return {"y": np.array(request["x"], request["dtype"][0])}
"""
# datatype -> its typed field, numpy's name, some values
TYPES: dict[str, tuple[str, str, list[Any]]] = {
    "BOOL": ("bool_contents", "bool", [True, False]),
    "INT8": ("int_contents", "int8", [-128, 127]),
    "INT16": ("int_contents", "int16", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", "int32", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", "int64", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", "uint8", [0, 255]),
    "UINT16": ("uint_contents", "uint16", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", "uint32", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", "uint64", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", "float32", [0.5, -2.0]),
    "FP64": ("fp64_contents", "float64", [0.1, float("inf")]),
    "BYTES": ("bytes_contents", "str", [b"a", "é".encode()]),
}


async def infer(running: Scorer, request: pb.ModelInferRequest, **options: Any) -> pb.ModelInferResponse:
    options.setdefault("metadata", running.metadata)
    async with running.channel() as channel:
        response: pb.ModelInferResponse = await pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
            request, timeout=options.pop("timeout", 100), **options
        )
        return response


def request_of(datatype: str, shape: list[int], **contents: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits", id="7")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    return request


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status code and reason of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code(), info.reason


async def test_every_datatype_typed_and_raw(scorer: StartScorer) -> None:
    async with scorer(ECHO) as running:
        await running.ready()
        for datatype, (field, dtype, values) in TYPES.items():
            request = request_of(datatype, [2, 1], **{field: values})
            request.inputs.add(name="dtype", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
                dtype.encode()
            )
            response = await infer(running, request)
            (output,) = response.outputs
            assert (response.model_name, response.model_version, response.id) == ("digits", "3", "7")
            assert (output.name, output.datatype, list(output.shape)) == ("y", datatype, [2, 1])
            assert list(getattr(output.contents, field)) == values
            assert not response.raw_output_contents
        for datatype, (_field, dtype, values) in {**TYPES, "FP16": ("", "float16", [0.5, -2.0])}.items():
            request = request_of(datatype, [2, 1])
            request.inputs.add(name="dtype", datatype="BYTES", shape=[1])
            raw = _raw_bytes(values) if datatype == "BYTES" else np.array(values, dtype).tobytes()
            request.raw_input_contents.extend([raw, _raw_bytes([dtype.encode()])])
            response = await infer(running, request)
            assert response.outputs[0].datatype == datatype
            assert list(response.raw_output_contents) == [raw]


def _raw_bytes(values: list[bytes]) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


async def test_one_input_reaches_the_script_as_data(scorer: StartScorer) -> None:
    async with scorer(ECHO) as running:
        await running.ready()
        response = await infer(running, request_of("FP32", [1, 2], fp32_contents=[1, 2]))
        assert list(response.outputs[0].contents.fp64_contents) == [1.0, 2.0]
        assert response.outputs[0].name == "output-0"


async def test_bad_requests(scorer: StartScorer) -> None:
    both = request_of("INT32", [1], int_contents=[1])
    both.raw_input_contents.append(b"\1\0\0\0")
    too_few = request_of("INT32", [1])
    too_few.raw_input_contents.extend([b"", b""])
    unknown = request_of("INT32", [1], int_contents=[1])
    unknown.model_name = "letters"
    cases = [
        (pb.ModelInferRequest(model_name="digits"), "INPUTS_MISSING"),
        (request_of("INT32", [2], int_contents=[1]), "INVALID_TENSOR"),
        (request_of("INT32", [1], fp32_contents=[1]), "INVALID_TENSOR"),
        (request_of("INT8", [1], int_contents=[300]), "INVALID_TENSOR"),
        (request_of("FP16", [1], fp32_contents=[1]), "INVALID_TENSOR"),
        (request_of("INT32", [-1], int_contents=[1]), "INVALID_TENSOR"),
        (request_of("BYTES", [1], bytes_contents=[b"\xff"]), "INVALID_TENSOR"),
        (both, "INVALID_REQUEST"),
        (too_few, "INVALID_REQUEST"),
    ]
    async with scorer(ECHO) as running:
        await running.ready()
        for request, reason in cases:
            found = await failure(infer(running, request))
            assert found == (grpc.StatusCode.INVALID_ARGUMENT, reason), request
        assert await failure(infer(running, unknown)) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_nothing_but_health_is_open(scorer: StartScorer, keys: Keys) -> None:
    request = request_of("INT32", [1], int_contents=[1])
    async with scorer(ECHO) as running, running.channel() as channel:
        await running.ready()
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        name = pb.ModelReadyRequest(name="digits")
        closed = (
            stub.ModelInfer(request),
            stub.ModelReady(name),
            stub.ModelMetadata(pb.ModelMetadataRequest(name="digits")),
            stub.ServerMetadata(pb.ServerMetadataRequest()),
        )
        for call in closed:
            assert await failure(call) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING")
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        # Not by a read: the client may have seen the stream's end before it writes or reads.
        assert await listing.code() is grpc.StatusCode.UNAUTHENTICATED
        workload = (("authorization", f"Bearer {keys.token('Workload')}"),)
        refused = await failure(stub.ModelReady(name, metadata=workload))
        assert refused == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


async def test_metadata_and_reflection(scorer: StartScorer) -> None:
    async with scorer(ECHO) as running, running.channel() as channel:
        await running.ready()
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        server = await stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=running.metadata)
        assert (server.name, server.version) == ("stellwerk", "0.1.0")
        model = await stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"), metadata=running.metadata)
        assert (model.name, list(model.versions)) == ("digits", ["3"])
        ready = await stub.ModelReady(pb.ModelReadyRequest(name="digits"), metadata=running.metadata)
        assert ready.ready
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=running.metadata
        )
        answer = await listing.read()
        names = {service.name for service in answer.list_services_response.service}
        assert names >= {"inference.GRPCInferenceService", "grpc.health.v1.Health"}


async def test_what_the_script_does_wrong(scorer: StartScorer) -> None:
    script = """
        import json, os, time

        def init():
            pass

        def run(raw):
            data = json.loads(raw)["data"][0]
            if data == 0:
                os._exit(1)
            if data == 1:
                raise ValueError("not that")
            if data == 2:
                return {"a": {"b": 1}}
            while True:
                time.sleep(60)
    """
    cases = [
        (0, grpc.StatusCode.UNAVAILABLE, "WORKER_DIED"),
        (1, grpc.StatusCode.INTERNAL, "SCRIPT_ERROR"),
        (2, grpc.StatusCode.INTERNAL, "RESULT_NOT_TENSOR"),
        (3, grpc.StatusCode.DEADLINE_EXCEEDED, "SCORING_TIMEOUT"),
    ]
    async with scorer(script, SCORING_TIMEOUT_MS="2000") as running:
        for value, code, reason in cases:
            await running.ready()
            request = request_of("INT32", [1], int_contents=[value])
            assert await failure(infer(running, request)) == (code, reason)


async def test_a_caller_who_leaves_does_not_block_the_next(scorer: StartScorer) -> None:
    script = """
        import json, time

        def init():
            pass

        def run(raw):
            if json.loads(raw)["data"] == [1]:
                print("slow begins")
                while True:
                    time.sleep(60)
            return [1.5]
    """
    async with scorer(script) as running:
        await running.ready()
        slow = request_of("INT32", [1], int_contents=[1])
        for seconds in (1, 5, 30):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(running, slow, timeout=seconds)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # On a slow machine its time may be over before it has begun.
            if "slow begins" in running.log:
                break
        response = await infer(running, request_of("INT32", [1], int_contents=[2]))
        assert list(response.outputs[0].contents.fp64_contents) == [1.5]
