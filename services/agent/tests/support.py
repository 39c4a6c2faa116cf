"""The real agent as a process of its own, behind a real gateway before real services."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.runs.tests.support import Platform
from services.runs.tests.support import running as running_services
from stellwerk_gateway.config import Settings as GatewaySettings
from stellwerk_gateway.main import compose as compose_gateway
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers, plaintext_command
from stellwerk_platform.app import App

_WAIT_SECONDS = 30


@dataclass(frozen=True)
class Node:
    """A node on which an agent can be started, killed and started again."""

    platform: Platform
    folder: Path
    grpc_address: str
    gateway_url: str
    vault_secret_id: str

    @asynccontextmanager
    async def agent(self, failpoint: str = "", **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """An agent; with a failpoint it kills itself there. Ended with SIGTERM, which leaves commands."""
        log = (self.folder.parent / "agent.log").open("ab")
        (self.folder / "ready").unlink(missing_ok=True)
        with log:
            process = await asyncio.create_subprocess_exec(
                *plaintext_command("agent", "Settings"),
                env={**self._environment(failpoint), **variables},
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    def _environment(self, failpoint: str) -> dict[str, str]:
        return {
            **os.environ,
            "STELLWERK_NAMESPACE": self.platform.settings.namespace,
            "STELLWERK_GRPC_ADDRESS": self.grpc_address,
            "STELLWERK_VAULT_ROLE_ID": "agent",
            "STELLWERK_VAULT_SECRET_ID": self.vault_secret_id,
            "STELLWERK_AGENT_DIR": str(self.folder),
            "STELLWERK_AGENT_SLOTS": "4",
            "STELLWERK_FAILPOINT": failpoint,
        }

    async def sweep(self) -> None:
        """Ends what agents left."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stellwerk_agent.sweep", str(self.folder)
        )
        assert await process.wait() == 0


@asynccontextmanager
async def running(servers: Servers, folder: Path) -> AsyncIterator[Node]:
    """Real services and a gateway in this process."""
    async with running_services(servers) as platform:
        chosen = ports.choose(["gateway", "http"], {})
        address, http = (f"127.0.0.1:{port}" for port in chosen.values())
        of_runs = platform.settings
        gateway = App("gateway")
        settings = GatewaySettings(
            namespace=of_runs.namespace,
            listen=address,
            http_listen=http,
            registry_address=of_runs.registry_address,
            runs_address=of_runs.listen,
            compute_address=of_runs.compute_address,
            secrets_address=of_runs.secrets_address,
            inference_address=platform.inference_address,
            telemetry_address="127.0.0.1:9",
            vault_role_id="gateway",
            vault_secret_id=servers.secret_id("gateway"),
        )
        node = Node(platform, folder / "an agent", address, f"http://{http}", servers.secret_id("agent"))
        node.folder.mkdir()
        try:
            await compose_gateway(gateway, settings)
            yield node
        finally:
            await gateway.leave()
            await node.sweep()
