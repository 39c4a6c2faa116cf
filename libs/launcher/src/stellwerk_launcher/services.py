"""The platform's own processes: their variables and the order in which they start."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stellwerk_launcher.context import Context, ProcessSpec
from stellwerk_launcher.credentials import WITH_BLOBS, WITH_STORE, load_or_create_owner_key, sha256_of
from stellwerk_launcher.health import Check

# Each group starts together, after the one before is ready.
START_ORDER = (
    ("secrets",),
    ("registry", "runs", "compute", "inference", "telemetry", "gateway"),
    ("agent",),
)
WITH_ADDRESS = ("registry", "runs", "compute", "secrets", "inference", "telemetry")
AGENT_FOLDER = "agent"
# Taken over from whoever starts the stack.
_AGENT_SETTINGS = ("STELLWERK_SYSTEM_METRICS_SECONDS",)
OWNER_KEY_FILE = "owner.key"
# What the launcher sets itself, or what belongs to the person at the terminal; everything else of ours
# (STELLWERK_LEASE_SECONDS, log levels …) reaches the services as it is.
_OWN_VARIABLES = (
    *("LISTEN", "HTTP_LISTEN", "AGENT_LISTEN", "HEALTH_LISTEN", "AGENT_ADDRESS", "MONGODB_URI"),
    *("NATS_URL", "NATS_SEED", "NATS_CALLOUT_SEED", "S3_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY"),
    *("VAULT_URL", "VAULT_ROLE_ID", "VAULT_SECRET_ID", "OTLP_ENDPOINT", "OTLP_KEY"),
    *("OWNER_KEY_SHA256", "OTLP_KEY_SHA256", "GRPC_ADDRESS", "GATEWAY_URL", "API_KEY", "API_KEY_FILE"),
    *("DATA_DIR", "AGENT_DIR", "RUN", "WORKSPACE", "TOKEN_FILE", "METRICS_DIR"),
    *(f"{name.upper()}_ADDRESS" for name in WITH_ADDRESS),
)


def inherited_environment() -> dict[str, str]:
    """The launcher's own environment without what would contradict the stack."""
    dropped = {f"STELLWERK_{name}" for name in _OWN_VARIABLES}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def specify(context: Context, name: str) -> ProcessSpec:
    """How to start one service or the agent."""
    is_agent = name == "agent"
    is_gateway = name == "gateway"
    target = "" if is_agent else f"{context.address(name)} {name}.stellwerk {context.certificate_file}"
    check = Check("grpc", target)
    ready_file = context.data_dir / AGENT_FOLDER / "ready" if is_agent else None
    if is_agent:
        check = Check("file", str(ready_file))
    elif is_gateway:
        check = Check("http", f"{context.address('gateway_http')}/readyz")
    return ProcessSpec(
        name=name,
        command=(sys.executable, "-m", f"stellwerk_{name}.main"),
        check=check,
        environment=_agent_environment(context) if is_agent else _service_environment(context, name),
        address="" if is_agent else context.address("gateway_http" if is_gateway else name),
        version=_version(name),
        stale_file=ready_file,
    )


def sweep_command(data_dir: Path) -> list[str]:
    """Ends what a stopped agent left running on purpose, and prints its names."""
    return [sys.executable, "-m", "stellwerk_agent.sweep", str(data_dir / AGENT_FOLDER)]


def list_command(data_dir: Path) -> list[str]:
    """Prints the names of what a sweep would end."""
    return [*sweep_command(data_dir), "--list"]


def _common(context: Context, name: str) -> dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",
        "STELLWERK_NAMESPACE": context.namespace,
        "STELLWERK_OTLP_KEY": context.secrets.launcher["otlp_key"],
        "STELLWERK_VAULT_URL": context.vault_url,
        "STELLWERK_VAULT_ROLE_ID": name,
        "STELLWERK_VAULT_SECRET_ID": context.secrets.secret_ids[name],
    }


def _service_environment(context: Context, name: str) -> dict[str, str]:
    environment = _common(context, name) | {
        "STELLWERK_LISTEN": context.address(name),
        "STELLWERK_OTLP_ENDPOINT": f"https://{context.address('telemetry')}",
        **{f"STELLWERK_{other.upper()}_ADDRESS": context.address(other) for other in WITH_ADDRESS},
        **_external(context, name),
    }
    if name == "secrets":
        owner_key = load_or_create_owner_key(context.data_dir / OWNER_KEY_FILE)
        environment["STELLWERK_OWNER_KEY_SHA256"] = sha256_of(owner_key)
        environment["STELLWERK_OTLP_KEY_SHA256"] = sha256_of(context.secrets.launcher["otlp_key"])
    if name == "gateway":
        environment["STELLWERK_HTTP_LISTEN"] = context.address("gateway_http")
        environment["STELLWERK_AGENT_LISTEN"] = context.address("gateway_agents")
    return environment


def _external(context: Context, name: str) -> dict[str, str]:
    """Where the servers of the user's own are; where the stack's are is in Vault."""
    found = {}
    if "nats" in context.external:
        found["STELLWERK_NATS_URL"] = context.external["nats"]
    if "mongod" in context.external and name in WITH_STORE:
        found["STELLWERK_MONGODB_URI"] = context.external["mongod"]
    if "versitygw" in context.external and name in WITH_BLOBS:
        found["STELLWERK_S3_URL"] = context.external["versitygw"]
        for variable in ("STELLWERK_S3_ACCESS_KEY", "STELLWERK_S3_SECRET_KEY"):
            found[variable] = os.environ.get(variable, "")
    return found


def _agent_environment(context: Context) -> dict[str, str]:
    folder = context.folder(AGENT_FOLDER)
    given = {name: os.environ[name] for name in _AGENT_SETTINGS if name in os.environ}
    return (
        _common(context, "agent")
        | given
        | {
            "STELLWERK_GRPC_ADDRESS": context.address("gateway"),
            "STELLWERK_AGENT_ADDRESS": context.address("gateway_agents"),
            "STELLWERK_OTLP_ENDPOINT": f"http://{context.address('gateway')}",
            "STELLWERK_GATEWAY_URL": f"http://{context.address('gateway_http')}",
            "STELLWERK_AGENT_DIR": str(folder),
            "STELLWERK_AGENT_NODE": "nodes/local",
            "STELLWERK_AGENT_POOL": "local",
            # Replicas take slots as well, so a small machine still gets some.
            "STELLWERK_AGENT_SLOTS": os.environ.get("STELLWERK_AGENT_SLOTS")
            or str(max(4, os.cpu_count() or 1)),
        }
    )


def _version(name: str) -> str:
    try:
        return version(f"stellwerk-{name}")
    except PackageNotFoundError:
        return "unknown"
