"""Resource names: `workspaces/demo/runs/amber-fox-1` (google.aip.dev/122)."""

import re

from stellwerk_platform.errors import InvalidArgument

_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_RULES: dict[str, tuple[re.Pattern[str], str]] = {
    "workspaces": (re.compile(r"[a-z0-9][a-z0-9-]{0,30}[a-z0-9]"), "2 to 32 characters of a-z, 0-9 and '-'"),
    "experiments": (
        re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,255}"),
        "1 to 256 characters of A-Z, a-z, 0-9, '_', '.' and '-'",
    ),
    "snapshots": (re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits"),
    "versions": (re.compile(r"[1-9][0-9]{0,8}|latest"), "a number from 1, or 'latest'"),
}
_DEFAULT = (_ID, "1 to 63 characters of a-z, 0-9, '_', '.' and '-', beginning with a letter or digit")
WILDCARD = "-"


def check_id(collection: str, value: str) -> str:
    """Returns `value` if it may be an id in `collection`, else raises `InvalidArgument`."""
    pattern, rule = _RULES.get(collection, _DEFAULT)
    # Dots separate the parts of a NATS subject, none of which may be empty.
    if not pattern.fullmatch(value) or ".." in value or value.endswith("."):
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise InvalidArgument("INVALID_NAME", f"{shown!r} is not a valid id in {collection}.", f"Use {rule}.")
    return value


def parse(pattern: str, name: str, *, wildcard: bool = False) -> tuple[str, ...]:
    """The ids in `name`, which must match `pattern`, for example `workspaces/*/runs/*`.

    With `wildcard` the last id may be "-", meaning all. Raises `InvalidArgument`.
    """
    wanted, given = pattern.split("/"), name.split("/")
    if len(wanted) != len(given) or any(w not in ("*", g) for w, g in zip(wanted, given, strict=False)):
        raise InvalidArgument(
            "INVALID_NAME",
            f"{name[:200]!r} is not a name of the form {pattern}.",
            f"Give a name like {pattern}.",
        )
    ids = []
    for index, part in enumerate(given):
        if wanted[index] == "*":
            if not (wildcard and part == WILDCARD and index == len(given) - 1):
                check_id(given[index - 1], part)
            ids.append(part)
    return tuple(ids)


def workspace_of(name: str) -> str:
    """The workspace id in a name, or "" for a name outside workspaces."""
    parts = name.split("/", 2)
    return parts[1] if len(parts) >= 2 and parts[0] == "workspaces" else ""


def parent_of(name: str, levels: int = 1) -> str:
    """The name without its last `levels` pairs of collection and id."""
    return name.rsplit("/", 2 * levels)[0]


def id_of(name: str) -> str:
    """The last segment."""
    return name.rsplit("/", 1)[-1]
