"""Fetches the uv that `uv.lock` pins, with nothing but the standard library.

A fresh Debian or Ubuntu has Python without pip and without venv (`ensurepip` is a package
of its own), so the usual `pip install uv` may not be there. The lock file already names the
address and the digest of every uv wheel; the binary inside is all that is needed.
"""

import hashlib
import io
import os
import platform
import shutil
import sys
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ATTEMPTS = 4
CURE = "Install uv yourself (https://docs.astral.sh/uv/), put it on the PATH and run make again."


def wheel() -> dict[str, Any]:
    """The entry of `uv.lock` for this machine's uv wheel."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    package = next(package for package in lock["package"] if package["name"] == "uv")
    system = {
        "Linux": "musllinux" if Path("/etc/alpine-release").exists() else "manylinux",
        "Darwin": "macosx",
    }
    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    for entry in package["wheels"]:
        name = entry["url"].rsplit("/", 1)[1]
        if system.get(platform.system(), "?") in name and name.endswith(f"{machine}.whl"):
            return dict(entry)
    sys.exit(f"setup: uv has no wheel for {platform.system()} on {machine}. {CURE}")


def download(url: str) -> bytes:
    """The body of `url`; tries again, because a bare CI machine's network may be slow to come up."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                body: bytes = response.read()
                return body
        except OSError as error:
            if attempt == ATTEMPTS:
                sys.exit(f"setup: {url} cannot be fetched: {error}. {CURE}")
            time.sleep(attempt)
    raise AssertionError("unreachable")


def main(target: Path) -> None:
    entry = wheel()
    print(f"setup: no uv on the PATH; fetching {entry['url'].rsplit('/', 1)[1]}", file=sys.stderr)
    content = download(entry["url"])
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != entry["hash"]:
        sys.exit(
            "setup: the uv that came is not the one that uv.lock pins. Nothing was installed; try again."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
        with archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    partial.chmod(0o755)
    partial.replace(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
