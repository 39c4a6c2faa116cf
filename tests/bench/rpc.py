"""What the platform's interceptors cost a call (token, permission, span, errors), and the check alone."""

import asyncio
import base64
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import psutil

from stellwerk_platform.grpc_client import open_channel
from stellwerk_platform.identity import Identity
from stellwerk_protos.registry.v1 import workspaces_pb2, workspaces_pb2_grpc
from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc
from tests.bench import certificates
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

ROUNDS = 5
SECONDS = 2.0
CALLERS = 16
CALLS = 4_000


@contextmanager
def server(kind: str, identity: Identity | None = None) -> Iterator[tuple[str, str, str]]:
    """A server process; yields its address, the token that it accepts, and its process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.rpc_server", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        if identity is not None:
            own = identity.certificate
            parts = (base64.b64encode(part).decode() for part in (own.chain, own.key, own.authorities))
            process.stdin.write(" ".join(parts) + "\n")
            process.stdin.flush()
        port, token = process.stdout.readline().split()
        yield f"127.0.0.1:{port}", token, str(process.pid)
    finally:
        process.kill()
        process.wait()


async def rate(address: str, token: str, identity: Identity | None = None) -> float:
    """Requests per second of 16 callers on one channel."""
    async with open_channel(address, identity=identity, service="secrets") as channel:
        stub = tokens_pb2_grpc.TokenServiceStub(channel)
        metadata = (("authorization", f"Bearer {token}"),)
        request = tokens_pb2.GetCallerRequest()
        await stub.GetCaller(request, metadata=metadata, wait_for_ready=True)
        end = time.perf_counter() + SECONDS

        async def caller() -> int:
            calls = 0
            while time.perf_counter() < end:
                await stub.GetCaller(request, metadata=metadata)
                calls += 1
            return calls

        return sum(await asyncio.gather(*(caller() for _ in range(CALLERS)))) / SECONDS


@benchmark("rpc.unary", unit="requests/s", better="higher", peer="bare grpc.aio server")
async def unary(resources: Resources) -> Measurement:
    """The thinnest RPC through all interceptors, in turns with the same RPC without any."""
    ours, theirs = [], []
    with server("full") as full, server("bare") as bare:
        for _ in range(ROUNDS):
            ours.append(await rate(*full[:2]))
            theirs.append(await rate(*bare[:2]))
    return Measurement(statistics.median(ours), ROUNDS, statistics.median(theirs))


async def cpu_microseconds(address: str, token: str, pid: str) -> float:
    """The server's for one call: unlike the time that passes, others on the machine add nothing to it."""
    server_process = psutil.Process(int(pid))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = workspaces_pb2_grpc.WorkspaceServiceStub(channel)
        metadata = (("authorization", f"Bearer {token}"),)
        request = workspaces_pb2.GetWorkspaceRequest(name="workspaces/bench")
        await stub.GetWorkspace(request, metadata=metadata, wait_for_ready=True)
        before = sum(server_process.cpu_times()[:2])
        for _ in range(CALLS // CALLERS):
            await asyncio.gather(*(stub.GetWorkspace(request, metadata=metadata) for _ in range(CALLERS)))
        return (sum(server_process.cpu_times()[:2]) - before) / CALLS * 1e6


@benchmark("auth.check", unit="us of CPU", better="lower", peer="the same call without the check")
async def check(resources: Resources) -> Measurement:
    """A call with token, revocations and role in the workspace, in turns with the same one for everybody.

    The difference of the two is what the check costs; it must stay below 200 microseconds.
    """
    ours, theirs = [], []
    with server("checked") as checked, server("unchecked") as unchecked:
        for _ in range(ROUNDS):
            ours.append(await cpu_microseconds(*checked))
            theirs.append(await cpu_microseconds(*unchecked))
    return Measurement(statistics.median(ours), ROUNDS, statistics.median(theirs))


@benchmark("rpc.tls", unit="requests/s", better="higher", peer="the same in clear")
async def tls(resources: Resources) -> Measurement:
    """The thinnest RPC through all interceptors over mutual TLS, in turns with the same without."""
    ours, theirs = [], []
    identity = certificates.identity("secrets")
    with server("tls", identity) as encrypted, server("full") as clear:
        for _ in range(ROUNDS):
            ours.append(await rate(*encrypted[:2], identity))
            theirs.append(await rate(*clear[:2]))
    return Measurement(statistics.median(ours), ROUNDS, statistics.median(theirs))
