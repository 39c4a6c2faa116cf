"""`azureml.ai.monitoring`: a scoring script collects its inputs and outputs itself."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

from .. import collecting

MAX_COLLECTORS = 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TYPES = {"model_inputs": "inputs", "model_outputs": "outputs"}


class CorrelationContext:
    """What belongs together."""

    def get_id(self) -> str:
        """The id that all events of it carry."""
        raise NotImplementedError

    def get_headers(self) -> dict[str, str]:
        """Headers of the request."""
        return {}


class BasicCorrelationContext(CorrelationContext):
    """A context with an id; without one that of the request, or a new one."""

    def __init__(self, id: Any = None, headers: dict[str, str] | None = None) -> None:
        self._id = str(id) if id else _state.request_id or str(uuid.uuid4())
        self._headers = headers or {}

    def get_id(self) -> str:
        """The id that all events of it carry."""
        return self._id

    def get_headers(self) -> dict[str, str]:
        """Headers of the request."""
        return self._headers


class _State:
    """What all collectors of this process share."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.request_id = ""
        # The request with which the platform tries the deployment: no data.
        self.is_sample = False
        self.settings = collecting.Settings.from_environment()
        self._writer: collecting.Writer | None = None

    @property
    def writer(self) -> collecting.Writer:
        if self._writer is None:
            self._writer = collecting.Writer(self.settings)
        return self._writer


_state = _State()


def is_used() -> bool:
    """Whether the script has a collector, so that it has to be told which request it answers."""
    return bool(_state.names)


def begin(meta: bytes) -> None:
    """The request that `run` answers from now on; empty for several at once."""
    _state.request_id, _state.is_sample = "", False
    if meta and _state.names:
        headers = dict(json.loads(meta)["headers"])
        _state.request_id = str(headers.get("x-request-id", ""))
        _state.is_sample = "x-stellwerk-sample" in headers


class Collector:
    """Keeps what `collect` gets under a name; up to five in a script.

    `model_inputs` and `model_outputs` are the names that monitoring knows. `on_error` gets what goes
    wrong; without it that is raised. A name that the deployment does not collect keeps nothing.
    """

    def __init__(self, name: str, on_error: Callable[[Exception], Any] | None = None) -> None:
        self.name = name
        self._on_error = on_error
        self._is_enabled = False
        try:
            self._register()
        except Exception as error:
            self._fail(error)

    def _register(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot be a collection: use letters, digits, '_' and '-'")
        if self.name in ("request", "response"):
            raise ValueError(f"{self.name!r} is collected without a Collector")
        if self.name not in _state.names and len(_state.names) >= MAX_COLLECTORS:
            raise ValueError(f"a script has up to {MAX_COLLECTORS} collectors")
        if self.name not in _state.names:
            _state.names.append(self.name)
        self._is_enabled = _state.settings.wants(self.name)
        if not self._is_enabled:
            print(f"stellwerk-scorer: this deployment does not collect {self.name!r}", flush=True)

    def collect(self, data: Any, correlation_context: CorrelationContext | None = None) -> CorrelationContext:
        """Keeps a DataFrame, or what JSON can hold; a context makes it belong to an earlier call.

        Raises, or tells `on_error`, TypeError for what cannot be written. Never waits for the disk.
        """
        context = correlation_context or BasicCorrelationContext()
        try:
            self._collect(data, context)
        except Exception as error:
            self._fail(error)
        return context

    def _collect(self, data: Any, context: CorrelationContext) -> None:
        settings = _state.settings
        if not self._is_enabled or _state.is_sample:
            return
        if not settings.samples(_state.request_id or context.get_id()):
            return
        kind = type(data)
        event = collecting.Event(
            type=_TYPES.get(self.name, self.name),
            request_id=_state.request_id,
            correlation_id=context.get_id(),
            content_type="application/json",
            body=_json(data),
            data_type=f"{kind.__module__}.{kind.__qualname__}",
        )
        _state.writer.put(self.name, event)

    def _fail(self, error: Exception) -> None:
        if self._on_error is None:
            raise error
        self._on_error(error)


def _json(data: Any) -> bytes:
    """Of a DataFrame its rows as objects."""
    if hasattr(data, "to_json"):
        text = data.to_json(orient="records")
    else:
        text = json.dumps(data, ensure_ascii=False, default=_plain)
    return str(text).encode(errors="replace")


def _plain(value: Any) -> Any:
    for convert in ("tolist", "item", "isoformat"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    raise TypeError(f"{type(value).__name__} cannot be collected: give a DataFrame or what JSON can hold")
