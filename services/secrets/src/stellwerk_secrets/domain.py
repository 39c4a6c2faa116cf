"""Who gets which token for how long. Pure rules."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from stellwerk_platform import names
from stellwerk_platform.auth import API_KEY_PREFIX, ISSUER
from stellwerk_platform.errors import InvalidArgument, PermissionDenied, Unauthenticated

API_KEY_TOKEN_SECONDS = 15 * 60
LOGIN_TOKEN_SECONDS = 60 * 60
WORKLOAD_TOKEN_SECONDS = 24 * 60 * 60
_API_KEY_LIMIT = 200
# An endpoint's token is what the gateway shows to its scorers.
_WORKLOADS = {
    "workspaces/*/runs/*": "Workload",
    "workspaces/*/endpoints/*/deployments/*/replicas/*": "Workload",
    "workspaces/*/endpoints/*": "Invoker",
}
# A Vault may hold AppRoles of other systems: only these become services of the platform.
_SERVICES = frozenset(
    {"compute", "gateway", "inference", "pipelines", "registry", "runs", "secrets", "studio", "telemetry"}
)
_AGENT = "agent"
_LOCAL_NODE = "nodes/local"


@dataclass(frozen=True)
class Identity:
    """Whom a token stands for.

    A person's has the key that it came from, whether the person administers, and the
    person's revision, so that no token is shared across a change of the person.
    """

    subject: str
    role: str
    # The versions of secrets that a workload may read, by resource name.
    secrets: tuple[str, ...] = ()
    administrator: bool = False
    key: str = ""
    revision: int = 0


SELF = Identity("services/secrets", "Service")
TELEMETRY_WRITER = Identity("services/telemetry-writer", "TelemetryWriter")


def digest_of(api_key: str) -> str:
    """The SHA-256 under which an API key is known; raises `Unauthenticated` for what cannot be one.

    Keys are long random strings, so a plain digest cannot be reversed, and looking it
    up tells an attacker's clock nothing about the key.
    """
    if not api_key.startswith(API_KEY_PREFIX) or len(api_key) > _API_KEY_LIMIT:
        raise key_invalid()
    return sha256_of(api_key)


def sha256_of(text: str) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_invalid(why: str = "The key is not valid.") -> Unauthenticated:
    """The one reason for every key that opens nothing; only who has a real key learns more."""
    return Unauthenticated("KEY_INVALID", why, "Check the key, or get a new one with `stellwerk login`.")


def identity_of_approle(role_id: str) -> Identity:
    """Service or node of an AppRole whose credentials were right; `agent` is the node of this machine."""
    if role_id == _AGENT:
        return Identity(_LOCAL_NODE, "Node")
    if role_id.startswith(f"{_AGENT}-"):
        return Identity(f"nodes/{names.check_id('nodes', role_id.removeprefix(f'{_AGENT}-'))}", "Node")
    if role_id not in _SERVICES:
        raise PermissionDenied(
            "APPROLE_UNKNOWN",
            "This AppRole belongs to no service of the platform.",
            f"Use the role id of a service, or {_AGENT}-NODE for a node.",
        )
    return Identity(f"services/{role_id}", "Service")


def identity_of_workload(owner: str) -> Identity:
    """The identity of a run, replica or endpoint; raises `InvalidArgument` for any other name."""
    for pattern, role in _WORKLOADS.items():
        if pattern.split("/")[::2] == owner.split("/")[::2]:
            names.parse(pattern, owner)
            return Identity(owner, role)
    raise InvalidArgument(
        "INVALID_NAME",
        "Only a run, a replica or an endpoint has a token of its own.",
        f"Give {' or '.join(_WORKLOADS)}.",
    )


def key_id(key: str, version: int) -> str:
    """The `kid` of tokens signed by a version of a Vault key."""
    return f"{key}:{version}"


def signing_input(kid: str, identity: Identity, token_id: str, issue_time: float, expire_time: int) -> bytes:
    """Header and claims of a JSON Web Token as they are signed (RFC 7515). Times in seconds since 1970.

    `issue_time` to the millisecond: it is compared with the moment of a revocation.
    """
    header = {"alg": "EdDSA", "typ": "JWT", "kid": kid}
    claims: dict[str, object] = {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": identity.subject,
        "role": identity.role,
        "iat": issue_time,
        "exp": expire_time,
        "jti": token_id,
    }
    if identity.secrets:
        parts = (version.split("/") for version in identity.secrets)
        claims["secrets"] = [f"{part[3]}:{part[5]}" for part in parts]
    if identity.administrator:
        claims["adm"] = True
    if identity.key:
        claims["key"] = identity.key
    return b".".join(_part(part) for part in (header, claims))


def _part(content: Mapping[str, object]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=")
