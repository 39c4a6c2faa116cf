"""How a run lies in the collection `run_search`: one small document, every value under one path.

    {_id: name, workspace, create_time, archived,
     v: {"~<workspace>": {a: attributes, p: params, pn: ..., t: tags, tn: ..., m: metrics}}}

One wildcard index over `v` then serves a filter and a sort by any attribute, parameter,
tag and metric of one workspace: MongoDB chooses among them by trying. Parameters and
tags are texts; those that are numbers lie a second time, as numbers, in `pn` and `tn`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from stellwerk_platform import names
from stellwerk_platform.documents import Document, to_document
from stellwerk_protos.runs.v1.runs_pb2 import Run, RunKind
from stellwerk_runs.runs import states

TEXT, NUMBER, TIME = "text", "number", "time"
# Attributes by name, with what they are.
ATTRIBUTES = {
    "name": TEXT,
    "display_name": TEXT,
    "experiment": TEXT,
    "state": TEXT,
    "creator": TEXT,
    "kind": TEXT,
    "parent_run": TEXT,
    "root_run": TEXT,
    "create_time": TIME,
    "start_time": TIME,
    "end_time": TIME,
    "duration_seconds": NUMBER,
    "exit_code": NUMBER,
}
SAME_ATTRIBUTE = {"status": "state", "run_id": "name", "run_name": "display_name"}
# Attributes whose values are the last part of a resource name.
RESOURCES = frozenset({"name", "experiment", "parent_run", "root_run"})
# Beyond these a run's further metrics, by name, cannot be searched by.
METRICS = 10_000
METRIC_BYTES = 2 * 1024 * 1024
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_FORBIDDEN = str.maketrans({"%": "%25", ".": "%2E", "$": "%24", "\0": "%00"})


def root(workspace: str) -> str:
    """Below which path the values of the runs of a workspace (by id) lie."""
    return f"v.~{workspace}"


def field_name(key: str) -> str:
    """A key as part of a path; the tilde keeps numbers from being taken for positions in a list."""
    return "~" + key.translate(_FORBIDDEN)


def key_of(field: str) -> str:
    """The key of a `field_name`."""
    return unquote(field[1:])


def attributes(run: Run) -> dict[str, Any]:
    """The values of the attributes that the run has."""
    document = to_document(run)
    values: dict[str, Any] = {
        "state": states.verb(run.state),
        "kind": RunKind.Name(run.kind).removeprefix("RUN_KIND_").lower(),
    }
    for name in ("name", "experiment", "parent_run", "root_run"):
        if resource := getattr(run, name):
            values[name] = names.id_of(resource)
    for name in ("display_name", "creator", "create_time", "start_time", "end_time", "exit_code"):
        if name in document:
            values[name] = document[name]
    if run.HasField("start_time") and run.HasField("end_time"):
        values["duration_seconds"] = (run.end_time.ToMilliseconds() - run.start_time.ToMilliseconds()) / 1e3
    return values


def changes(run: Run) -> Document:
    """What to set when the run has changed: everything but its metrics."""
    path = root(names.workspace_of(run.name))
    values = attributes(run)
    return {
        "workspace": names.workspace_of(run.name),
        "create_time": values.get("create_time"),
        "archived": run.HasField("archive_time"),
        f"{path}.a": values,
        f"{path}.p": texts(run.params),
        f"{path}.pn": numbers(run.params),
        f"{path}.t": texts(run.tags),
        f"{path}.tn": numbers(run.tags),
    }


def metrics(last: Mapping[str, float]) -> Document:
    """The last values of metrics; those that go beyond the bound are left out."""
    found: Document = {}
    size = 0
    for metric in sorted(last):
        size += len(metric.encode())
        if len(found) == METRICS or size > METRIC_BYTES:
            break
        found[field_name(metric)] = float(last[metric])
    return found


def texts(pairs: Mapping[str, str]) -> Document:
    """Every pair as text."""
    return {field_name(key): value for key, value in pairs.items()}


def numbers(pairs: Mapping[str, str]) -> Document:
    """The pairs that are numbers."""
    found = {field_name(key): number_of(value) for key, value in pairs.items()}
    return {key: value for key, value in found.items() if value is not None}


def number_of(text: str) -> float | None:
    """The number that a text is, None if it is none; NaN is no number."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return None if math.isnan(value) else value
