"""Virtual environments for tests: those of users' scripts, and of clients that cannot live in ours.

They lie in the user's cache folder, named after what is in them, and are made by uv when missing.
"""

import asyncio
import hashlib
import os
import shutil
import sys
from pathlib import Path


async def python_with(*packages: str) -> str:
    """The interpreter of an environment with these packages and nothing else."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256("\n".join((sys.version, *packages)).encode()).hexdigest()[:16]
    folder = cache / "stellwerk" / "tests" / key
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        # Several test runs may want it at once: each makes its own, and the first to be ready stays.
        fresh = folder.with_name(f"{key}-{os.getpid()}")
        await _uv("venv", "--quiet", "--clear", "--relocatable", "--python", sys.executable, str(fresh))
        install = (
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            "--python",
            str(fresh / "bin" / "python"),
        )
        await _uv(*install, *packages)
        (fresh / "complete").touch()
        try:
            fresh.rename(folder)
        except OSError:
            shutil.rmtree(fresh)
    return str(python)


async def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    assert found is not None, "uv makes the environments of these tests: run `make setup`"
    process = await asyncio.create_subprocess_exec(
        found, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
