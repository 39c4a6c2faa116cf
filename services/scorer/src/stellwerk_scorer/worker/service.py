"""Answers frames with what user code makes of them; nothing that it does gets past here."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

from . import batching, frames, results
from .inputs import BadInput
from .loading import TimeUp, log_exception

_setitimer, _REAL, _clock = signal.setitimer, signal.ITIMER_REAL, time.perf_counter


class Answers(Protocol):
    """What the worker does with frames."""

    @property
    def description(self) -> dict[str, Any]:
        """What the front must know of the model."""

    def answer(self, kind: int, number: int, request_id: int, meta: bytes, payload: bytes) -> bytes:
        """The frame, or frames, that answer; raises nothing."""


class Model(Protocol):
    """What answers requests: a scoring script, or a model without one."""

    @property
    def description(self) -> dict[str, Any]:
        """What the front must know of it."""

    def prepare(self, is_tensors: bool, meta: bytes, payload: bytes) -> Callable[[], Any]:
        """The call that answers a request; raises `BadInput`."""

    def merge(
        self, is_tensors: bool, metas: list[bytes], payloads: list[bytes]
    ) -> tuple[Callable[[], Any], list[int]] | None:
        """One call for several requests, and the rows of each."""

    def blame(self, error: BaseException, payload: bytes) -> BadInput | None:
        """The client's fault behind an error."""


def load(settings: dict[str, Any]) -> Answers:
    """Loads the script, or without one the model; raises `LoadError`."""
    if settings["batch_folder"]:
        from . import mini_batch

        return mini_batch.load(settings["script"], settings["batch_folder"])
    if settings["script"]:
        from .script import Script

        return Service(Script(settings["script"]))
    from . import models

    return Service(models.load())


class Service:
    """A model behind frames."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._has_warned = False

    @property
    def description(self) -> dict[str, Any]:
        """What the front must know of the model."""
        return self._model.description

    def answer(self, kind: int, number: int, request_id: int, meta: bytes, payload: bytes) -> bytes:
        """The frame, or for a batch the frames, that answer; never raises for what user code does."""
        if kind == frames.BATCH:
            return self._answer_batch(number, payload)
        is_tensors = kind == frames.INFER
        try:
            call = self._model.prepare(is_tensors, meta, payload)
            value, took = timed(call, number)
            return results.encode(request_id, value, is_tensors, took)
        except BaseException as error:  # SystemExit included: user code must not end the worker this way
            return self._failure(request_id, error, payload)

    def _failure(self, request_id: int, error: BaseException, payload: bytes) -> bytes:
        if isinstance(error, BadInput):
            return error_frame(request_id, error.reason, error.message)
        if isinstance(error, TimeUp):
            log_exception(f"run() did not end in time (request {request_id})", error)
            return error_frame(request_id, "SCORING_TIMEOUT", "The scoring script did not answer in time.")
        if isinstance(error, results.NotSendable):
            log_exception(f"run() returned what cannot be sent (request {request_id})", error)
            return error_frame(request_id, "RESULT_NOT_JSON", f"What run() returned {error}")
        blamed = self._model.blame(error, payload)
        log_exception(f"run() failed (request {request_id})", error)
        if blamed is not None:
            return error_frame(request_id, blamed.reason, blamed.message)
        return error_frame(request_id, "SCRIPT_ERROR", f"The scoring script raised {type(error).__name__}.")

    def _answer_batch(self, number: int, payload: bytes) -> bytes:
        items = list(_unpack(payload))
        try:
            merged = self._model.merge(
                items[0][0] == frames.INFER, [item[3] for item in items], [item[4] for item in items]
            )
        except Exception:
            # Which of them is to blame shows one after the other.
            merged = None
        if merged is not None:
            answers = self._together(number, items, *merged)
            if answers is not None:
                return answers
        elif not self._has_warned:
            self._warn("requests are not alike")
        return b"".join(self.answer(*item) for item in items)

    def _together(
        self, number: int, items: list[_Item], call: Callable[[], Any], rows: list[int]
    ) -> bytes | None:
        is_tensors = items[0][0] == frames.INFER
        try:
            value, took = timed(call, number)
            parts = batching.split(value, rows)
            if parts is not None:
                return b"".join(
                    results.encode(item[2], part, is_tensors, took)
                    for item, part in zip(items, parts)  # noqa: B905  # Python 3.9 has no strict=
                )
            self._warn("its result does not have one element a row")
        except TimeUp as error:
            return b"".join(self._failure(item[2], error, b"") for item in items)
        except BaseException as error:
            log_exception(f"run() failed for a batch of {len(items)}, which are now scored singly", error)
        return None

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            print(f"stellwerk-scorer: a batch is scored request by request, for {why}", flush=True)


_Item = tuple[int, int, int, bytes, bytes]


def timed(call: Callable[[], Any], milliseconds: int) -> tuple[Any, int]:
    """What the call returns and the microseconds that it took; `TimeUp` is raised inside it."""
    _setitimer(_REAL, milliseconds / 1000)
    begun = _clock()
    try:
        value = call()
    finally:
        _setitimer(_REAL, 0)
    return value, int((_clock() - begun) * 1e6)


def _unpack(payload: bytes) -> Any:
    position = 0
    while position < len(payload):
        kind, number, request_id, meta_size, size = frames.HEADER.unpack_from(payload, position)
        middle = position + frames.HEADER.size + meta_size
        meta = payload[position + frames.HEADER.size : middle]
        position = middle + size
        yield kind, number, request_id, meta, payload[middle:position]


def error_frame(request_id: int, reason: str, message: str) -> bytes:
    meta = json.dumps({"reason": reason, "message": message}).encode()
    return frames.encode(frames.ERROR, request_id, meta)
