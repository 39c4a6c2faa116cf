"""The launcher at Vault: it administers the identities of the services, and issues its own certificate.

Blocking, as everything in the launcher that is not the supervisor itself.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hvac
import hvac.exceptions
import requests

from stellwerk_launcher.credentials import LAUNCHER, write_private
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.policies import BLOB_ACCOUNTS, certificate_role, policy_of

TIMEOUT_SECONDS = 10
_MISSING = "the set-up of docs/security.md is not in this Vault"


@dataclass(frozen=True)
class Certificate:
    """A client certificate in PEM, its key, and the authority that signs everybody's."""

    chain: str
    key: str
    authority: str
    # ISO 8601, when half of its life is over and a new one is due.
    renew_time: str

    def write(self, path: Path) -> None:
        """Keeps it for `stellwerk status`, which asks the services for their health."""
        write_private(path, json.dumps(asdict(self)), durable=False)

    @classmethod
    def read(cls, path: Path) -> "Certificate":
        """Raises OSError or ValueError when there is none."""
        return cls(**json.loads(path.read_text()))


class Operator:
    """A login of the AppRole `launcher`; a new one for each start, since its token lives an hour."""

    def __init__(self, url: str, secret_id: str, role_id: str = LAUNCHER) -> None:
        self._client = hvac.Client(url=url, timeout=TIMEOUT_SECONDS)
        self._login = {"role_id": role_id, "secret_id": secret_id}

    def log_in(self) -> None:
        """Raises `LauncherError` when Vault refuses the credentials."""
        try:
            self._client.auth.approle.login(**self._login)
        except (hvac.exceptions.VaultError, requests.RequestException) as error:
            raise LauncherError(
                "CREDENTIALS_MISMATCH",
                f"Vault refuses the AppRole {self._login['role_id']!r} of the launcher: {str(error)[:200]}.",
                "Restore credentials.json from a copy, or start with another --data-dir; for a Vault of your "
                "own set STELLWERK_VAULT_ROLE_ID and STELLWERK_VAULT_SECRET_ID, see docs/security.md.",
            ) from error

    def put_identity(self, name: str) -> None:
        """Makes or renews AppRole, policy and certificate role of one of `policies.IDENTITIES`."""
        self._write(f"sys/policies/acl/stellwerk-{name}", policy=policy_of(name))
        role = f"auth/approle/role/{name}"
        self._write(role, token_policies=[f"stellwerk-{name}"], token_ttl="1h", token_no_default_policy=True)
        self._write(f"{role}/role-id", role_id=name)
        if (options := certificate_role(name)) is not None:
            self._write(f"pki/roles/{name}", **options)

    def new_secret_id(self, name: str, *, only: bool) -> str:
        """A fresh secret id; with `only` all earlier ones stop to work."""
        role = f"auth/approle/role/{name}"
        earlier = self._list(f"{role}/secret-id") if only else []
        answer = self._client.adapter.post(f"/v1/{role}/secret-id", json={})
        for accessor in earlier:
            self._write(f"{role}/secret-id-accessor/destroy", secret_id_accessor=accessor)
        return str(answer["data"]["secret_id"])

    def read(self, path: str) -> dict[str, str]:
        """Values of a KV path below `secret/stellwerk/`, empty when there are none."""
        try:
            answer = self._client.adapter.get(f"/v1/secret/data/stellwerk/{path}")
        except hvac.exceptions.InvalidPath:
            return {}
        return dict(answer["data"]["data"] or {})

    def write(self, path: str, values: Mapping[str, Any]) -> None:
        """Replaces them."""
        self._write(f"secret/data/stellwerk/{path}", data=dict(values))

    def put_blob_account(self, access_key: str, secret_key: str) -> None:
        """An account as versitygw's IAM keeps it: it may do what the policy of a bucket says."""
        account = {"access": access_key, "secret": secret_key, "role": "user"}
        account |= dict.fromkeys(("userID", "groupID", "projectID"), 0)  # type: ignore[arg-type]
        self.write(f"{BLOB_ACCOUNTS}/{access_key}", {access_key: account})

    def drop_blob_account(self, access_key: str) -> None:
        """Removes it with all its versions."""
        self._client.adapter.delete(f"/v1/secret/metadata/stellwerk/{BLOB_ACCOUNTS}/{access_key}")

    def issue(self, seconds: int) -> Certificate:
        """A certificate of the launcher, with which it asks the services for their health."""
        answer = self._client.adapter.post(
            f"/v1/pki/issue/{LAUNCHER}",
            json={"common_name": f"{LAUNCHER}.stellwerk", "ttl": f"{seconds}s"},
        )["data"]
        return Certificate(
            chain=answer["certificate"],
            key=answer["private_key"],
            authority=answer["issuing_ca"],
            renew_time=(datetime.now(UTC) + timedelta(seconds=seconds / 2)).isoformat(),
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.adapter.close()

    def _write(self, path: str, **body: Any) -> None:
        self._client.adapter.post(f"/v1/{path}", json=body)

    def _list(self, path: str) -> list[str]:
        try:
            return list(self._client.adapter.list(f"/v1/{path}")["data"]["keys"])
        except hvac.exceptions.InvalidPath:
            return []
