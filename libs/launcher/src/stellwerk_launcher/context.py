"""What one start of a stack knows: its folder, ports, secrets, and the servers that someone else runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stellwerk_launcher.credentials import Credentials
from stellwerk_launcher.health import Check
from stellwerk_launcher.ports import HOST

PORT_NAMES = (
    *("nats", "mongod", "openbao", "openbao_cluster", "versitygw"),
    *("secrets", "registry", "runs", "compute", "inference", "telemetry", "gateway", "gateway_http"),
)
EXTERNAL_VARIABLES = {
    "nats": "STELLWERK_NATS_URL",
    "mongod": "STELLWERK_MONGODB_URI",
    "openbao": "STELLWERK_VAULT_URL",
    "versitygw": "STELLWERK_S3_URL",
}


@dataclass(frozen=True)
class ProcessSpec:
    """One child process: how to start it and how to know that it is ready."""

    name: str
    command: tuple[str, ...]
    check: Check
    environment: Mapping[str, str]
    address: str = ""
    version: str = ""
    ready_timeout_seconds: float = 60.0
    stop_timeout_seconds: float = 10.0
    # Removed before each start: what an earlier process left to say that it was ready.
    stale_file: Path | None = None


@dataclass(frozen=True)
class Context:
    """Everything that builds a process specification."""

    data_dir: Path
    namespace: str
    ports: Mapping[str, int]
    credentials: Credentials
    # Server name -> URI from the environment; such a server is not started.
    external: Mapping[str, str]

    def address(self, name: str) -> str:
        """host:port of a port name."""
        return f"{HOST}:{self.ports[name]}"

    def folder(self, name: str) -> Path:
        """The folder of one server, made if new."""
        path = self.data_dir / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def nats_url(self, user: str) -> str:
        """URL with the password of that user."""
        return self.external.get("nats") or (
            f"nats://{user}:{self.credentials.nats[user]}@{self.address('nats')}"
        )

    def mongodb_uri(self, user: str) -> str:
        """URI with the password of that user; `inspector` may read all, a service its own database."""
        return self.external.get("mongod") or (
            f"mongodb://{user}:{self.credentials.mongodb[user]}@{self.address('mongod')}"
            "/?replicaSet=rs0&authSource=admin"
        )

    @property
    def s3_url(self) -> str:
        """Address of the blob store."""
        return self.external.get("versitygw") or f"http://{self.address('versitygw')}"

    @property
    def s3_access_key(self) -> str:
        """The user's own key where the blob store is the user's own."""
        given = os.environ.get("STELLWERK_S3_ACCESS_KEY") if "versitygw" in self.external else None
        return given or self.credentials.s3["access_key"]

    @property
    def s3_secret_key(self) -> str:
        """Secret half of `s3_access_key`."""
        given = os.environ.get("STELLWERK_S3_SECRET_KEY") if "versitygw" in self.external else None
        return given or self.credentials.s3["secret_key"]

    @property
    def vault_url(self) -> str:
        """Address of the Vault API."""
        return self.external.get("openbao") or f"http://{self.address('openbao')}"


def external_servers(environment: Mapping[str, str]) -> dict[str, str]:
    """Servers that the user brings, by the variables of `docs/interfaces.md`."""
    return {
        name: environment[variable]
        for name, variable in EXTERNAL_VARIABLES.items()
        if environment.get(variable)
    }


def host_and_port(uri: str) -> tuple[str, int]:
    """Where a TCP connection to a server's URI goes (the first host of several)."""
    parts = urlsplit(uri)
    first = parts.netloc.rpartition("@")[2].split(",")[0]
    host, _, port = first.partition(":")
    defaults = {"nats": 4222, "mongodb": 27017, "http": 80, "https": 443}
    return host, int(port or defaults.get(parts.scheme, 443))
