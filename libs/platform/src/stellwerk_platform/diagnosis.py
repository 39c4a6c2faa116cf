"""Whether what a service stands on works, tried with real operations: `stellwerk doctor`.

Every service offers it: `App` holds a `Diagnosis`, whoever opens a part adds how it is tried,
and `App.serve` registers the RPC.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from stellwerk_platform.documents import now
from stellwerk_platform.errors import FailedPrecondition, PlatformError, Unavailable, as_platform_error
from stellwerk_protos.platform.v1 import platform_pb2 as pb
from stellwerk_protos.platform.v1 import platform_pb2_grpc

_PROBE_SECONDS = 5.0
_CAUSE_CHARACTERS = 500

Probe = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Part:
    """How one part is tried: `probe` raises what is wrong, `cure` helps where the error names none."""

    name: str
    operation: str
    probe: Probe
    cure: str


class Diagnosis(platform_pb2_grpc.DiagnosisServiceServicer):
    """The parts of one service."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._parts: list[Part] = []
        # Several people who ask at once get one probe after the other.
        self._lock = asyncio.Lock()

    def add(self, name: str, operation: str, probe: Probe, cure: str) -> None:
        """Has a part tried: `operation` says in plain words what is done."""
        self._parts.append(Part(name, operation, probe, cure))

    async def checks(self) -> list[pb.Check]:
        """All parts, tried at the same time; each has five seconds."""
        async with self._lock:
            return list(await asyncio.gather(*(self._check(part) for part in self._parts)))

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Any) -> pb.DiagnoseResponse:
        return pb.DiagnoseResponse(checks=await self.checks())

    async def _check(self, part: Part) -> pb.Check:
        check = pb.Check(service=self._service, part=part.name, operation=part.operation, time=now())
        began = time.perf_counter()
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await part.probe()
            check.ok = True
        except TimeoutError:
            late = f"There was no answer within {_PROBE_SECONDS:.0f} seconds."
            fail(check, Unavailable(f"{part.name.upper()}_SILENT", late, part.cure))
        except Exception as error:
            known = as_platform_error(error) or PlatformError(
                f"{part.name.upper()}_FAILED", f"{type(error).__name__}: {error}"
            )
            fail(check, known, part.cure)
        check.duration_us = round((time.perf_counter() - began) * 1e6)
        return check


def fail(check: pb.Check, error: PlatformError, cure: str = "") -> None:
    """Writes into a check what is wrong, and what to do about it."""
    check.ok = False
    check.reason, check.cause = error.reason, error.message[:_CAUSE_CHARACTERS]
    # What a probe has found out by itself it knows how to cure; other errors speak to callers of RPCs.
    found_out = isinstance(error, FailedPrecondition) and error.cure
    check.cure = error.cure if found_out or not cure else cure
