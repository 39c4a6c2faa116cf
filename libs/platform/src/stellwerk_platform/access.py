"""Whether a caller may make a request: the table of `roles.py`, applied to the resources it names."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from stellwerk_platform import names, roles
from stellwerk_platform.auth import Beyond, Caller, bearer
from stellwerk_platform.errors import InvalidArgument, PermissionDenied
from stellwerk_platform.memberships import Memberships, Nobody
from stellwerk_platform.revocations import Revocations
from stellwerk_platform.roles import TABLE, Rule
from stellwerk_platform.streams import Stream, Streams

Verify = Callable[[str], Awaitable[Caller]]
_WORKSPACES = "workspaces/"
_ME = "users/me"
_SHOWN = 200
# How deep names may lie in a request.
_DEPTH = 4
# A request is about the first of these that it has.
_SUBJECT_FIELDS = ("name", "parent", "run", "owner", "endpoint")
# Fields that hold names of resources, wherever in a request. All of one request lie in one workspace.
NAME_FIELDS = frozenset(
    {
        *_SUBJECT_FIELDS,
        *("runs", "parent_run", "root_run", "cloned_from", "experiment", "snapshot", "environment"),
        *("compute", "models", "model", "resource", "allocation", "secrets", "default_datastore"),
        *("access_key_secret", "secret_key_secret", "workspace"),
        *("input", "output_dataset", "baseline", "last_check", "replica"),
    }
)


class Guard:
    """Authenticates and authorises the callers of one service, at the start of a call and while it lasts."""

    def __init__(
        self,
        verify: Verify,
        memberships: Memberships | None = None,
        revocations: Revocations | None = None,
    ) -> None:
        self.verify = verify
        self.memberships = memberships or Memberships(Nobody())
        self.streams = Streams(self._still)
        self._beyond: Beyond | None = None
        self._listeners: list[Callable[[], None]] = []
        self.memberships.listen(self._member_changed)
        if revocations is not None:
            revocations.listen(self._revoked)

    async def _still(self, stream: Stream) -> Caller:
        """The caller of a stream, who may still do what it does; raises `PlatformError`."""
        caller = await self.verify(stream.bearer)
        await self.authorise(caller, stream.permission, stream.request)
        return caller

    def listen(self, changed: Callable[[], None]) -> None:
        """Calls `changed` whenever somebody may do less or more than before: for who remembers answers."""
        self._listeners.append(changed)

    def _member_changed(self, user: str, workspace: str) -> None:
        self.streams.changed(lambda caller: caller.role == roles.USER and user in ("", caller.subject))
        self._tell()

    def _revoked(self, subject: str) -> None:
        self.streams.changed(lambda caller: subject in (caller.subject, caller.key))
        self._tell()

    def _tell(self) -> None:
        for changed in self._listeners:
            changed()

    def allow_also(self, beyond: Beyond) -> None:
        """Asks `beyond` about what the table refuses: the service knows the resources."""
        self._beyond = beyond

    async def authenticate(self, metadata: object) -> Caller:
        """The caller of an RPC; raises `Unauthenticated`."""
        return await self.verify(bearer(metadata))

    async def authorise(self, caller: Caller, permission: str, request: Message | None) -> None:
        """Raises `PermissionDenied` unless the caller may make the request.

        None stands for the requests of a stream, each of which its service has to hand here.
        """
        if request is None:
            if not _ever(caller, permission):
                raise denied(caller, permission, "")
            return
        subject, others = resource_of(request), _others(request)
        await self._check(caller, permission, subject, request)
        if caller.role == roles.SERVICE or not others:
            return
        for workspace in others:
            await self._check(caller, permission, workspace, request)
        raise InvalidArgument(
            "WORKSPACE_MISMATCH",
            f"The request names resources of {', '.join(sorted(others))} beside {subject[:_SHOWN]}.",
            "Name resources of one workspace only.",
        )

    async def may(self, caller: Caller, permission: str, resource: str) -> bool:
        """Whether the caller has the permission for a resource, by name; raises `Unavailable`."""
        rule, workspace = TABLE[permission], names.workspace_of(resource)
        if caller.role != roles.USER:
            return _machine_may(caller, permission, rule, resource)
        if not workspace:
            return _person_may(caller, rule, resource)
        if caller.administrator and roles.ADMINISTRATOR in rule.workspace:
            return True
        # Nobody has a role in all workspaces.
        if not rule.workspace or workspace == names.WILDCARD:
            return False
        whole = f"{_WORKSPACES}{workspace}"
        return (
            await self.memberships.role(caller.subject, whole) in rule.workspace
            or await self.memberships.role_for_refusal(caller.subject, whole) in rule.workspace
        )

    async def require(self, caller: Caller, permission: str, resource: str) -> None:
        """Raises `PermissionDenied` unless the caller has the permission for a resource, by name."""
        if not await self.may(caller, permission, resource):
            raise denied(caller, permission, resource)

    async def _check(self, caller: Caller, permission: str, resource: str, request: Message) -> None:
        if caller.role == roles.USER:
            _check_form(permission, resource)
        if await self.may(caller, permission, resource):
            return
        if self._beyond is None or not await self._beyond(caller, request):
            raise denied(caller, permission, resource)


def denied(caller: Caller, permission: str, resource: str) -> PermissionDenied:
    """The one answer to who may not: it does not tell whether the resource exists."""
    shown = resource if len(resource) <= _SHOWN else resource[:_SHOWN] + "…"
    unless = ", or it does not exist" if shown and permission.endswith(".read") else ""
    who = f" {_who_may(TABLE[permission])}" if caller.role == roles.USER else ""
    return PermissionDenied(
        "PERMISSION_DENIED",
        f"{caller.subject} ({caller.role}) may not {permission} {shown}".rstrip() + f"{unless}.",
        f"Check the name and the key.{who}",
        {"permission": permission},
    )


def _who_may(rule: Rule) -> str:
    """Whom to ask, the same whatever there is, so that it tells nothing but the table."""
    able = [roles.word(role) for role in roles.WORKSPACE_ROLES if role in rule.workspace]
    if len(able) == 1:
        return f"Only an {able[0]} of the workspace may."
    if able:
        return f"An owner of the workspace can make you {', '.join(able[:-1])} or {able[-1]}."
    if roles.ADMINISTRATOR in rule.workspace | rule.platform:
        themselves = ", and the person themselves" if roles.SELF in rule.platform else ""
        return f"Only administrators of the platform may{themselves}."
    if roles.SELF in rule.platform:
        return "Only the person themselves may."
    return "No person may."


def allows(caller: Caller, permission: str, resource: str) -> bool:
    """What the token alone allows, without a role in a workspace."""
    rule = TABLE[permission]
    if caller.role != roles.USER:
        return _machine_may(caller, permission, rule, resource)
    return not names.workspace_of(resource) and _person_may(caller, rule, resource)


def resource_of(request: Message) -> str:
    """The resource that a request is about: its name, parent, run, owner or endpoint; "" without one."""
    for path in _subject_paths(request.DESCRIPTOR):
        value: object = request
        for field in path:
            value = getattr(value, field)
        if value:
            return str(value)
    return ""


def workspaces_of(request: Message) -> set[str]:
    """`workspaces/{w}` of every resource that a request names."""
    return {f"{_WORKSPACES}{names.workspace_of(name)}" for name in _named(request, _plan(request.DESCRIPTOR))}


def _others(request: Message) -> set[str]:
    """The workspaces that a request names beside that of its subject."""
    return workspaces_of(request) - {f"{_WORKSPACES}{names.workspace_of(resource_of(request))}"}


def _ever(caller: Caller, permission: str) -> bool:
    """Whether the caller may have the permission for anything at all."""
    rule = TABLE[permission]
    if caller.role == roles.USER:
        return bool(rule.workspace or rule.platform)
    return caller.role == roles.SERVICE or caller.role in rule.tokens


def _machine_may(caller: Caller, permission: str, rule: Rule, resource: str) -> bool:
    if caller.role == roles.SERVICE:
        return True
    if caller.role not in rule.tokens:
        return False
    if caller.role == roles.INVOKER:
        return resource == caller.subject
    if caller.role != roles.WORKLOAD or permission == "identity.read":
        return True
    if permission in ("run.append", "collection.write"):
        return resource == caller.subject
    if permission == "secret.access":
        return any(resource in (secret, names.parent_of(secret)) for secret in caller.secrets)
    return names.workspace_of(resource) == names.workspace_of(caller.subject)


def _person_may(caller: Caller, rule: Rule, resource: str) -> bool:
    """For what lies in no workspace."""
    if roles.ADMINISTRATOR in rule.platform and caller.administrator:
        return True
    if roles.SELF in rule.platform and f"{resource}/".startswith((f"{caller.subject}/", f"{_ME}/")):
        return True
    return roles.ANY_PERSON in rule.platform


def _check_form(permission: str, resource: str) -> None:
    """Raises `InvalidArgument` for what cannot be a name there: nobody has a role in it."""
    rule, workspace = TABLE[permission], names.workspace_of(resource)
    if workspace:
        if workspace != names.WILDCARD:
            names.check_id("workspaces", workspace)
    elif rule.workspace and not (rule.platform and not resource):
        raise InvalidArgument(
            "INVALID_NAME",
            f"{resource[:_SHOWN]!r} is not the name of something in a workspace.",
            "Give a name like workspaces/demo.",
        )


# What a request type has to be looked through for, found once for each type.


@cache
def _subject_paths(kind: Descriptor) -> tuple[tuple[str, ...], ...]:
    fields = kind.fields_by_name
    own = tuple((name,) for name in _SUBJECT_FIELDS if name in fields and _is_text(fields[name]))
    nested = tuple(
        (field.name, "name")
        for field in kind.fields
        if field.message_type is not None
        and not field.is_repeated
        and "name" in field.message_type.fields_by_name
    )
    return own or nested


@dataclass(frozen=True)
class _Field:
    """A field that holds names, or messages (`inner`) that do."""

    name: str
    is_repeated: bool
    inner: "tuple[_Field, ...]" = ()


@cache
def _plan(kind: Descriptor, depth: int = 0, in_list: bool = False) -> tuple[_Field, ...]:
    """Where names are; the `name` of one message in a list is only what its owner calls it."""
    found = []
    for field in kind.fields:
        if _is_text(field) and field.name in NAME_FIELDS and not (in_list and field.name == "name"):
            found.append(_Field(field.name, field.is_repeated))
        elif _may_hold_names(field) and depth < _DEPTH:
            inner = _plan(field.message_type, depth + 1, in_list or field.is_repeated)
            if inner:
                found.append(_Field(field.name, field.is_repeated, inner))
    return tuple(found)


def _is_text(field: Any) -> bool:
    return bool(field.type == FieldDescriptor.TYPE_STRING)


def _may_hold_names(field: Any) -> bool:
    return field.message_type is not None and not field.message_type.GetOptions().map_entry


def _named(message: Message, plan: tuple[_Field, ...]) -> Iterator[str]:
    for field in plan:
        value = getattr(message, field.name)
        for item in value if field.is_repeated else (value,):
            if field.inner:
                yield from _named(item, field.inner)
            elif item.startswith(_WORKSPACES):
                yield item
