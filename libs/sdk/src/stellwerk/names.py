"""From what people type to resource names: `digits:1` -> `workspaces/demo/datasets/digits/versions/1`.

Whether an id is valid is the services' decision; here it is only put in its place.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from stellwerk.errors import invalid

if TYPE_CHECKING:
    from stellwerk_protos.common.v1 import common_pb2

# Of the 63 that an id may have.
_CHILD_CHARACTERS = 55
_CHILD = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")


def workspace(name: str) -> str:
    """`demo` or `workspaces/demo` -> `workspaces/demo`."""
    return name if name.startswith("workspaces/") else f"workspaces/{name}"


def resource(parent: str, collection: str, name: str) -> str:
    """An id below `parent`, or a full name as it is."""
    return name if name.startswith("workspaces/") else f"{parent}/{collection}/{name}"


def version(parent: str, collection: str, reference: str) -> str:
    """`digits:1`, `digits@latest`, `digits` (the latest) or a full name; the prefix `azureml:` is dropped."""
    if reference.startswith("workspaces/"):
        return reference
    reference = reference.removeprefix("azureml:")
    for separator in (":", "@"):
        name, found, number = reference.partition(separator)
        if found:
            break
    if not name or (found and not number):
        raise invalid("INVALID_REFERENCE", f"{reference!r} names no version.", "Write NAME:NUMBER or NAME.")
    return f"{parent}/{collection}/{name}/versions/{number or 'latest'}"


def last(name: str) -> str:
    """The id at the end of a name."""
    return name.rsplit("/", 1)[-1]


def short_version(name: str) -> str:
    """`…/models/digits/versions/1` -> `digits:1`."""
    parts = name.split("/")
    return f"{parts[-3]}:{parts[-1]}" if len(parts) >= 3 and parts[-2] == "versions" else last(name)


def run(parent: str, given: object) -> str:
    """The full name of a run that is given by id, by name, or as an object that has one."""
    name = given if isinstance(given, str) else getattr(given, "name", "")
    if not isinstance(name, str) or not name:
        raise invalid("RUN_MISSING", f"{given!r} names no run that was started.", "Name a run.")
    return resource(parent, "runs", name)


def child_run(parent: str, name: str) -> str:
    """The id of a run's child: the parent's id and the name, so that it is free in every other run.

    A name that does not fit into an id, and one that could be read in two ways (dots, two hyphens), is
    told apart by a digest. There is room for what `another` adds.
    """
    plain = f"{last(parent)}.{name}"
    if _CHILD.fullmatch(name) and len(plain) <= _CHILD_CHARACTERS:
        return plain
    word = re.sub(r"[^a-z0-9_]+", "-", name.lower())[:20].strip("-")
    digest = hashlib.sha256(f"{parent}/{name}".encode()).hexdigest()[:8]
    return f"{last(parent)[:25].rstrip('.')}.{f'{word}-{digest}'.lstrip('-')}"


def another(run_id: str) -> str:
    """An id for one more run of the same name below the same parent."""
    return f"{run_id}--{secrets.token_hex(3)}"


def place(files: Iterable["common_pb2.File"], path: Path, target: str) -> None:
    """Moves the files of the local `path`: one file becomes `target`, those of a folder lie below it."""
    is_file = path.is_file()
    for file in files:
        file.path = (target or file.path) if is_file else f"{target}/{file.path}".lstrip("/")


def portable(path: str) -> str:
    """The path as the platform may store it: names that are no UTF-8, or hold control characters or
    backslashes, are replaced and marked with a digest, so that two of them stay two."""
    return "/".join(_portable_name(name) for name in path.split("/"))


def _portable_name(name: str) -> str:
    raw = os.fsencode(name)
    text = "".join("_" if c in "\\\x7f" or c < " " else c for c in raw.decode(errors="replace"))
    return text if text == name else f"{text}~{hashlib.sha256(raw).hexdigest()[:8]}"
