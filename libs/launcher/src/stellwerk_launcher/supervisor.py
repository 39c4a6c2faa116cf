"""Starts the processes of a stack in order, restarts what dies, and stops all in reverse order."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from stellwerk_launcher.context import ProcessSpec
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.process import Child, shorten

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0
# A process that lived this long starts again with the shortest delay.
STEADY_SECONDS = 30.0
LOG_INTERVAL_SECONDS = 30.0
SLOW_STOP_SECONDS = 2.0

Report = Callable[[str], None]


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Does all side by side; raises the first `LauncherError`, after the rest was cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in work:
                group.create_task(part)
    except BaseExceptionGroup as errors:
        for error in errors.exceptions:
            if isinstance(error, LauncherError):
                raise error from None
        raise errors.exceptions[0] from errors


class Supervisor:
    """Holds the children of one stack; `on_change` is called after every change of one of them."""

    def __init__(self, logs: Path, report: Report, on_change: Callable[[], None] = lambda: None) -> None:
        self.children: dict[str, Child] = {}
        self._logs = logs
        self._report = report
        self._on_change = on_change
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._stopping = False

    async def start(
        self,
        specs: Sequence[ProcessSpec],
        initialise: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Starts processes side by side and returns when all are ready and set up.

        Raises the first `LauncherError`; the caller then calls `stop`, which ends what was started.
        """
        await together(*(self._start_one(spec, initialise) for spec in specs))

    async def _start_one(
        self, spec: ProcessSpec, initialise: Callable[[str], Awaitable[None]] | None
    ) -> None:
        child = Child(spec, self._logs / f"{spec.name}.log")
        self.children[spec.name] = child
        began = time.monotonic()
        await child.start()
        self._on_change()
        await child.wait_until_ready()
        if initialise is not None:
            await initialise(spec.name)
        where = f" at {spec.address}" if spec.address else ""
        self._report(f"{spec.name} is ready{where} ({time.monotonic() - began:.1f} s)")
        self._watchers[spec.name] = asyncio.create_task(self._watch(child))
        self._on_change()

    async def _watch(self, child: Child) -> None:
        """Restarts the process each time it dies, on the same address, slower each time."""
        delay = FIRST_DELAY_SECONDS
        began = time.monotonic()
        while not self._stopping:
            assert child.process is not None
            await child.process.wait()
            if self._stopping:
                return
            delay = FIRST_DELAY_SECONDS if time.monotonic() - began > STEADY_SECONDS else delay
            child.ready = False
            child.restarts += 1
            child.last_reason = child.reason()
            self._report(f"{child.spec.name} died: {child.last_reason}; starting it again in {delay:.1f} s")
            self._on_change()
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)
            began = time.monotonic()
            await self._restart(child)
            self._on_change()

    async def keep_logs_short(self) -> None:
        """Bounds the logs for ever; a full disk is no reason to stop anything."""
        while True:
            await asyncio.sleep(LOG_INTERVAL_SECONDS)
            for child in list(self.children.values()):
                try:
                    await asyncio.to_thread(shorten, child.log)
                except OSError as error:
                    self._report(f"{child.log} could not be shortened: {error.strerror}")

    async def _restart(self, child: Child) -> None:
        """One try; when it fails the process is dead again and the watcher takes its next turn."""
        try:
            await child.start()
            self._on_change()
            await child.wait_until_ready()
        except (LauncherError, OSError) as error:
            self._report(f"{child.spec.name} did not come back: {error}")
            await child.stop()
            return
        self._report(f"{child.spec.name} is ready again")

    async def stop_one(self, name: str) -> None:
        """Stops one process for good."""
        watcher = self._watchers.pop(name, None)
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        child = self.children.get(name)
        if child is not None:
            began = time.monotonic()
            await child.stop()
            seconds = time.monotonic() - began
            if seconds > SLOW_STOP_SECONDS:
                self._report(f"{name} took {seconds:.1f} s to stop")
            self._on_change()

    async def stop(self, order: Sequence[Sequence[str]]) -> None:
        """Stops group after group; whatever is in no group goes last."""
        self._stopping = True
        named = {name for group in order for name in group}
        rest = tuple(name for name in self.children if name not in named)
        for group in (*order, rest):
            await asyncio.gather(*(self.stop_one(name) for name in group))
