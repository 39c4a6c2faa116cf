"""Composition of the agent."""

import fcntl
import logging
import os

import httpx

from stellwerk_agent.agent import Agent
from stellwerk_agent.config import Settings
from stellwerk_agent.credentials import AgentCredentials
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.node import Node
from stellwerk_agent.replica_place import free_ports
from stellwerk_platform import app
from stellwerk_platform.auth import CallerCredentials
from stellwerk_platform.errors import FailedPrecondition
from stellwerk_protos.compute.v1 import agents_pb2_grpc

_HTTP_TIMEOUT_SECONDS = 30


async def compose(process: app.App, settings: Settings) -> None:
    """Takes the folder, and goes on where the last agent on it stopped."""
    # It would write presigned URLs, which are secrets, into the log.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _take(settings)
    _check_host(settings.agent_replica_host)
    door = settings.agent_address or settings.grpc_address
    anonymous = process.connect("gateway", door)
    credentials = CallerCredentials(anonymous, settings.vault_role_id, settings.vault_secret_id)
    channel = process.connect("gateway", door, AgentCredentials(credentials))
    client = await process.enter(httpx.AsyncClient(timeout=_HTTP_TIMEOUT_SECONDS))
    node = await Node.open(settings, channel, client)
    process.background(Agent(node, agents_pb2_grpc.AgentServiceStub(channel)).run())


def _take(settings: Settings) -> None:
    """Holds the folder until this process ends, however it ends."""
    lock = os.open(settings.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(
            "AGENT_RUNNING",
            f"An agent runs already on {settings.folder}.",
            "Stop it first, or set STELLWERK_AGENT_DIR to another folder.",
        ) from None


def _check_host(host: str) -> None:
    """Sees that replicas can listen where the gateway is told to look for them."""
    try:
        free_ports(host)
    except StepFailed:
        raise FailedPrecondition(
            "REPLICA_HOST_UNUSABLE",
            f"Nothing can listen on {host}.",
            "Set STELLWERK_AGENT_REPLICA_HOST to an address of this node.",
        ) from None


if __name__ == "__main__":
    app.run("agent", Settings, compose)
