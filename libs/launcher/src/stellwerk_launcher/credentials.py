"""What a start must know before Vault answers, kept in one file of mode 0600.

That is the launcher's own login at Vault, and the passwords of those who look in by hand. Every
other secret is in Vault: see `identities.py`.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stellwerk_launcher.errors import LauncherError

SERVICES = ("secrets", "registry", "runs", "compute", "inference", "telemetry", "gateway")
WITH_STORE = ("secrets", "registry", "runs", "compute", "inference", "telemetry")
WITH_BLOBS = ("registry",)
LAUNCHER = "launcher"
INSPECTOR = "inspector"


@dataclass(frozen=True)
class Credentials:
    """By server: the launcher's secret id (`vault`), and passwords of people and tests by user."""

    vault: dict[str, str]
    mongodb: dict[str, str]
    nats: dict[str, str]

    @classmethod
    def load_or_create(cls, path: Path, *, extra_nats_users: Iterable[str] = ()) -> "Credentials":
        """Reads the file and adds what is missing; raises `LauncherError` for one of an older kind."""
        try:
            found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise LauncherError(
                "CREDENTIALS_UNREADABLE",
                f"{path} is not readable as JSON: {error}.",
                "Restore it from a copy, or start with another --data-dir.",
            ) from error
        if found and LAUNCHER not in found.get("vault", {}):
            raise LauncherError(
                "DATA_DIR_OUTDATED",
                f"{path.parent} was made by a version that kept the services' passwords in a file.",
                "Start with a new folder (--data-dir); get what you need out of this one with the version "
                "that made it.",
            )
        complete = cls(
            vault=_fill(found.get("vault", {}), (LAUNCHER,)),
            mongodb=_fill(found.get("mongodb", {}), (INSPECTOR,)),
            nats=_fill(found.get("nats", {}), (INSPECTOR, *extra_nats_users)),
        )
        if complete.__dict__ != found:
            write_private(path, json.dumps(complete.__dict__, indent=2))
        return complete


def _fill(found: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    return found | {name: new_password() for name in names if name not in found}


def new_password() -> str:
    """A fresh password: 160 random bits in hex, good in URLs and configuration files."""
    return secrets.token_hex(20)


def new_api_key() -> str:
    """A fresh API key: `swk_` and 32 random bytes, URL-safe."""
    return "swk_" + secrets.token_urlsafe(32)


def sha256_of(key: str) -> str:
    """The digest under which `secrets` knows an API key, in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def load_or_create_owner_key(path: Path) -> str:
    """The key of the person who owns this stack, made at the first start."""
    if not path.exists():
        write_private(path, new_api_key() + "\n")
    return path.read_text().strip()


def write_private(path: Path, text: str, *, durable: bool = True) -> None:
    """Replaces a file in one step; nobody else can read it, not even for a moment.

    `durable` waits for the disk: for what cannot be made again.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.replace(path)
