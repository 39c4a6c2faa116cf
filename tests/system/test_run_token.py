"""The token of a run ends with the run, also for who has kept a copy of it."""

import asyncio
from pathlib import Path

import grpc

from stellwerk import Workspace
from stellwerk_platform.errors import PlatformError, Unauthenticated, from_rpc
from stellwerk_protos.runs.v1 import runs_pb2, runs_pb2_grpc
from tests.system.support import Cli

WORKSPACE = "runtokens"
SCRIPT = """
import os, pathlib, shutil
import stellwerk

run = stellwerk.current_run()
try:
    run.secret("not-named")
except stellwerk.StellwerkError as error:
    print("while it runs:", error.reason)
shutil.copy(os.environ["STELLWERK_TOKEN_FILE"], run.outputs / "token")
"""
_PATIENCE_SECONDS = 60


def test_a_copy_of_the_token_is_worth_nothing_after_the_end(
    cli: Cli, workspace: Workspace, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "steal.py").write_text(SCRIPT)
    run = workspace.runs.submit("python steal.py", code=code).wait()
    assert run.state == "Completed", "".join(run.log())
    # It was good, and what it asked for was not its own.
    assert "while it runs: SECRET_NOT_NAMED" in "".join(run.log())
    run.download(tmp_path / "back")
    (found,) = (tmp_path / "back").rglob("token")
    error = asyncio.run(_refusal(cli.environment["STELLWERK_GRPC_ADDRESS"], run.name, found.read_text()))
    assert isinstance(error, Unauthenticated)
    assert error.reason == "TOKEN_REVOKED"


async def _refusal(address: str, run: str, token: str) -> PlatformError:
    """What a read of the run is answered with once its end is known everywhere."""
    metadata = (("authorization", f"Bearer {token}"),)
    async with asyncio.timeout(_PATIENCE_SECONDS), grpc.aio.insecure_channel(address) as channel:
        stub = runs_pb2_grpc.RunServiceStub(channel)
        while True:
            try:
                await stub.GetRun(runs_pb2.GetRunRequest(name=run), metadata=metadata, timeout=30)
            except grpc.aio.AioRpcError as error:
                return from_rpc(error)
