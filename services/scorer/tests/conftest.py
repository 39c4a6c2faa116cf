"""A real scorer process for each script that a test writes."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import grpc
import pytest

from services.scorer.tests.support import Keys, Scorer, StartScorer
from stellwerk_protos.secrets.v1 import tokens_pb2_grpc


@pytest.fixture(scope="session")
async def keys() -> AsyncIterator[Keys]:
    """Tokens, and where their key is published."""
    service = Keys()
    server = grpc.aio.server()
    tokens_pb2_grpc.add_TokenServiceServicer_to_server(service, server)
    service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield service
    await server.stop(None)


@pytest.fixture
def scorer(keys: Keys, tmp_path: Path) -> StartScorer:
    """Starts a scorer with a script given as text; ends it with the block."""

    @asynccontextmanager
    async def start(script: str, python: str = sys.executable, **environment: str) -> AsyncIterator[Scorer]:
        path = tmp_path / "score.py"
        path.write_text(dedent(script))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "stellwerk_scorer",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("STELLWERK_")},
                "STELLWERK_SCORER_HTTP_LISTEN": "127.0.0.1:0",
                "STELLWERK_SCORER_GRPC_LISTEN": "127.0.0.1:0",
                "STELLWERK_SCORER_PYTHON": python,
                "STELLWERK_SCORER_SCRIPT": str(path),
                "STELLWERK_SCORER_MODEL_NAME": "digits",
                "STELLWERK_SCORER_MODEL_VERSION": "3",
                "STELLWERK_SECRETS_ADDRESS": keys.address,
                **environment,
            },
        )
        running = Scorer(process, keys.token())
        running.reader = asyncio.create_task(running.read())
        running.reader.add_done_callback(lambda _task: asyncio.create_task(_wake(running.changed)))
        try:
            listening = await running.line("listening on")
            _, http, grpc_address = listening.rsplit(" ", 2)
            running.http_address = http.removeprefix("http=")
            running.grpc_address = grpc_address.removeprefix("grpc=")
            yield running
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await running.reader

    return start


async def _wake(condition: asyncio.Condition) -> None:
    async with condition:
        condition.notify_all()
