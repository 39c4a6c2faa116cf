"""What a submit may ask for: bounds, names, and the run that it makes."""

import re
from datetime import timedelta

from stellwerk_platform import names
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.compute.v1.workloads_pb2 import WORKLOAD_KIND_RUN, Input, Workload
from stellwerk_protos.runs.v1.runs_pb2 import CreateRunRequest, Run

_DISPLAY_NAME_LENGTH = 256
_COMMAND_BYTES = 65_536
_VARIABLES = 200
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,249}")
_VARIABLE_BYTES = 32_768
_RESERVED_PREFIX = "STELLWERK_"
_INPUTS = 200
_INPUT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DEFAULT_GRACE = timedelta(seconds=10)
_MAXIMUM_GRACE = timedelta(hours=1)
# A run is one journal event, which is one NATS message.
_RUN_BYTES = 1024 * 1024
_RESOURCES = {"datasets": "workspaces/*/datasets/*/versions/*", "models": "workspaces/*/models/*/versions/*"}


def check_request(request: CreateRunRequest) -> None:
    """Raises `InvalidArgument` for the first thing that cannot be."""
    (workspace,) = names.parse("workspaces/*", request.parent)
    if request.run_id:
        names.check_id("runs", request.run_id)
    _check_name(workspace, "workspaces/*/experiments/*", request.experiment)
    _check_name(workspace, "workspaces/*/computes/*", request.compute)
    if request.snapshot:
        _check_name(workspace, "workspaces/*/snapshots/*", request.snapshot)
    if request.environment:
        _check_name(workspace, "workspaces/*/environments/*/versions/*", request.environment)
    if len(request.display_name) > _DISPLAY_NAME_LENGTH:
        raise InvalidArgument(
            "TEXT_TOO_LONG", "The display name is too long.", f"Use up to {_DISPLAY_NAME_LENGTH} characters."
        )
    check_description(request.description)
    check_tags(request.tags)
    check_tags(request.properties, "properties")
    _check_command(request.command)
    _check_variables(request)
    _check_inputs(workspace, request)
    _check_grace(request)
    if request.ByteSize() > _RUN_BYTES:
        raise InvalidArgument(
            "RUN_TOO_LARGE",
            f"The run's description has {request.ByteSize():,} bytes.",
            f"Use up to {_RUN_BYTES:,}; pass large values in files of the snapshot.",
        )


def new_run(request: CreateRunRequest, run_id: str, creator: str, trace_id: str) -> Run:
    """The run of a checked request; `environment` and inputs are still as the caller named them."""
    workload = Workload(
        kind=WORKLOAD_KIND_RUN,
        compute=request.compute,
        snapshot=request.snapshot,
        environment=request.environment,
        command=request.command,
        variables=request.variables,
        inputs=request.inputs,
    )
    workload.grace.FromTimedelta(request.grace.ToTimedelta() if request.HasField("grace") else _DEFAULT_GRACE)
    return Run(
        name=f"{request.parent}/runs/{run_id}",
        creator=creator,
        experiment=request.experiment,
        display_name=request.display_name or run_id,
        description=request.description,
        tags=request.tags,
        properties=request.properties,
        workload=workload,
        git=request.git if request.HasField("git") else None,
        trace_id=trace_id,
    )


def _check_name(workspace: str, pattern: str, name: str) -> None:
    if not name:
        what = pattern.split("/")[2].removesuffix("s")
        raise InvalidArgument(
            f"{what.upper()}_MISSING", f"The run names no {what}.", f"Give a name like {pattern}."
        )
    if names.parse(pattern, name)[0] != workspace:
        raise InvalidArgument(
            "WORKSPACE_MISMATCH",
            f"{name} is not in workspace {workspace!r}.",
            "Name things of the run's own workspace.",
        )


def _check_command(command: str) -> None:
    if not command.strip() or "\0" in command or len(command.encode()) > _COMMAND_BYTES:
        raise InvalidArgument(
            "INVALID_COMMAND",
            "The command is empty, too long or has a NUL character.",
            f"Give a shell command of up to {_COMMAND_BYTES:,} bytes, for example 'python train.py'.",
        )


def _check_variables(request: CreateRunRequest) -> None:
    if len(request.variables) > _VARIABLES:
        raise InvalidArgument(
            "TOO_MANY_VARIABLES", f"{len(request.variables)} variables.", f"Use up to {_VARIABLES}."
        )
    for name, value in request.variables.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value or len(value.encode()) > _VARIABLE_BYTES:
            raise InvalidArgument(
                "INVALID_VARIABLE",
                f"The variable {name[:80]!r} is not valid.",
                f"Use names of letters, digits and '_', and values of up to {_VARIABLE_BYTES:,} bytes.",
            )
        if name.startswith(_RESERVED_PREFIX):
            raise InvalidArgument(
                "RESERVED_VARIABLE",
                f"{name} is set by the platform.",
                f"Choose a name that does not begin with {_RESERVED_PREFIX}.",
            )


def _check_inputs(workspace: str, request: CreateRunRequest) -> None:
    if len(request.inputs) > _INPUTS:
        raise InvalidArgument("TOO_MANY_INPUTS", f"{len(request.inputs)} inputs.", f"Use up to {_INPUTS}.")
    seen: set[str] = set()
    for item in request.inputs:
        variable = item.name.upper().replace("-", "_").replace(".", "_")
        if not _INPUT.fullmatch(item.name) or variable in seen:
            raise InvalidArgument(
                "INVALID_INPUT",
                f"The input name {item.name[:80]!r} is not valid or is taken.",
                "Use different names of letters, digits, '_', '.' and '-'; case, '.' and '-' do not differ.",
            )
        seen.add(variable)
        _check_name(workspace, _RESOURCES[kind_of(item)], item.resource)


def kind_of(item: Input) -> str:
    """`datasets` or `models`; raises `InvalidArgument` for an input that is neither."""
    kind = [*item.resource.split("/"), "", "", ""][2]
    if kind not in _RESOURCES:
        raise InvalidArgument(
            "INVALID_INPUT",
            f"The input {item.name!r} is neither a dataset nor a model version.",
            f"Name it like {' or '.join(_RESOURCES.values())}.",
        )
    return kind


def _check_grace(request: CreateRunRequest) -> None:
    if request.HasField("grace") and not timedelta() <= request.grace.ToTimedelta() <= _MAXIMUM_GRACE:
        raise InvalidArgument("INVALID_GRACE", "The grace time is out of range.", "Use 0 to 3,600 seconds.")
