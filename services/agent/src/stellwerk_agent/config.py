"""The settings of the agent; docs/interfaces.md."""

from dataclasses import dataclass
from pathlib import Path

from stellwerk_platform.settings import IdentitySettings


@dataclass(frozen=True, kw_only=True)
class Settings(IdentitySettings):
    """`agent_node` is `nodes/…`, `agent_slots` the number of runs at a time.

    `agent_address` is the gateway's door for agents, `grpc_address` the one for everybody, which runs use.
    `system_metrics_seconds` is the period of the standard metrics of runs, 0 turns them off;
    `collect_seconds` how long the blob store may take no byte of the outputs before a run fails.
    """

    grpc_address: str
    agent_address: str = ""
    agent_dir: str
    gateway_url: str = ""
    agent_node: str = "nodes/local"
    agent_pool: str = "local"
    agent_slots: int = 2
    system_metrics_seconds: float = 10.0
    collect_seconds: float = 600.0

    @property
    def folder(self) -> Path:
        """The folder that holds everything of this agent."""
        return Path(self.agent_dir).absolute()
