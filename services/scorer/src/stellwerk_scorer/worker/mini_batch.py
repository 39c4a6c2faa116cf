"""Scores mini-batches: `run` gets paths of files, and the results become files beside them."""

from __future__ import annotations

import errno
import json
import os
import traceback
from typing import Any

from . import frames, rows
from .loading import LoadError, TimeUp, log_exception
from .script import Script
from .service import error_frame, timed

# Of what the script raised.
_SHOWN = 500


def load(script: str, folder: str) -> MiniBatches:
    """Loads the script; raises `LoadError`."""
    if not script:
        raise LoadError("SCRIPT_NOT_FOUND", "A batch deployment needs a scoring script.")
    loaded = Script(script)
    if loaded.mode != "raw" or loaded.wants_headers:
        raise LoadError(
            "RUN_SIGNATURE_INVALID",
            "run(mini_batch) of a batch deployment gets a list of paths: it has neither @input_schema, "
            "@rawhttp nor request_headers.",
        )
    return MiniBatches(loaded, folder)


class _WriteFailed(Exception):
    """The results could not be written; the cause tells why."""


class MiniBatches:
    """A scoring script behind frames, each of which is a mini-batch below `folder`."""

    def __init__(self, script: Script, folder: str) -> None:
        self._script = script
        self._folder = folder

    @property
    def description(self) -> dict[str, Any]:
        """What the front must know of the script."""
        return {"mode": "batch", "tensors": "none", "batches": False, "platform": "stellwerk_batch_script"}

    def answer(self, kind: int, number: int, request_id: int, meta: bytes, payload: bytes) -> bytes:
        """The frame that answers; never raises for what user code does."""
        request = json.loads(payload)
        try:
            outcome, took = timed(lambda: self._score(request), number)
        except BaseException as error:  # SystemExit included: user code must not end the worker this way
            first = request["files"][0]
            log_exception(f"a mini-batch failed: {len(request['files'])} files from {first}", error)
            return error_frame(request_id, *_reason(error, number))
        return frames.encode(frames.RESULT, request_id, b"", json.dumps(outcome).encode(), took)

    def _score(self, request: dict[str, Any]) -> dict[str, Any]:
        base, files = os.path.join(self._folder, request["folder"]), request["files"]
        value = self._script.of_files([os.path.join(base, "files", path) for path in files])()
        elements, name = rows.elements(value)
        try:
            return _write(os.path.join(base, "results"), request, elements, name)
        except OSError as error:
            raise _WriteFailed from error


def _write(folder: str, request: dict[str, Any], elements: list[Any], name: str) -> dict[str, Any]:
    files, action = request["files"], request["action"]
    scored = [element for element in elements if element is not None]
    written: list[str] = []
    if action == "BY_FILE":
        written = rows.write_by_file(folder, files, elements)
    elif action == "APPEND_ROW" and scored:
        written = [request["output_file_name"]]
        rows.write_table(folder, written[0], scored, name)
    # A script may make several rows of a file.
    succeeded = min(len(scored), len(files))
    return {"succeeded_file_count": succeeded, "row_count": len(scored), "files": written}


def _reason(error: BaseException, milliseconds: int) -> tuple[str, str]:
    if isinstance(error, TimeUp):
        return "SCORING_TIMEOUT", f"run() did not end in {round(milliseconds / 1000, 2):g} s."
    if isinstance(error, rows.BadResult):
        return error.reason, error.message
    if isinstance(error, _WriteFailed):
        cause = error.__cause__
        is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        return "NODE_DISK_FULL" if is_full else "RESULTS_NOT_WRITTEN", f"Results cannot be written: {cause}"
    text = traceback.format_exception_only(type(error), error)[-1].strip()
    return "SCRIPT_ERROR", f"run() raised {text[:_SHOWN]}"
