"""No text in any field of any RPC makes a service fail: it is refused, or not found, and nothing breaks."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

import stellwerk_protos

HOSTILE = {
    "nul": "workspaces/a\0b/runs/c",
    "newline": "workspaces/a\nb/runs/c",
    "long": "x" * 10_000,
    "traversal": "../../../../etc/passwd",
    "wildcards": "workspaces/*/runs/>",
    "operator": '{"$gt": ""}',
    "unicode": "workspaces/\u202eelpmaxe/runs/\U0001f4a9",
    "empty": "",
}
# What is no fault of the service.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
    # Not offered by the doors.
    grpc.StatusCode.UNIMPLEMENTED,
}
_STREAM_SECONDS = 1.0
_SECONDS = 60.0


def services() -> Iterator[ServiceDescriptor]:
    """Every service of every proto of the platform."""
    for module in pkgutil.walk_packages(stellwerk_protos.__path__, "stellwerk_protos."):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(module.name).DESCRIPTOR
            yield from descriptor.services_by_name.values()


def methods() -> list[MethodDescriptor]:
    """Every RPC that takes one request."""
    return [
        method
        for service in services()
        if service.full_name.startswith("stellwerk.")
        for method in service.methods
        if not method.client_streaming
    ]


def fill(message: Message, text: str, depth: int = 0) -> None:
    """Puts the text into every text field, one element into every list."""
    for field in message.DESCRIPTOR.fields:
        entry = field.message_type
        if field.type == FieldDescriptor.TYPE_STRING:
            value: Any = [text] if field.is_repeated else text
            message.MergeFrom(type(message)(**{field.name: value}))
        elif entry is not None and entry.GetOptions().map_entry:
            if entry.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                getattr(message, field.name)[text] = text
        elif entry is not None and entry.full_name.startswith("stellwerk.") and depth < 3:
            child = getattr(message, field.name)
            fill(child.add() if field.is_repeated else child, text, depth + 1)


async def outcome(channel: grpc.aio.Channel, method: MethodDescriptor, request: Message, key: str) -> Any:
    """The status code, or None for an answer."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answer = message_factory.GetMessageClass(method.output_type)
    metadata = (("authorization", f"Bearer {key}"),)
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path, type(request).SerializeToString, answer.FromString)
            call = stream(request, metadata=metadata, timeout=_STREAM_SECONDS)
            await call.read()
            call.cancel()
        else:
            unary = channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
            await unary(request, metadata=metadata, timeout=_SECONDS)
    except grpc.aio.AioRpcError as error:
        # A stream that waits for what may come is well.
        quiet = method.server_streaming and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return None if quiet else error
    return None


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_no_text_makes_a_service_fail(stack: dict[str, Any], owner_key: str, text: str) -> None:
    failures = []
    async with grpc.aio.insecure_channel(stack["grpc_address"]) as channel:
        for method in methods():
            request = message_factory.GetMessageClass(method.input_type)()
            fill(request, text)
            error = await outcome(channel, method, request, owner_key)
            if error is not None and error.code() not in REFUSALS:
                failures.append(f"{method.full_name}: {error.code().name}: {error.details()[:200]}")
    assert not failures, "\n".join(failures)
