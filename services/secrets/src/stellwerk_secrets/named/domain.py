"""Names, bounds and transitions of named secrets. Pure rules."""

from collections.abc import Iterable

from stellwerk_platform import names
from stellwerk_platform.auth import Caller
from stellwerk_platform.documents import now
from stellwerk_platform.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from stellwerk_platform.journal import Fact
from stellwerk_protos.secrets.v1.secrets_pb2 import Secret, SetSecretRequest

PATTERN = "workspaces/*/secrets/*"
VERSION_PATTERN = f"{PATTERN}/versions/*"
LATEST = "latest"
MAXIMUM_BYTES = 64 * 1024
# What a run may name, so that its token stays small enough for a header.
MAXIMUM_OF_A_RUN = 30


def check(request: SetSecretRequest) -> None:
    """Raises `InvalidArgument` for a name or value that cannot be a secret's."""
    names.parse(PATTERN, request.name)
    if not request.value:
        raise InvalidArgument("SECRET_EMPTY", "The value is empty.", "Give a value, or delete the secret.")
    if len(request.value) > MAXIMUM_BYTES:
        raise InvalidArgument(
            "SECRET_TOO_LARGE",
            f"The value has {len(request.value):,} bytes.",
            f"Use up to {MAXIMUM_BYTES:,}; encrypt larger content and keep its key here.",
        )
    if request.HasField("expected_version") and request.expected_version < 0:
        raise InvalidArgument("INVALID_VERSION", "expected_version is negative.", "Use 0 for a new secret.")


def split(name: str) -> tuple[str, str]:
    """Name of the secret and version (a number or "latest") of `AccessSecret`'s name."""
    if name.count("/") <= PATTERN.count("/"):
        names.parse(PATTERN, name)
        return name, LATEST
    *_, version = names.parse(VERSION_PATTERN, name)
    return names.parent_of(name), version


def pinned(caller: Caller, secret: str, version: str) -> str:
    """The version that a run gets: that of its token. Raises `PermissionDenied` for any other."""
    for granted in caller.secrets:
        if granted.startswith(f"{secret}/versions/") and version in (LATEST, names.id_of(granted)):
            return names.id_of(granted)
    raise PermissionDenied(
        "SECRET_NOT_NAMED",
        f"The configuration of {caller.subject} does not name {names.id_of(secret)!r} in this version.",
        f"Submit it with --secret {names.id_of(secret)}.",
    )


def check_of_run(owner: str, secrets: Iterable[str]) -> list[str]:
    """The secrets that a token is asked for, each once; they must lie in the owner's workspace."""
    wanted = list(dict.fromkeys(secrets))
    if len(wanted) > MAXIMUM_OF_A_RUN:
        raise InvalidArgument(
            "TOO_MANY_SECRETS", f"{len(wanted)} secrets.", f"Name up to {MAXIMUM_OF_A_RUN} for a run."
        )
    for name in wanted:
        names.parse(PATTERN, name)
        if names.workspace_of(name) != names.workspace_of(owner):
            raise InvalidArgument(
                "INVALID_NAME", f"{name} lies in another workspace.", "Name secrets of the run's workspace."
            )
    return wanted


def check_expected(request: SetSecretRequest, latest: int) -> None:
    """Compare-and-set: raises `Aborted` when another version is the latest one."""
    if request.HasField("expected_version") and request.expected_version != latest:
        raise conflict(request.name, latest)


def conflict(name: str, latest: int) -> Aborted:
    """Another version is the latest one."""
    return Aborted(
        "SECRET_VERSION_CHANGED",
        f"The latest version of {name} is {latest}." if latest else f"There is no secret {name}.",
        "Read it again, then set it with that version.",
    )


def check_alive(secret: Secret) -> None:
    """Raises `FailedPrecondition` for a deleted one."""
    if secret.HasField("delete_time"):
        raise FailedPrecondition(
            "SECRET_DELETED",
            f"{secret.name} is deleted.",
            f"Bring it back: stellwerk secret undelete {names.id_of(secret.name)}.",
        )


def missing(name: str) -> NotFound:
    """There is no such secret, or no such version."""
    return NotFound(
        "SECRET_NOT_FOUND", f"There is no secret {name}.", "See `stellwerk secret list`, or set it first."
    )


def set_version(secret: Secret, version: int, actor: str) -> Fact | None:
    """A version of it is in Vault; nothing for one that is known."""
    if version <= secret.version:
        return None
    secret.version = version
    return Fact("version_set", "REQUESTED", f"{actor} set version {version}.")


def delete(secret: Secret, actor: str) -> Fact | None:
    """Hides it."""
    if secret.HasField("delete_time"):
        return None
    secret.delete_time.CopyFrom(now())
    return Fact("deleted", "REQUESTED", f"{actor} deleted it.")


def undelete(secret: Secret, actor: str) -> Fact | None:
    """Shows it again."""
    if not secret.HasField("delete_time"):
        return None
    secret.ClearField("delete_time")
    return Fact("undeleted", "REQUESTED", f"{actor} brought it back.")
