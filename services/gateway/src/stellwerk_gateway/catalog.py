"""Which gRPC services the doors lead to: everything that `stellwerk_protos` describes.

A method that is newer than the descriptors is forwarded as well, for only its package
decides where it goes.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

import stellwerk_protos
from stellwerk_protos.open_inference import grpc_predict_v2_pb2

BACKENDS = ("registry", "runs", "compute", "secrets", "inference", "telemetry")
SCORING_SERVICE: str = grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
# /inference.GRPCInferenceService/ModelInfer and its like.
SCORING_METHODS = frozenset(
    f"/{SCORING_SERVICE}/{method.name}"
    for method in grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
)
COLLECTOR_PREFIX = "opentelemetry.proto.collector."
_COLLECTORS = (trace_service_pb2, metrics_service_pb2, logs_service_pb2)


def backend_of(method: str) -> str | None:
    """The backend that answers `/package.Service/Method`; None for a method that is not forwarded."""
    package = method.removeprefix("/").split("/", 1)[0].rpartition(".")[0]
    if package.startswith(COLLECTOR_PREFIX):
        return "telemetry"
    prefix, _, rest = package.partition(".")
    name, _, version = rest.partition(".")
    return name if prefix == "stellwerk" and name in BACKENDS and version == "v1" else None


def services() -> list[ServiceDescriptor]:
    """The platform's services, by name."""
    return sorted(
        (
            service
            for backend in BACKENDS
            for file in _files(backend)
            for service in file.services_by_name.values()
        ),
        key=lambda service: str(service.full_name),
    )


def reflected() -> list[str]:
    """Full names of all services behind the gRPC door."""
    collectors = [s.full_name for module in _COLLECTORS for s in module.DESCRIPTOR.services_by_name.values()]
    return [*(service.full_name for service in services()), *collectors, SCORING_SERVICE]


@dataclass(frozen=True)
class Method:
    """A method of the platform, with the message types that JSON is translated by."""

    path: str
    backend: str
    service: str
    name: str
    request: type[Message]
    response: type[Message]
    streams_requests: bool
    streams_responses: bool


def methods() -> Iterator[Method]:
    """All methods of the platform's services."""
    for service in services():
        for method in service.methods:
            yield _method(service, method)


def _method(service: ServiceDescriptor, method: MethodDescriptor) -> Method:
    path = f"/{service.full_name}/{method.name}"
    return Method(
        path=path,
        backend=backend_of(path) or "",
        service=service.full_name,
        name=method.name,
        request=message_factory.GetMessageClass(method.input_type),
        response=message_factory.GetMessageClass(method.output_type),
        streams_requests=bool(method.client_streaming),
        streams_responses=bool(method.server_streaming),
    )


def _files(backend: str) -> Iterator[FileDescriptor]:
    """The descriptors of all generated modules of one backend."""
    package = importlib.import_module(f"{stellwerk_protos.__name__}.{backend}.v1")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_pb2"):
            yield importlib.import_module(f"{package.__name__}.{module.name}").DESCRIPTOR
