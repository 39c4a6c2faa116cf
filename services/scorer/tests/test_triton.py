"""A client that others wrote: `tritonclient` over HTTP and gRPC, in an environment of its own,
for it asks for an older protobuf than ours."""

import asyncio
from pathlib import Path

from services.scorer.tests.environments import python_with
from services.scorer.tests.support import StartScorer

SCRIPT = """
    import json
    import numpy as np

    def init():
        pass

    def run(raw):
        rows = np.asarray(json.loads(raw)["data"])
        if rows.dtype.kind == "U":
            return {"y": [text + text for text in rows.ravel().tolist()]}
        return {"y": rows if rows.dtype.kind == "b" else rows * 2, "kind": [rows.dtype.kind]}
"""


async def test_tritonclient(scorer: StartScorer) -> None:
    python = await python_with("tritonclient[http,grpc]==2.63.0", "numpy>=2")
    async with scorer(SCRIPT) as running:
        await running.ready()
        client = await asyncio.create_subprocess_exec(
            python,
            str(Path(__file__).with_name("triton_client.py")),
            running.http_address,
            running.grpc_address,
            running.token,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await client.communicate()
        assert client.returncode == 0, output.decode()
