"""What a script may log, in a run on a compute as in an interactive one. Standard library only.

A call appends to a local write-ahead file and returns; somebody else ships it. So no call waits for
the platform or fails because of it: an error of the disk is reported once and the training goes on.
What cannot be logged at all raises `ValueError` at once.
"""

import itertools
import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from stellwerk import values, wal

IMAGES_FOLDER = Path("outputs") / "images"
# Those of `stellwerk.runs.v1.RecordKind`.
LIST, ROW, TABLE, IMAGE, CONFUSION_MATRIX, ACCURACY_TABLE, RESIDUALS, PREDICTIONS, PARAM, TAG = range(1, 11)
_MAXIMUM_PREPARED = 10_000
_MAXIMUM_FORMS = 100


class Recorder:
    """Logs for one run from this process. Any thread may call it, and forked children too."""

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        """`folder` takes the write-ahead files; `root` holds `outputs` and `logs` (here unless given)."""
        self._folder = folder
        self._root = root or Path()
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}
        self._record_steps: dict[str, int] = {}
        self._prepared: dict[str, wal.Prefix] = {}
        self._forms: dict[tuple[str, ...], wal.Form] = {}
        self._writer: wal.Writer | None = None
        self._writer_pid = 0
        self._warned = False

    @property
    def name(self) -> str:
        """Full name of the run: `workspaces/demo/runs/amber-fox-1`."""
        raise NotImplementedError

    @property
    def outputs(self) -> Path:
        """The folder whose files are kept with the run."""
        path = self._root / "outputs"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def logs(self) -> Path:
        """The folder whose files are followed as logs of the run while they grow."""
        path = self._root / "logs"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, name: str, value: SupportsFloat, step: SupportsIndex | None = None) -> None:
        """Logs one value of a metric. Without `step` the metric counts by itself, from 0.

        NaN and infinities are kept.
        """
        number = value if type(value) is float else values.number(name, value)
        given = step if step is None or type(step) is int else values.step(step)
        prefix = (self._prepared.get(name) if type(name) is str else None) or self._prepare(name)
        if given is not None and not -0x8000000000000000 <= given <= 0x7FFFFFFFFFFFFFFF:
            values.step(given)
        with self._lock:
            last = self._steps.get(name, -1)
            at = last + 1 if given is None else given
            if at > last:
                self._steps[name] = at
            self._append(prefix.pack(time.time_ns() // 1_000_000, at, number))

    def log_metrics(self, metrics: Mapping[str, SupportsFloat], step: SupportsIndex | None = None) -> None:
        """Logs one value each of several metrics, with the same time and, if given, the same step."""
        names = tuple(metrics)
        form = self._forms.get(names) or self._form(names)
        numbers = [
            value if type(value) is float else values.number(name, value) for name, value in metrics.items()
        ]
        given = None if step is None else values.step(step)
        if not names:
            return
        with self._lock:
            last = self._steps
            if given is None:
                steps = [last.get(name, -1) + 1 for name in names]
                last.update(zip(names, steps, strict=True))
            else:
                steps = [given] * len(names)
                last.update((name, max(given, last.get(name, -1))) for name in names)
            self._append(form.pack(time.time_ns() // 1_000_000, steps, numbers))

    def log_list(self, name: str, values_: Iterable[Any], step: SupportsIndex | None = None) -> None:
        """Logs a list of numbers, of any length."""
        self._note(LIST, name, values.list_parts(values.name(name), values_), step)

    def log_row(self, name: str, /, *, step: SupportsIndex | None = None, **columns: Any) -> None:
        """Adds a row to the table of this name: `log_row("confusion", label=3, count=17)`."""
        if not columns:
            raise ValueError(f"the row of {name!r} has no columns")
        self._note(ROW, name, (values.row(values.name(name), columns),), step)

    def log_table(self, name: str, table: Mapping[str, Any], step: SupportsIndex | None = None) -> None:
        """Logs a whole table as equally long columns, of any length."""
        self._note(TABLE, name, values.table_parts(values.name(name), table), step)

    def log_image(
        self,
        name: str,
        path: str | os.PathLike[str] | None = None,
        plot: Any = None,
        step: SupportsIndex | None = None,
    ) -> None:
        """Logs a picture: a file, or a figure (or the `matplotlib.pyplot` module) that has `savefig`.

        The picture is copied to `outputs/images` and kept with the run.
        """
        values.name(name)
        if (path is None) == (plot is None):
            raise ValueError(f"the image {name!r} needs either path or plot")
        if plot is not None and not hasattr(plot, "savefig"):
            raise ValueError(f"the plot of {name!r} is a figure with savefig, not {type(plot).__name__}")
        if path is not None and not Path(path).is_file():
            raise ValueError(f"the image {name!r} is to be read from {path}, which is no file")
        try:
            place = self._picture(name, ".png" if path is None else _suffix(path))
            if path is not None:
                shutil.copyfile(path, place)
            else:
                plot.savefig(place)
        except OSError as error:
            self._warn(error)
            return
        self._note(IMAGE, name, ("",), step, artifact=place.relative_to(self._root).as_posix())

    def log_confusion_matrix(
        self, name: str, value: Mapping[str, Any] | str, step: SupportsIndex | None = None
    ) -> None:
        """Logs {"class_labels": [...], "matrix": [[...], ...]}, as a dictionary or its JSON text."""
        matrix = values.matrix(values.name(name), value)
        self._note(CONFUSION_MATRIX, name, (values.fitting(name, matrix),), step)

    def log_accuracy_table(
        self, name: str, value: Mapping[str, Any] | str, step: SupportsIndex | None = None
    ) -> None:
        """Logs Azure's accuracy table: {"probability_tables": ..., "percentile_tables": ..., ...}."""
        keys = ("probability_tables", "percentile_tables")
        self._note(ACCURACY_TABLE, name, (self._document(name, value, keys),), step)

    def log_residuals(
        self, name: str, value: Mapping[str, Any] | str, step: SupportsIndex | None = None
    ) -> None:
        """Logs a histogram of residuals: {"bin_edges": [...], "bin_counts": [...], ...}."""
        self._note(RESIDUALS, name, (self._document(name, value, ("bin_edges", "bin_counts")),), step)

    def log_predictions(
        self, name: str, value: Mapping[str, Any] | str, step: SupportsIndex | None = None
    ) -> None:
        """Logs predicted against true values: {"bin_averages": [...], "bin_errors": [...], ...}."""
        self._note(PREDICTIONS, name, (self._document(name, value, ("bin_averages", "bin_errors")),), step)

    def log_param(self, name: str, value: Any) -> None:
        """Notes what the script was told. The first value of a name stays."""
        self.log_params({name: value})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Notes several parameters; a run has up to 1,000."""
        for name, text in [values.pair(name, value, "parameter") for name, value in params.items()]:
            self._note(PARAM, name, (text,), 0)

    def set_tag(self, name: str, value: Any = "") -> None:
        """Sets a tag of the run. The last value stays."""
        self.set_tags({name: value})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets several tags; a run has up to 50."""
        for name, text in [values.pair(name, value, "tag") for name, value in tags.items()]:
            self._note(TAG, name, (text,), 0)

    def _document(self, name: str, value: Any, keys: tuple[str, ...]) -> str:
        return values.fitting(name, values.chart(values.name(name), value, keys))

    def _note(
        self, kind: int, name: str, parts: Iterable[str], step: SupportsIndex | None, artifact: str = ""
    ) -> None:
        """Appends one record a part; all parts of one call have the same step."""
        texts = list(parts)
        given = None if step is None else values.step(step)
        values.name(name)
        with self._lock:
            last = self._record_steps.get(name, -1)
            at = last + 1 if given is None else given
            self._record_steps[name] = max(at, last)
            now_ms = time.time_ns() // 1_000_000
            for text in texts:
                self._append(wal.pack_note(now_ms, wal.Note(kind, name, at, text, artifact)))

    def _form(self, names: tuple[str, ...]) -> wal.Form:
        form = wal.Form([values.name(name) for name in names])
        if len(self._forms) < _MAXIMUM_FORMS:
            self._forms[names] = form
        return form

    def _prepare(self, name: str) -> wal.Prefix:
        prefix = wal.Prefix.of(values.name(name))
        if len(self._prepared) < _MAXIMUM_PREPARED:
            self._prepared[name] = prefix
        return prefix

    def _append(self, record: bytes) -> None:
        try:
            # A forked child needs a file of its own.
            if self._writer is None or self._writer_pid != os.getpid():
                self._writer = wal.Writer(self._folder)
                self._writer_pid = os.getpid()
            self._writer.write(record)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            print(f"stellwerk: what is logged cannot be written: {error}; the run goes on", file=sys.stderr)

    def _picture(self, name: str, suffix: str) -> Path:
        """A new, empty file; several processes never get the same one."""
        folder = self._root / IMAGES_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "image"
        for count in itertools.count():
            middle = f"_{count}" if count < 10_000 else f"_{secrets.token_hex(4)}"
            place = folder / f"{stem}{middle}{suffix}"
            try:
                place.open("xb").close()
            except FileExistsError:
                continue
            return place
        raise AssertionError("unreachable")


def _suffix(path: str | os.PathLike[str]) -> str:
    return re.sub(r"[^.a-z0-9]", "", Path(path).suffix.lower())[:20]
