"""The loaded scoring script: what it takes, and how one request, or several at once, calls it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from . import batching, flask_request, inputs, loading, shims, swagger
from .inputs import BadInput
from .shims import monitoring

# What the parsers of JSON raise, each with a class of its own.
_JSON_ERRORS = frozenset({"JSONDecodeError", "RecursionError"})
# The function of `inference-schema` that turns JSON into the type of a parameter.
_CONVERSION = "_deserialize_input_argument"

Call = Callable[[], Any]


class Script:
    """A scoring script; raises `LoadError` when it is none or `init()` fails."""

    def __init__(self, path: str) -> None:
        shims.install()
        module = loading.load_module(path)
        init = loading.function(module, "init")
        # Azure's designer puts a driver before the script, whose run() only hands on.
        driver = getattr(module, "driver_module", None)
        has_driver = isinstance(driver, ModuleType) and hasattr(driver, "run")
        self._run = loading.function(
            driver if isinstance(driver, ModuleType) and has_driver else module, "run"
        )
        self._parameters, self.wants_headers = inputs.parameters_of(self._run)
        self._first = self._parameters[0].name
        self.mode = inputs.mode_of(self._run, self._parameters)
        self._kinds = swagger.parameter_kinds(self._run)
        loading.call_init(init)

    @property
    def description(self) -> dict[str, Any]:
        """What the front must know to talk to this script."""
        return {
            "mode": self.mode,
            "tensors": "named" if self.mode == "schema" else "text",
            "envelope": self.mode == "rawhttp" or self.wants_headers or monitoring.is_used(),
            "batches": self.mode != "rawhttp" and not self.wants_headers,
            "swagger": swagger.documents(self._run),
            "platform": "stellwerk_script",
            "inputs": [],
            "outputs": [],
        }

    def of_files(self, paths: list[str]) -> Call:
        """The call that scores a mini-batch."""
        return functools.partial(self._run, **{self._first: paths})

    def prepare(self, is_tensors: bool, meta: bytes, payload: bytes) -> Call:
        """The call that answers a request; raises `BadInput`."""
        monitoring.begin(meta)
        if self.mode == "raw" and not self.wants_headers:
            return functools.partial(self._run, **{self._first: _text(payload)})
        if self.mode == "rawhttp":
            return self._with_request(meta, payload)
        arguments = self._arguments(is_tensors, meta, payload)
        if self.wants_headers:
            arguments[inputs.HEADERS_PARAMETER] = inputs.headers_of(meta)
        return functools.partial(self._run, **arguments)

    def _with_request(self, meta: bytes, payload: bytes) -> Call:
        more = {inputs.HEADERS_PARAMETER: inputs.headers_of(meta)} if self.wants_headers else {}
        call = flask_request.call(self._run, self._first, meta, payload)
        if call is None:
            call = functools.partial(self._run, **{self._first: inputs.raw_request(meta, payload)})
        return functools.partial(call, **more)

    def _arguments(self, is_tensors: bool, meta: bytes, payload: bytes) -> dict[str, Any]:
        if self.mode == "raw":
            return {self._first: _text(payload)}
        if is_tensors:
            return inputs.bind_tensors(inputs.parse_json(payload), self._parameters, self._kinds)
        return inputs.parse_object(payload, self._parameters)

    def merge(
        self, is_tensors: bool, metas: Sequence[bytes], payloads: Sequence[bytes]
    ) -> tuple[Call, list[int]] | None:
        """One call for several requests, and the rows of each; None if they do not go together."""
        monitoring.begin(b"")
        documents = [inputs.parse_json(payload) for payload in payloads]
        if is_tensors:
            keys = set(documents[0])
        elif self.mode == "schema":
            keys = {name for name, kind in self._kinds.items() if kind == "array"}
        else:
            keys = {"data", "inputs"}
        merged = batching.merge(documents, keys)
        if merged is None:
            return None
        text, rows = json.dumps(merged.document).encode(), merged.rows
        return self.prepare(is_tensors, b"", text), rows

    def blame(self, error: BaseException, payload: bytes) -> BadInput | None:
        """The client's fault behind an error of `run`, None if it is the script's."""
        if self.mode == "schema":
            frames, conversion = error.__traceback__, False
            while frames is not None:
                conversion = conversion or frames.tb_frame.f_code.co_name == _CONVERSION
                frames = frames.tb_next
            if conversion and isinstance(error, Exception):
                return BadInput("INVALID_INPUT", f"The input is not what the script's schema says: {error}")
        # A script may as well take text that is no JSON, and fail on it for reasons of its own.
        is_parsing = not _JSON_ERRORS.isdisjoint(kind.__name__ for kind in type(error).__mro__)
        if self.mode == "raw" and is_parsing and not _is_json(payload):
            return BadInput("INVALID_JSON", "The body is not valid JSON.")
        return None


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise BadInput("INVALID_UTF8", "The body is not UTF-8 text.") from None


def _is_json(payload: bytes) -> bool:
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return True
