"""What may be asked of a monitor: bounds, defaults, and what an update makes of it. Pure rules."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from stellwerk_inference.collected.domain import check_collection
from stellwerk_inference.endpoints.domain import PATTERN as ENDPOINT
from stellwerk_inference.monitors import schedule
from stellwerk_inference.monitors.compare import kinds
from stellwerk_platform import names
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.content import check_path
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.inference.v1 import monitors_pb2 as pb
from stellwerk_protos.registry.v1.datasets_pb2 import DatasetVersion

PATTERN = "workspaces/*/monitors/*"
CHECK = "workspaces/*/monitors/*/checks/*"
_BASELINE = "workspaces/*/datasets/*/versions/*"
DEFAULT_PSI = 0.2
_DEFAULT_WINDOW = timedelta(days=1)
_SHORTEST, _LONGEST = timedelta(minutes=1), timedelta(days=90)
_DEFAULT_MIN_ROWS, _DEFAULT_MAX_ROWS, _MAX_ROWS = 100, 100_000, 1_000_000
MAX_COLUMNS = 1_000
_COLUMN_LENGTH = 200
# The files of a baseline lie on the disk whole.
_MOST_BASELINE_BYTES, _MOST_BASELINE_FILES = 1 << 30, 5_000
UPDATABLE = frozenset(
    {
        *("description", "tags", "deployment", "collection", "baseline", "baseline_path", "columns"),
        *("thresholds", "cron", "time_zone", "window", "min_rows", "max_rows", "paused"),
    }
)
# What may change although the endpoint, its deployment or the baseline are gone.
WITHOUT_NAMES = frozenset({"description", "tags", "cron", "time_zone", "paused"})
_EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)


def wanted(request: pb.CreateMonitorRequest) -> pb.Monitor:
    """The monitor that is asked for, with defaults, and without what only the service sets."""
    names.parse("workspaces/*", request.parent)
    names.check_id("monitors", request.monitor_id)
    monitor = pb.Monitor(
        name=f"{request.parent}/monitors/{request.monitor_id}", endpoint=request.monitor.endpoint
    )
    _take(monitor, request.monitor, UPDATABLE)
    return checked(monitor)


def changed(current: pb.Monitor, request: pb.UpdateMonitorRequest) -> pb.Monitor:
    """The monitor with the fields of the mask; raises `InvalidArgument`."""
    if not request.update_mask.paths:
        raise InvalidArgument("NOTHING_TO_UPDATE", "The update changes nothing.", "Say what is to change.")
    for path in request.update_mask.paths:
        if path not in UPDATABLE:
            raise InvalidArgument(
                "INVALID_UPDATE_MASK",
                f"{path[:80]!r} cannot be updated.",
                f"Fields: {', '.join(sorted(UPDATABLE))}.",
            )
    monitor = pb.Monitor()
    monitor.CopyFrom(current)
    _take(monitor, request.monitor, request.update_mask.paths)
    return checked(monitor)


def take(monitor: pb.Monitor, values: pb.Monitor, request: pb.UpdateMonitorRequest) -> None:
    """Sets the fields of the mask to values that were checked."""
    _take(monitor, values, request.update_mask.paths)


def _take(monitor: pb.Monitor, values: pb.Monitor, fields: "Sequence[str] | frozenset[str]") -> None:
    for field in fields:
        monitor.ClearField(field)  # type: ignore[arg-type]  # one of UPDATABLE
    for descriptor, value in values.ListFields():
        if descriptor.name in fields:
            monitor.MergeFrom(pb.Monitor(**{descriptor.name: value}))


def checked(monitor: pb.Monitor) -> pb.Monitor:
    """The same with defaults where nothing is said; raises `InvalidArgument`."""
    names.parse(ENDPOINT, monitor.endpoint)
    names.parse(_BASELINE, monitor.baseline)
    for name in (monitor.endpoint, monitor.baseline):
        if names.workspace_of(name) != names.workspace_of(monitor.name):
            raise InvalidArgument(
                "OTHER_WORKSPACE", f"{name} is not in the monitor's workspace.", "Use one of its own."
            )
    if monitor.deployment:
        names.check_id("deployments", monitor.deployment)
    check_collection(monitor.collection)
    if monitor.baseline_path:
        check_path(monitor.baseline_path)
    check_description(monitor.description)
    check_tags(monitor.tags)
    schedule.check(monitor.cron, monitor.time_zone)
    monitor.time_zone = monitor.time_zone or "UTC"
    _check_window(monitor)
    _check_rows(monitor)
    _check_columns(monitor.columns)
    _check_thresholds(monitor)
    return monitor


def _check_window(monitor: pb.Monitor) -> None:
    if not monitor.HasField("window"):
        monitor.window.FromTimedelta(_DEFAULT_WINDOW)
    # As seconds first: a duration may be longer than what Python can hold.
    if not _SHORTEST.total_seconds() <= monitor.window.seconds <= _LONGEST.total_seconds():
        raise InvalidArgument(
            "INVALID_WINDOW",
            f"A window of {monitor.window.seconds:,} s cannot be had.",
            f"Use 1 minute to {_LONGEST.days} days.",
        )
    monitor.window.nanos = 0


def _check_rows(monitor: pb.Monitor) -> None:
    monitor.min_rows = monitor.min_rows or _DEFAULT_MIN_ROWS
    monitor.max_rows = monitor.max_rows or _DEFAULT_MAX_ROWS
    if not 1 <= monitor.min_rows <= monitor.max_rows <= _MAX_ROWS:
        raise InvalidArgument(
            "INVALID_ROWS",
            f"At least {monitor.min_rows:,} and at most {monitor.max_rows:,} rows cannot be compared.",
            f"Use 1 to {_MAX_ROWS:,}, and not more for the least than for the most.",
        )


def _check_columns(columns: Sequence[str]) -> None:
    if len(columns) > MAX_COLUMNS or len(set(columns)) != len(columns):
        raise InvalidArgument(
            "INVALID_COLUMNS",
            f"{len(columns):,} columns are too many, or one is named twice.",
            f"Name up to {MAX_COLUMNS:,}, each once.",
        )
    for column in columns:
        if not 0 < len(column) <= _COLUMN_LENGTH:
            raise InvalidArgument(
                "INVALID_COLUMNS",
                f"{column[:80]!r} cannot be the name of a column.",
                f"Use names of 1 to {_COLUMN_LENGTH} characters.",
            )


def _check_thresholds(monitor: pb.Monitor) -> None:
    if not monitor.thresholds:
        monitor.thresholds.add(metric=pb.DRIFT_METRIC_PSI, threshold=DEFAULT_PSI)
    seen = set()
    for entry in monitor.thresholds:
        _check_threshold(entry)
        if entry.column and monitor.columns and entry.column not in monitor.columns:
            raise _invalid(f"{entry.column[:80]!r} has a threshold and is not compared.", "Name it, too.")
        if (entry.metric, entry.column) in seen:
            raise _invalid("A metric has two thresholds for the same column.", "Give one.")
        seen.add((entry.metric, entry.column))
    if len(seen) > MAX_COLUMNS:
        raise _invalid(f"{len(seen):,} thresholds are too many.", f"Use up to {MAX_COLUMNS:,}.")


def _check_threshold(entry: pb.DriftThreshold) -> None:
    if entry.metric not in pb.DriftMetric.values() or not entry.metric:
        raise _invalid("A threshold names no metric.", "Use psi, jensen-shannon, ks or chi-square.")
    # All but PSI have 1 as their largest value.
    most = math.inf if entry.metric == pb.DRIFT_METRIC_PSI else 1.0
    if not (math.isfinite(entry.threshold) and 0 < entry.threshold < most):
        raise _invalid(
            f"{entry.threshold:g} cannot be a threshold.", "Use over 0, and under 1 for all metrics but psi."
        )
    if len(entry.column) > _COLUMN_LENGTH:
        raise _invalid(f"{entry.column[:80]!r} is too long.", f"Use up to {_COLUMN_LENGTH} characters.")


def _invalid(message: str, cure: str) -> InvalidArgument:
    return InvalidArgument("INVALID_THRESHOLD", message, cure)


def end_time(request: pb.CheckMonitorRequest, now: datetime) -> datetime | None:
    """The end of the window that is asked for, None for now; raises `InvalidArgument`."""
    if not request.HasField("end_time"):
        return None
    try:
        end = request.end_time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        end = datetime.max.replace(tzinfo=UTC)
    if not _EARLIEST <= end <= now + _SHORTEST:
        raise InvalidArgument(
            "INVALID_END_TIME", "The window cannot end then.", "Use a time that has passed, since 2020."
        )
    return end


def baseline_files(version: DatasetVersion, path: str) -> list[File]:
    """What of a version is the baseline; raises `InvalidArgument` where it cannot be one."""
    files = files_below(version.files, path)
    if not files:
        raise InvalidArgument(
            "BASELINE_PATH_NOT_FOUND",
            f"There is nothing at {path!r} in {version.name}.",
            f"It holds {', '.join(file.path for file in version.files[:10])}.",
        )
    readable = [file for file in files if kinds.is_readable(file.path)]
    if not readable:
        raise InvalidArgument(
            "BASELINE_UNREADABLE",
            f"{version.name} has no file that can be read: {', '.join(f.path for f in files[:5])}.",
            f"Use files that end with {', '.join(kinds.SUFFIXES)}.",
        )
    size_bytes = sum(file.size_bytes for file in readable)
    if size_bytes > _MOST_BASELINE_BYTES or len(readable) > _MOST_BASELINE_FILES:
        raise InvalidArgument(
            "BASELINE_TOO_LARGE",
            f"The baseline has {len(readable):,} files with {size_bytes / 2**30:.1f} GiB.",
            f"Name up to {_MOST_BASELINE_FILES:,} with {_MOST_BASELINE_BYTES >> 30} GiB by "
            "`--baseline-path`, or a version with a sample of the data.",
        )
    return readable


def files_below(files: Sequence[File], path: str) -> list[File]:
    """The file of this path, or those of the folder; all without a path, links never."""
    return [
        file
        for file in files
        if not file.link_target and (not path or file.path == path or file.path.startswith(f"{path}/"))
    ]
