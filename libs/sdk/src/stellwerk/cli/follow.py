"""A run as it happens: states with reason, log lines, and one line with the newest metrics."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from stellwerk import names
from stellwerk.cli import output
from stellwerk.errors import StellwerkError

if TYPE_CHECKING:
    from stellwerk import AsyncRun
    from stellwerk.points import Point

# How long logs and metrics may arrive after the run is over.
TAIL_SECONDS = 15.0
_RETRY_SECONDS = 0.5
_REDRAW_SECONDS = 0.1
_PLAIN_SECONDS = 2.0
_SHOWN_METRICS = 6
_ERASE_LINE = "\r\x1b[2K"


class Display:
    """Lines on a stream; on a terminal the last one is rewritten in place."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._partial = ""
        self._newest: dict[str, Point] = {}
        self._drawn_time = 0.0
        self._drawn = ""

    def state(self, run: "AsyncRun") -> None:
        """A change of state."""
        why = output.reason_line(run.message.reason)
        self.line(f"[{time.strftime('%H:%M:%S')}] {run.state}{f'  {why}' if why else ''}")

    def log(self, text: str) -> None:
        """A piece of the log; printed line by line."""
        *lines, self._partial = (self._partial + text).split("\n")
        if lines:
            self.line("\n".join(lines))

    def metrics(self, update: Mapping[str, Sequence["Point"]]) -> None:
        """New points."""
        for metric, points in update.items():
            if points:
                self._newest[metric] = points[-1]
        if time.monotonic() - self._drawn_time > (_REDRAW_SECONDS if self._live else _PLAIN_SECONDS):
            self._draw()

    def line(self, text: str) -> None:
        """A line of its own, above the one that is rewritten."""
        self._stream.write(f"{_ERASE_LINE if self._live else ''}{text}\n")
        if self._live and self._drawn:
            self._stream.write(self._drawn)
        self._stream.flush()

    def end(self) -> None:
        """Shows what was held back."""
        if self._partial:
            self.log("\n")
        if self._newest:
            self._draw()
            if self._live:
                self._stream.write("\n")
        self._drawn = ""
        self._stream.flush()

    def _draw(self) -> None:
        text = metrics_line(self._newest)
        self._drawn_time = time.monotonic()
        if text == self._drawn:
            return
        self._drawn = text
        self._stream.write(f"{_ERASE_LINE}{text}" if self._live else f"{text}\n")
        self._stream.flush()


def metrics_line(newest: Mapping[str, "Point"]) -> str:
    """`step 12  loss=0.0312  accuracy=0.981`"""
    latest = sorted(newest.items(), key=lambda item: item[1].time_ms)[-_SHOWN_METRICS:]
    step = max((point.step for _, point in latest), default=0)
    values = "  ".join(f"{name}={point.value:.4g}" for name, point in sorted(latest))
    return f"step {step}  {values}"


async def follow(run: "AsyncRun", *, as_json: bool) -> int:
    """Shows a run until it is over; returns the exit code. Cancelling the task detaches."""
    stream = sys.stderr if as_json else sys.stdout
    display = Display(stream)
    over = asyncio.Event()
    tails = [
        asyncio.create_task(_follow_log(run, display, over)),
        asyncio.create_task(_follow_metrics(run, display, over)),
    ]
    try:
        state = ""
        async for now in run.watch():
            if now.state != state:
                display.state(now)
            state = now.state
        over.set()
        await asyncio.wait(tails, timeout=TAIL_SECONDS)
    except asyncio.CancelledError:
        display.end()
        print(
            f"Detached; {run.id} goes on. Watch it again: stellwerk run watch {run.id}   "
            f"Cancel it: stellwerk run cancel {run.id}",
            file=sys.stderr,
        )
        raise
    finally:
        for tail in tails:
            tail.cancel()
        await asyncio.gather(*tails, return_exceptions=True)
    display.end()
    await summary(run, stream)
    if as_json:
        output.document(output.to_json(run.message))
    return 0 if run.state == "Completed" else 1


async def _follow_log(run: "AsyncRun", display: Display, over: asyncio.Event) -> None:
    """A log that is not there yet is waited for."""
    while True:
        try:
            async for text in run.log(follow=True):
                display.log(text)
            return
        except StellwerkError as error:
            if error.code != "NOT_FOUND":
                display.line(f"(log not available: {error.message})")
                return
        if over.is_set():
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _RETRY_SECONDS)


async def _follow_metrics(run: "AsyncRun", display: Display, over: asyncio.Event) -> None:
    try:
        async for update in run.watch_metrics():
            display.metrics(update)
    except StellwerkError as error:
        if error.code != "NOT_FOUND":
            display.line(f"(metrics not available: {error.message})")


async def summary(run: "AsyncRun", stream: IO[str]) -> None:
    """What came of it."""
    message = run.message
    seconds = _seconds(message.create_time, message.end_time)
    reason = message.reason
    print(f"{run.id}: {run.state} after {seconds:.1f} s", file=stream)
    if run.state != "Completed" and reason.message:
        print(f"  reason:  {output.reason(reason)}", file=stream)
        if reason.cure:
            print(f"  cure:    {reason.cure}", file=stream)
    if message.phases:
        print(f"  phases:  {phases(message.phases)}", file=stream)
    with contextlib.suppress(StellwerkError):
        metrics = await run.metrics()
        if metrics:
            values = "  ".join(f"{metric.metric}={metric.last:.4g}" for metric in metrics[:_SHOWN_METRICS])
            print(f"  metrics: {values}", file=stream)
    with contextlib.suppress(StellwerkError):
        files = await run.artifacts()
        if files:
            shown = ", ".join(f"{file.path} ({output.size(file.size_bytes)})" for file in files[:8])
            more = f", and {len(files) - 8} more" if len(files) > 8 else ""
            print(f"  outputs: {shown}{more}", file=stream)
    print(f"  see:     stellwerk run show {names.last(run.name)}", file=stream)


def phases(given: Sequence[object]) -> str:
    """`prepare_environment 0.1 s, run_command 2.0 s`"""
    parts = []
    for phase in given:
        seconds = _seconds(phase.start_time, phase.end_time)  # type: ignore[attr-defined]  # a Phase
        parts.append(f"{phase.name} {seconds:.1f} s")  # type: ignore[attr-defined]  # a Phase
    return ", ".join(parts)


def _seconds(start: object, end: object) -> float:
    total = end.ToNanoseconds() - start.ToNanoseconds()  # type: ignore[attr-defined]  # Timestamps
    return max(0.0, float(total) / 1e9)
