"""The process: a request in JSON on stdin, a result or the reason of a failure in JSON on stdout.

Its arguments are what to do, `compare` or `look`, and a folder for what it brings, which belongs to whoever
started it.
"""

import json
import os
import resource
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before NumPy is loaded: a check must not take all cores from those who answer requests.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Others reserve memory ahead, which counts.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

from stellwerk_inference.monitors.compare.failures import CheckFailed  # noqa: E402

# What the pod has room for, with the places of the service for each.
_MEMORY_BYTES = {"compare": 1 << 30, "look": 256 << 20}
_MOST_SECONDS = 900.0


def main() -> None:
    task, folder = sys.argv[1], Path(sys.argv[2])
    threading.Thread(target=_end_with_parent, args=(os.getppid(), folder), daemon=True).start()
    os.nice(10)
    with suppress(ValueError, OSError):  # not on every system
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES[task], most))
    json.dump(_answer(task, json.load(sys.stdin), folder), sys.stdout)


def _result(task: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    # SciPy takes longer to load than it takes to look at a few names.
    if task == "look":
        from stellwerk_inference.monitors.compare import known

        return known.look(known.Request.of(request), folder)
    from stellwerk_inference.monitors.compare import comparison

    return comparison.compare(comparison.Request.of(request), folder)


def _answer(task: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        return {"result": _result(task, request, folder)}
    except MemoryError:
        failure = CheckFailed(
            "CHECK_TOO_LARGE",
            f"The comparison needs more than {_MEMORY_BYTES[task] >> 20:,} MiB of memory.",
            "Compare fewer rows (`--max-rows`) or columns, or smaller files (`--baseline-path`).",
        )
    except CheckFailed as error:
        failure = error
    return {"failure": {"code": failure.code, "message": failure.message, "cure": failure.cure}}


def _end_with_parent(parent: int, folder: Path) -> None:
    """A service that was killed cannot stop its check."""
    end = time.monotonic() + _MOST_SECONDS
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(1.0)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
