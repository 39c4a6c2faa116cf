"""A batch job as it happens: a bar on a terminal, else lines now and then; and what came of it."""

import sys
import time
from typing import IO, TYPE_CHECKING, Any

import click

from stellwerk import names
from stellwerk.cli import output

if TYPE_CHECKING:
    from stellwerk import BatchJob

_PLAIN_SECONDS = 5.0


def follow(job: "BatchJob", *, as_json: bool) -> int:
    """Shows a job until it is over; returns the exit code. An interrupt detaches."""
    display = Bar(sys.stderr) if sys.stderr.isatty() else Lines(sys.stderr)
    try:
        with display:
            for now in job.watch():
                display.show(now)
    except KeyboardInterrupt:
        where = f"{job.endpoint} {job.id}"
        click.echo(
            f"Detached; {job.id} goes on. Watch it again: stellwerk batch watch {where}   "
            f"Cancel it: stellwerk batch cancel {where}",
            err=True,
        )
        raise
    if as_json:
        output.document(output.to_json(job.message))
    else:
        summary(job)
    return 0 if job.state == "Completed" else 1


class Lines:
    """A line for each state, and for progress every few seconds."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._state = ""
        self._progress = ""
        self._shown_time = 0.0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, job: "BatchJob") -> None:
        """The job as it is now."""
        if job.state != self._state:
            self._state = job.state
            why = output.reason_line(job.message.reason)
            self._line(f"[{time.strftime('%H:%M:%S')}] {job.state}{f'  {why}' if why else ''}")
        text = progress_text(job.progress)
        if text != self._progress and time.monotonic() - self._shown_time > _PLAIN_SECONDS:
            self._progress = text
            self._shown_time = time.monotonic()
            self._line(text)

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Bar(Lines):
    """Lines for states, and below them a bar with the mini-batches."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        from rich import progress
        from rich.console import Console

        self._rich = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(file=stream),
            transient=True,
        )
        self._task: Any = None

    def __enter__(self) -> "Bar":
        self._rich.start()
        self._task = self._rich.add_task("waiting", total=None)
        return self

    def __exit__(self, *error: object) -> None:
        self._rich.stop()

    def show(self, job: "BatchJob") -> None:
        progress = job.progress
        done = progress.succeeded_mini_batch_count + progress.failed_mini_batch_count
        self._shown_time = time.monotonic()  # The bar says it, no line has to.
        super().show(job)
        self._rich.update(
            self._task,
            description=progress_text(progress),
            total=progress.mini_batch_count or None,
            completed=done,
        )

    def _line(self, text: str) -> None:
        self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_text(progress: Any) -> str:
    """`12/40 mini-batches, 3 running, 118/400 files, 2 files failed, 118 rows`"""
    done = progress.succeeded_mini_batch_count + progress.failed_mini_batch_count
    parts = [
        f"{done:,}/{progress.mini_batch_count:,} mini-batches",
        f"{progress.running_mini_batch_count:,} running" if progress.running_mini_batch_count else "",
        f"{progress.succeeded_file_count:,}/{progress.file_count:,} files",
        f"{progress.failed_file_count:,} files failed" if progress.failed_file_count else "",
        f"{progress.row_count:,} rows" if progress.row_count else "",
    ]
    return ", ".join(part for part in parts if part)


def summary(job: "BatchJob") -> None:
    """What came of a job that is over, on stdout."""
    message, where = job.message, f"{job.endpoint} {job.id}"
    seconds = max(0.0, (message.end_time.ToNanoseconds() - message.create_time.ToNanoseconds()) / 1e9)
    click.echo(f"{job.id}: {job.state} after {seconds:.1f} s")
    # Mini-batches that returned too little have succeeded.
    only = " --state failed" if job.progress.failed_mini_batch_count else ""
    failures = f"stellwerk batch mini-batches {where}{only}" if job.progress.failed_file_count else ""
    facts = [
        ("reason", output.reason(message.reason) if job.state != "Completed" else ""),
        ("cure", message.reason.cure if job.state != "Completed" else ""),
        ("scored", progress_text(job.progress)),
        ("failures", failures),
        ("results", names.short_version(message.output) if message.output else ""),
        ("get them", f"stellwerk batch download {where} --to results" if message.output else ""),
    ]
    output.lines((f"  {name}", value) for name, value in facts if value)
