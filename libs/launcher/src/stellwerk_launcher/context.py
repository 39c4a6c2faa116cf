"""What one start of a stack knows: its folder, ports, secrets, and the servers that someone else runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from stellwerk_launcher.credentials import INSPECTOR, LAUNCHER, Credentials
from stellwerk_launcher.health import Check
from stellwerk_launcher.ports import HOST
from stellwerk_launcher.vault import Operator

PORT_NAMES = (
    *("nats", "mongod", "openbao", "openbao_cluster", "versitygw"),
    *(
        "secrets",
        "registry",
        "runs",
        "compute",
        "inference",
        "telemetry",
        "gateway",
        "gateway_http",
        "gateway_agents",
    ),
)
CERTIFICATE_FILE = "launcher.certificate"
CERTIFICATE_SECONDS = 24 * 3600
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


@dataclass
class Secrets:
    """What Vault keeps for this stack; empty until Vault has answered (`identities.prepare`)."""

    launcher: dict[str, str] = field(default_factory=dict)
    # By service, its document in KV.
    services: dict[str, dict[str, str]] = field(default_factory=dict)
    # By AppRole, made anew at each start.
    secret_ids: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """Everything that builds a process specification."""

    data_dir: Path
    namespace: str
    ports: Mapping[str, int]
    credentials: Credentials
    # Server name -> URI from the environment; such a server is not started.
    external: Mapping[str, str]
    secrets: Secrets = field(default_factory=Secrets)

    def address(self, name: str) -> str:
        """host:port of a port name."""
        return f"{HOST}:{self.ports[name]}"

    def folder(self, name: str) -> Path:
        """The folder of one server, made if new."""
        path = self.data_dir / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    @property
    def nats_url(self) -> str:
        """URL with the password of `inspector`, who may look at everything."""
        user = f"{INSPECTOR}:{self.credentials.nats[INSPECTOR]}"
        return self.external.get("nats") or f"nats://{user}@{self.address('nats')}"

    def mongodb_uri(self, user: str, password: str) -> str:
        """URI for a user of the stack's own mongod."""
        return f"mongodb://{user}:{password}@{self.address('mongod')}/?replicaSet=rs0&authSource=admin"

    @property
    def inspector_uri(self) -> str:
        """URI of `inspector`, who may read all databases."""
        password = self.credentials.mongodb[INSPECTOR]
        return self.external.get("mongod") or self.mongodb_uri(INSPECTOR, password)

    @property
    def s3_url(self) -> str:
        """Address of the blob store."""
        return self.external.get("versitygw") or f"http://{self.address('versitygw')}"

    @property
    def vault_url(self) -> str:
        """Address of the Vault API."""
        return self.external.get("openbao") or f"http://{self.address('openbao')}"

    def operator(self) -> Operator:
        """The launcher's login at Vault; at a Vault of the user's own, with the variables for that."""
        role_id, secret_id = LAUNCHER, self.credentials.vault[LAUNCHER]
        if "openbao" in self.external:
            role_id = os.environ.get("STELLWERK_VAULT_ROLE_ID") or role_id
            secret_id = os.environ.get("STELLWERK_VAULT_SECRET_ID") or secret_id
        return Operator(self.vault_url, secret_id, role_id)

    @property
    def certificate_seconds(self) -> int:
        """How long a certificate lives; the launcher's own and, by the same variable, the services'."""
        return int(os.environ.get("STELLWERK_CERTIFICATE_SECONDS") or CERTIFICATE_SECONDS)

    @property
    def certificate_file(self) -> Path:
        """The launcher's certificate, with which health is asked for, also by `stellwerk status`."""
        return self.data_dir / CERTIFICATE_FILE


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
