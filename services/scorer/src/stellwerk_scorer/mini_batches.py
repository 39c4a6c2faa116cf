"""`POST /mini-batch`, which a batch deployment answers; docs/interfaces.md, "Mini-batches".

The files of a mini-batch lie in a folder that the agent has made below `STELLWERK_SCORER_BATCH_FOLDER`,
and the worker puts the results beside them: nobody who may call can name a place outside of it.
"""

import re
from typing import Any

import orjson

from stellwerk_platform.errors import InvalidArgument
from stellwerk_scorer import domain
from stellwerk_scorer.call import Call
from stellwerk_scorer.http import HttpApp

PATH = "/mini-batch"
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ACTIONS = ("APPEND_ROW", "BY_FILE", "SUMMARY_ONLY")
_MAX_FILES = 1_000
_MAX_TIMEOUT_MS = 86_400_000


class BatchApp(HttpApp):
    """Answers mini-batches and probes."""

    def _route(self, call: Call) -> None:
        if call.path == PATH:
            call.allow("POST")
            request, seconds = parse(call.exchange.body)
            job = self._plane.mini_batch(request, seconds, call.scored)
            call.wait_for(job, self._plane.pool.abandon)
        elif call.path == "/":
            super()._route(call)
        else:
            raise domain.only_mini_batches()


def parse(body: bytes) -> tuple[bytes, float]:
    """The request as the worker gets it, and the seconds that `run` may take; raises `InvalidArgument`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("INVALID_JSON", f"The body is not valid JSON: {error}.", _CURE) from None
    if not isinstance(document, dict):
        raise _invalid("The body must be a JSON object.")
    timeout_ms = document.get("timeout_ms")
    if type(timeout_ms) is not int or not 1 <= timeout_ms <= _MAX_TIMEOUT_MS:
        raise _invalid(f"timeout_ms must be a number from 1 to {_MAX_TIMEOUT_MS}.")
    return orjson.dumps(_checked(document)), timeout_ms / 1000


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    folder, files = document.get("folder"), document.get("files")
    if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
        raise _invalid("folder must be the name of a folder.")
    if not isinstance(files, list) or not 1 <= len(files) <= _MAX_FILES:
        raise _invalid(f"files must be a list of 1 to {_MAX_FILES} paths.")
    if not all(isinstance(path, str) and _is_inside(path) for path in files):
        raise _invalid("files must be paths below the folder.")
    action = document.get("action")
    if action not in _ACTIONS:
        raise _invalid(f"action must be one of {', '.join(_ACTIONS)}.")
    name = document.get("output_file_name", "")
    if action == "APPEND_ROW" and not (isinstance(name, str) and _is_inside(name) and "/" not in name):
        raise _invalid("output_file_name must be the name of a file.")
    return {"folder": folder, "files": files, "action": action, "output_file_name": name}


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return "\0" not in path and not any(part in ("", ".", "..") for part in parts)


_CURE = "Only the agent calls this path: docs/interfaces.md has its form."


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument("INVALID_REQUEST", message, _CURE)
