"""What git says about a source folder (contract 4.5 of Azure ML's run properties)."""

import subprocess
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit, urlunsplit

_TIMEOUT_SECONDS = 5.0
_PATCH_TIMEOUT_SECONDS = 30.0


class Facts(TypedDict, total=False):
    """The fields of `stellwerk.runs.v1.GitInfo`."""

    repository_uri: str
    branch: str
    commit: str
    dirty: bool
    patch: str


def facts(folder: Path) -> Facts:
    """What git knows of the folder; empty outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    return {
        "repository_uri": _without_password(_git(folder, "ls-remote", "--get-url")),
        "branch": _git(folder, "symbolic-ref", "--short", "-q", "HEAD"),
        "commit": commit,
        "dirty": bool(_git(folder, "status", "--porcelain", ".")),
    }


def write_patch(folder: Path, place: Path) -> bool:
    """Writes what of the folder is not committed to `place`; whether there is anything.

    New files that git does not know are not in it: the snapshot holds them.
    """
    diff = ["diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--", "."]
    try:
        with place.open("wb") as out:
            result = subprocess.run(
                ["git", "-C", str(folder), *diff],
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=_PATCH_TIMEOUT_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0 and place.stat().st_size > 0


def _git(folder: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _without_password(uri: str) -> str:
    """Users put tokens into clone URLs; those must not end in the journal."""
    parts = urlsplit(uri)
    if not parts.scheme or "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
