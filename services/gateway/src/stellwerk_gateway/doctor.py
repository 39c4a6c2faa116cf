"""The gateway's DiagnosisService: it asks every service, and tells of itself."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from typing import Any

import grpc

from stellwerk_gateway import refusals
from stellwerk_gateway.backends import Backend, Backends
from stellwerk_platform.access import Guard
from stellwerk_platform.addresses import address_of_peer
from stellwerk_platform.auth import CallerCredentials, bearer, set_caller
from stellwerk_platform.diagnosis import Diagnosis, fail
from stellwerk_platform.documents import now
from stellwerk_platform.errors import DeadlineExceeded, PlatformError, Unavailable, from_rpc
from stellwerk_platform.grpc_server import abort
from stellwerk_protos.platform.v1 import platform_pb2 as pb

SERVICE: str = pb.DESCRIPTOR.services_by_name["DiagnosisService"].full_name
_METHOD = f"/{SERVICE}/Diagnose"
_PERMISSION = "platform.diagnose"
# A service gives each of its parts five.
_SECONDS = 8.0
_REMEMBERED_SECONDS, _REMEMBERED = 3_600.0, 100


class Doctor:
    """Asks all services at the same time."""

    def __init__(
        self,
        backends: Backends,
        names: list[str],
        own: Diagnosis,
        guard: Guard,
        credentials: CallerCredentials,
    ) -> None:
        self._backends = backends
        self._names = names
        self._own = own
        self._guard = guard
        self._credentials = credentials
        # By digest of the key, when an administrator asked last.
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def handler(self) -> grpc.GenericRpcHandler:
        """What the gRPC door answers with."""
        method = grpc.unary_unary_rpc_method_handler(
            self._diagnose, pb.DiagnoseRequest.FromString, pb.DiagnoseResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Diagnose": method})

    async def _diagnose(self, request: pb.DiagnoseRequest, context: Any) -> Any:
        try:
            await self._admit(context.invocation_metadata())
            own, *others = await asyncio.gather(
                self._own.checks(), *(self._ask(self._backends[name]) for name in self._names)
            )
            return pb.DiagnoseResponse(checks=[check for checks in (own, *others) for check in checks])
        except PlatformError as error:
            refusals.report(_METHOD[1:], error, address_of_peer(context.peer()))
            await abort(context, error)

    async def _admit(self, metadata: Any) -> None:
        """Raises unless an administrator asks.

        While keys cannot be checked, who asked within the last hour may ask again: that is when a
        doctor is needed most.
        """
        digest = hashlib.sha256(bearer(metadata).encode()).digest()
        try:
            caller = await self._guard.authenticate(metadata)
        except Unavailable:
            if self._seen.get(digest, 0.0) > time.monotonic() - _REMEMBERED_SECONDS:
                return
            raise
        set_caller(caller)
        await self._guard.require(caller, _PERMISSION, "")
        self._seen[digest] = time.monotonic()
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    async def _ask(self, backend: Backend) -> list[pb.Check]:
        """The checks of a service, and that it answers."""
        check = pb.Check(service=backend.name, part="service", operation="ask the service", time=now())
        began, found = time.perf_counter(), pb.DiagnoseResponse()
        try:
            authorization = f"Bearer {await self._credentials.token()}"
            call = (await backend.unary(_METHOD))(
                b"", metadata=(("authorization", authorization),), timeout=_SECONDS
            )
            found = pb.DiagnoseResponse.FromString(await call)
            check.ok = True
        except grpc.aio.AioRpcError as error:
            fail(check, _silent(error), _cure(backend.name))
        except PlatformError as error:
            fail(check, error, _cure(backend.name))
        check.duration_us = round((time.perf_counter() - began) * 1e6)
        return [check, *found.checks]


def _silent(error: grpc.aio.AioRpcError) -> PlatformError:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("SERVICE_SILENT", f"There was no answer within {_SECONDS:.0f} seconds.")
    return from_rpc(error)


def _cure(service: str) -> str:
    return f"See why it does not answer: `stellwerk status`, `stellwerk logs {service}`."
