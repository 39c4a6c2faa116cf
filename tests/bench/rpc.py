"""What the platform's interceptors cost a call: token, permission, span, error translation."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from stellwerk_protos.secrets.v1 import tokens_pb2, tokens_pb2_grpc
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

ROUNDS = 5
SECONDS = 2.0
CALLERS = 16


@contextmanager
def server(kind: str) -> Iterator[tuple[str, str]]:
    """A server process; yields its address and the token that it accepts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.rpc_server", kind], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port, token = process.stdout.readline().split()
        yield f"127.0.0.1:{port}", token
    finally:
        process.kill()
        process.wait()


async def rate(address: str, token: str) -> float:
    """Requests per second of 16 callers on one channel."""
    async with grpc.aio.insecure_channel(address) as channel:
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
            ours.append(await rate(*full))
            theirs.append(await rate(*bare))
    return Measurement(statistics.median(ours), ROUNDS, statistics.median(theirs))
