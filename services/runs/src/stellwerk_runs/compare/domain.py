"""What differs between runs, as rows of texts. Pure: whoever calls has read all that is compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stellwerk_platform import names
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.registry.v1.environments_pb2 import EnvironmentVersion
from stellwerk_protos.runs.v1.runs_pb2 import Difference, Run
from stellwerk_protos.runs.v1.snapshots_pb2 import Snapshot
from stellwerk_runs.search import fields

GROUPS = ("attributes", "params", "metrics", "tags", "code", "environment", "data")
# Beyond these a group says how much more there is; a text is cut.
ROWS = 1_000
_TEXT = 1_000
# All rows together fit into one answer.
_BYTES = 2 * 1024 * 1024
_DIGITS = 12
# What is different in every run tells nothing.
_OWN = frozenset({"name", "create_time", "start_time", "end_time", "root_run"})

Cells = Mapping[str, str]


@dataclass(frozen=True)
class Side:
    """One run with all that is compared."""

    run: Run
    metrics: Mapping[str, float] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    environment: EnvironmentVersion | None = None
    # Digest by name of a dataset or model version.
    digests: Mapping[str, str] = field(default_factory=dict)

    def cells(self, group: str) -> Cells:
        """The texts of a group by key."""
        match group:
            case "params":
                return self.run.params
            case "tags":
                return self.run.tags
            case "metrics":
                return {metric: repr(value) for metric, value in self.metrics.items()}
            case "code":
                return _code(self.run, self.snapshot)
            case "environment":
                return _environment(self.run, self.environment)
            case "data":
                return {item.name: _data(item.resource, self.digests) for item in self.run.workload.inputs}
        return _attributes(self.run)


def compare(sides: Sequence[Side], include_equal: bool) -> list[Difference]:
    """The rows by group and key; what is equal everywhere is left out unless asked for."""
    rows: list[Difference] = []
    room = _BYTES
    for group in GROUPS:
        kept = 0
        found = list(_rows(group, [side.cells(group) for side in sides], include_equal))
        for row in found:
            room -= row.ByteSize()
            if kept == ROWS or room < 0:
                break
            rows.append(row)
            kept += 1
        if kept < len(found):
            rows.append(
                Difference(group=group, key=f"({len(found) - kept:,} more)", values=[""] * len(sides))
            )
    return rows


def _rows(group: str, columns: Sequence[Cells], include_equal: bool) -> Iterable[Difference]:
    for key in sorted({key for column in columns for key in column}):
        whole = [column.get(key) for column in columns]
        equal = all(value == whole[0] for value in whole)
        if include_equal or not equal:
            values = ["" if value is None else value[:_TEXT] for value in whole]
            yield Difference(group=group, key=key[:_TEXT], values=values, equal=equal)


def _attributes(run: Run) -> Cells:
    values = {key: value for key, value in fields.attributes(run).items() if key not in _OWN}
    values |= {
        "command": run.workload.command,
        "compute": names.id_of(run.workload.compute),
        "reason": run.reason.code,
    }
    return {key: str(value) for key, value in values.items() if value != ""}


def _code(run: Run, snapshot: Snapshot | None) -> Cells:
    cells = {
        "(commit)": run.git.commit,
        "(branch)": run.git.branch,
        "(uncommitted changes)": run.git.patch[:_DIGITS],
    }
    if snapshot is not None and snapshot.manifest:
        # Its list lies in the blob store; whether the whole differs is known from its name.
        cells["(all files)"] = names.id_of(snapshot.name)[:_DIGITS]
    elif snapshot is not None:
        cells |= {file.path: _file(file) for file in snapshot.files}
    return {key: value for key, value in cells.items() if value}


def _file(file: File) -> str:
    if file.link_target:
        return f"-> {file.link_target}"
    return file.sha256[:_DIGITS] + (" executable" if file.executable else "")


def _environment(run: Run, environment: EnvironmentVersion | None) -> Cells:
    if environment is None:
        return {}
    lines = environment.lock.splitlines() if environment.lock else environment.packages
    cells = {
        "(environment)": names.parent_of(environment.name).rsplit("/", 1)[-1] + f"/{environment.version}",
        "(python)": environment.python_version,
        **{f"${key}": value for key, value in environment.variables.items()},
        **{f"${key}": value for key, value in run.workload.variables.items()},
        **dict(_requirement(line) for line in lines if _is_requirement(line)),
    }
    return {key: value for key, value in cells.items() if value}


def _is_requirement(line: str) -> bool:
    """Whether a line names a package: hashes and comments are on lines of their own."""
    return bool(line) and line[0].isalnum()


def _requirement(line: str) -> tuple[str, str]:
    """`scikit-learn` and `==1.5.0` of a line of a requirements file."""
    text = line.split(" \\")[0].split(" #")[0].strip()
    length = next((n for n, sign in enumerate(text) if not (sign.isalnum() or sign in "-_.")), len(text))
    return text[:length].lower().replace("_", "-"), text[length:].strip() or "any"


def _data(resource: str, digests: Mapping[str, str]) -> str:
    parts = resource.split("/")
    shown = f"{parts[-3]}/{parts[-1]}" if len(parts) >= 3 else resource
    digest = digests.get(resource, "").removeprefix("sha256:")[:_DIGITS]
    return f"{shown} {digest}".strip()
