"""Starts the process of a comparison, waits for its result, and leaves nothing of it behind."""

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from stellwerk_inference.monitors.compare.failures import CheckFailed

log = logging.getLogger(__name__)
_MODULE = "stellwerk_inference.monitors.compare"
_MOST_SECONDS = 600.0
_LOGGED = 2_000
# What a process needs to find libraries, a folder and authorities; none of the service's own variables.
_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH")


async def compare(request: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the comparison; raises `CheckFailed`. Canceled, it ends the process."""
    return await _run("compare", request)


async def look(request: Mapping[str, Any]) -> None:
    """Looks for columns in a baseline (`compare/known.py`); raises `CheckFailed`, and ends like `compare`."""
    await _run("look", request)


async def _run(task: str, request: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="stellwerk-monitor-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-W", "ignore", "-m", _MODULE, task, folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        )
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                output, errors = await _communicate(process, json.dumps(request).encode())
        except TimeoutError:
            raise CheckFailed(
                "CHECK_TOO_SLOW",
                f"The comparison took more than {_MOST_SECONDS / 60:.0f} minutes.",
                "Compare fewer rows (`--max-rows`), a shorter window, or smaller files (`--baseline-path`).",
            ) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
    return _result(process.returncode, output, errors)


async def _communicate(process: asyncio.subprocess.Process, request: bytes) -> tuple[bytes, bytes]:
    try:
        return await process.communicate(request)
    except RuntimeError:
        # So uvloop says that the process ended before it was asked.
        assert process.stderr is not None
        errors = await process.stderr.read()
        await process.wait()
        return b"", errors


def _result(code: int | None, output: bytes, errors: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        if code == -signal.SIGKILL:
            raise CheckFailed(
                "CHECK_TOO_LARGE",
                "The comparison was killed, as systems do that lack memory.",
                "Compare fewer rows (`--max-rows`) or columns, or smaller files (`--baseline-path`).",
            ) from None
        log.error("A comparison ended with %s: %s", code, errors[-_LOGGED:].decode(errors="replace"))
        raise CheckFailed(
            "COMPARISON_DIED",
            f"The comparison ended with {code} and no result.",
            "See the log of `inference` (`stellwerk logs inference`).",
        ) from None
    if "failure" in answer:
        raise CheckFailed(**answer["failure"])
    result: dict[str, Any] = answer["result"]
    return result
