"""Validates docker-compose.yml without a network or a container engine.

The schema is the Compose specification's own, as `check-jsonschema` ships it. A schema
cannot say what this repository demands besides: that every service and server is there,
that nothing but the gateway is published, and that only on loopback, that every named
volume, secret and network is declared, and that no password stands in the file.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.yml"
SERVERS = {"nats", "mongo", "openbao", "versitygw"}
PUBLISHED = {"gateway"}
# Started by the agent, with what that gives it; all others get certificate and passwords from Vault.
WITHOUT_IDENTITY = {"scorer"}
_SECRET = re.compile(r"PASSWORD|SECRET|MONGODB_URI|NATS_URL|_KEY$")
_NO_SECRET = ("_FILE", "_SHA256", "_ADDRESS", "_PATH")


def stellwerk_services() -> set[str]:
    """The folders of `services/` that hold a package."""
    return {path.parent.name for path in (ROOT / "services").glob("*/pyproject.toml")}


def named(entries: Any, key: str) -> set[str]:
    """Names in a list whose entries are a name, `name:…`, or a mapping with `key`."""
    return {
        str(entry[key]) if isinstance(entry, dict) else str(entry).split(":")[0] for entry in entries or []
    }


def complaints_of_service(name: str, service: dict[str, Any], compose: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one service."""
    for port in service.get("ports", []):
        if name not in PUBLISHED or not str(port).startswith("127.0.0.1:"):
            yield f"{name}: publishes {port}; only the gateway may, and only on 127.0.0.1"
    for variable, value in (service.get("environment") or {}).items():
        if (
            _SECRET.search(variable)
            and not variable.endswith(("_FILE", "_SHA256", "_ADDRESS", "_PATH"))
            and value
        ):
            yield f"{name}: {variable} belongs in a secret file, not in docker-compose.yml"
    volumes = {
        volume for volume in named(service.get("volumes"), "source") if not volume.startswith((".", "/"))
    }
    for kind, names in (
        ("volumes", volumes),
        ("secrets", named(service.get("secrets"), "source")),
        ("networks", named(service.get("networks"), "name")),
    ):
        for missing in sorted(names - compose.get(kind, {}).keys()):
            yield f"{name}: {missing} is not declared under {kind}"
    if "healthcheck" not in service and "profiles" not in service:
        yield f"{name}: has no healthcheck"


def complaints(compose: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the whole file."""
    services: dict[str, dict[str, Any]] = compose["services"]
    for missing in sorted((stellwerk_services() | SERVERS) - services.keys()):
        yield f"{missing} is missing"
    for name, service in services.items():
        yield from complaints_of_service(name, service, compose)
    for name in sorted((stellwerk_services() - WITHOUT_IDENTITY) & services.keys()):
        missing = {"STELLWERK_VAULT_URL", "STELLWERK_VAULT_ROLE_ID"} - services[name]["environment"].keys()
        yield from (f"{name}: {variable} is missing" for variable in sorted(missing))


def main() -> int:
    check = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    if subprocess.run([sys.executable, *check], check=False).returncode != 0:
        return 1
    found = list(complaints(yaml.safe_load(FILE.read_text())))
    for complaint in found:
        print(f"docker-compose.yml: {complaint}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
