"""A client that others wrote: `tritonclient` over HTTP and gRPC.

It is no dependency of ours, for it asks for an older protobuf. To run this test:
`uv venv triton && uv pip install -p triton/bin/python "tritonclient[http,grpc]"`,
then set STELLWERK_TEST_TRITON_PYTHON to that interpreter.
"""

import asyncio
import os
from pathlib import Path

import pytest

from services.scorer.tests.support import StartScorer

PYTHON = os.environ.get("STELLWERK_TEST_TRITON_PYTHON", "")
SCRIPT = """
    import json
    import numpy as np

    def init():
        pass

    def run(raw):
        rows = np.asarray(json.loads(raw)["data"])
        return {"y": rows * 2}
"""


@pytest.mark.skipif(not PYTHON, reason="STELLWERK_TEST_TRITON_PYTHON names no interpreter with tritonclient")
async def test_tritonclient(scorer: StartScorer) -> None:
    async with scorer(SCRIPT) as running:
        await running.ready()
        client = await asyncio.create_subprocess_exec(
            PYTHON,
            str(Path(__file__).with_name("triton_client.py")),
            running.http_address,
            running.grpc_address,
            running.token,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await client.communicate()
        assert client.returncode == 0, output.decode()
