"""What both formats become, and how their keys are checked."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stellwerk.errors import StellwerkError, invalid

_TEMPLATE = re.compile(r"\$\{\{\s*([^}]*?)\s*\}\}")


@dataclass
class Job:
    """What to submit. The same fields come from a file and from options; options win."""

    command: str = ""
    code: Path = Path()
    environment: str = ""
    packages: list[str] | None = None
    python_version: str = ""
    compute: str = "local"
    experiment: str = ""
    name: str = ""
    display_name: str = ""
    description: str = ""
    parent: str = ""
    timeout_seconds: float | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        """What `Runs.submit` takes besides the command."""
        given = {key: value for key, value in vars(self).items() if key != "command"}
        return {**given, "packages": self.packages or (), "parent": self.parent or None}

    def fill(self, command: str, literals: Mapping[str, str]) -> str:
        """Puts inputs in place of `${{inputs.x}}`: the folder of data, the text of a literal."""

        def value(match: re.Match[str]) -> str:
            kind, _, name = match[1].partition(".")
            if kind == "inputs" and name in self.inputs:
                return '"$STELLWERK_INPUT_' + re.sub(r"[-.]", "_", name).upper() + '"'
            if kind == "inputs" and name in literals:
                return shlex.quote(literals[name])
            there = ", ".join(sorted({*self.inputs, *literals})) or "none"
            raise invalid(
                "JOB_INPUT_UNKNOWN",
                f"The command uses {match[0]}, which is no input; there are: {there}.",
                "Add it to inputs. What the command writes to ./outputs is kept with the run.",
            )

        return _TEMPLATE.sub(value, command)


def refuse(given: Mapping[Any, Any], known: set[str], reasons: Mapping[str, str], where: str) -> None:
    """Raises for a key that is none of the `known`: with its reason, or with a name that looks like it."""
    for key in map(str, given):
        if key in known:
            continue
        if key in reasons:
            raise unsupported(key, where, reasons[key])
        close = get_close_matches(key, [*known, *reasons], 1)
        raise invalid(
            "JOB_KEY_UNKNOWN",
            f"{where} has the key {key!r}, which the format does not have.",
            f"Did you mean {close[0]!r}?" if close else f"It has: {', '.join(sorted(known))}.",
        )


def unsupported(key: str, where: str, why: str) -> StellwerkError:
    """A key that the format has and Stellwerk cannot follow."""
    return invalid(
        "JOB_KEY_UNSUPPORTED",
        f"Stellwerk does not act on {key!r} ({where}): {why}.",
        "Remove it from the file.",
    )


def text(given: Mapping[str, Any], key: str, default: str = "") -> str:
    """The text of a key; raises for a list or mapping."""
    value = given.get(key)
    if isinstance(value, dict | list):
        raise invalid("JOB_FILE_INVALID", f"{key} is not text.", f"Write {key}: TEXT.")
    if isinstance(value, bool):
        return str(value).lower()
    return default if value is None else str(value)


def texts(given: Mapping[str, Any], key: str) -> dict[str, str]:
    """The pairs of a key."""
    return {str(name): text({key: value}, key) for name, value in mapping(given, key).items()}


def mapping(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping of a key; empty when it is not there."""
    value = given.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid("JOB_FILE_INVALID", f"{key} is not a mapping.", "Write NAME: VALUE lines.")
    return {str(name): item for name, item in value.items()}


def names_list(given: Mapping[str, Any], key: str) -> list[str]:
    """A list of names; empty when it is not there."""
    value = given.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise invalid("JOB_FILE_INVALID", f"{key} is no list of names.", "Write - NAME lines.")
    return list(value)


def seconds(given: Mapping[str, Any], key: str) -> float | None:
    """A duration in seconds; None when it is not there or 0."""
    value = given.get(key)
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise invalid("JOB_FILE_INVALID", f"{key} is {value!r}, no number of seconds.", "Write a number.")
    return float(value)
