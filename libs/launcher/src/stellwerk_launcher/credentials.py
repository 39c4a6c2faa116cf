"""Every secret that a stack needs, made at the first start and kept in one file of mode 0600."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

from stellwerk_launcher.errors import LauncherError

SERVICES = ("secrets", "registry", "runs", "compute", "inference", "telemetry", "gateway")
VAULT_ROLES = (*SERVICES, "agent")
WITH_STORE = ("secrets", "registry", "runs", "compute", "inference", "telemetry")


@dataclass(frozen=True)
class Credentials:
    """Passwords by server and user; `otlp_key` is the API key with which everyone sends telemetry."""

    mongodb: dict[str, str]
    nats: dict[str, str]
    vault: dict[str, str]
    s3: dict[str, str]
    otlp_key: str
    nats_callout_seed: str

    @classmethod
    def load_or_create(cls, path: Path, *, extra_nats_users: Iterable[str] = ()) -> "Credentials":
        """Reads the file and adds what is missing, so that a newer version can bring a new service."""
        try:
            found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise LauncherError(
                "CREDENTIALS_UNREADABLE",
                f"{path} is not readable as JSON: {error}.",
                "Restore it from a copy, or start with another --data-dir.",
            ) from error
        complete = cls(
            mongodb=_fill(found.get("mongodb", {}), ("admin", "inspector", *WITH_STORE)),
            nats=_fill(found.get("nats", {}), ("system", "inspector", *SERVICES, *extra_nats_users)),
            vault=_fill(found.get("vault", {}), VAULT_ROLES),
            s3=_fill(found.get("s3", {}), ("access_key", "secret_key")),
            otlp_key=found.get("otlp_key") or new_api_key(),
            nats_callout_seed=found.get("nats_callout_seed") or new_account_seed(),
        )
        if complete.__dict__ != found:
            write_private(path, json.dumps(complete.__dict__, indent=2))
        return complete


def _fill(found: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    return found | {name: secrets.token_hex(20) for name in names if name not in found}


def new_account_seed() -> str:
    """The secret half of a fresh key of a NATS account."""
    seed: bytes = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_ACCOUNT)
    return seed.decode()


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
