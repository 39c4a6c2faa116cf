"""The settings of the agent; docs/interfaces.md."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stellwerk_platform.settings import IdentitySettings, SettingsError

_PORTS = re.compile(r"(\d{1,5})-(\d{1,5})")
_PORTS_END = 1 << 16
_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Settings(IdentitySettings):
    """`agent_node` is `nodes/…`, `agent_slots` the number of runs at a time.

    `agent_address` is the gateway's door for agents, `grpc_address` the one for everybody, which runs use.
    `system_metrics_seconds` is the period of the standard metrics of runs, 0 turns them off;
    `collect_seconds` how long the blob store may take no byte of the outputs before a run fails.
    `agent_replica_host` is the address or name of this node at which the gateway reaches replicas, and
    `agent_replica_ports` (`LOW-HIGH`) the ports that they may take there, two each; empty: any.
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
    agent_replica_host: str = "127.0.0.1"
    agent_replica_ports: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the fields; raises `SettingsError` also for a place where no replica can be reached."""
        settings = super().from_environment(environment)
        settings._check_host()
        settings.replica_ports  # noqa: B018  # raises
        return settings

    @property
    def folder(self) -> Path:
        """The folder that holds everything of this agent."""
        return Path(self.agent_dir).absolute()

    @property
    def replica_ports(self) -> range:
        """The ports that replicas may take; empty: any. Raises `SettingsError` for what is no range."""
        if not self.agent_replica_ports:
            return range(0)
        match = _PORTS.fullmatch(self.agent_replica_ports)
        low, high = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 0 < low < high < _PORTS_END:
            said = self.agent_replica_ports
            raise SettingsError(f"STELLWERK_AGENT_REPLICA_PORTS={said!r} is not LOW-HIGH, two ports or more")
        return range(low, high + 1)

    def _check_host(self) -> None:
        host = self.agent_replica_host
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if not _NAME.fullmatch(host):
                raise SettingsError(f"STELLWERK_AGENT_REPLICA_HOST={host!r} is no address or name") from None
            return
        if address.is_unspecified or address.is_multicast:
            raise SettingsError(
                f"STELLWERK_AGENT_REPLICA_HOST={host} is no address that a gateway could connect to; "
                "give one of this node"
            )
