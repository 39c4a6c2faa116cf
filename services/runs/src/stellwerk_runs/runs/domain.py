"""What a submit may ask for: bounds, names, and the run that it makes."""

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from stellwerk_platform import names
from stellwerk_platform.auth import Caller
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.content import check_sha256
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from stellwerk_platform.journal import Fact
from stellwerk_protos.compute.v1.workloads_pb2 import WORKLOAD_KIND_RUN, Input, Workload
from stellwerk_protos.runs.v1 import runs_pb2 as pb
from stellwerk_protos.runs.v1.runs_pb2 import CreateRunRequest, Run
from stellwerk_runs.runs import states

_DISPLAY_NAME_LENGTH = 256
_COMMAND_BYTES = 65_536
_VARIABLES = 200
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,249}")
_VARIABLE_BYTES = 32_768
_RESERVED_PREFIX = "STELLWERK_"
_INPUTS = 200
# All of them are named in the run's token, which is a header.
_SECRETS = 30
_INPUT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DEFAULT_GRACE = timedelta(seconds=10)
_MAXIMUM_GRACE = timedelta(hours=1)
_MAXIMUM_TIMEOUT = timedelta(days=365)
# Of a run tree; the topmost run has depth 1.
DEPTH = 100
_UPDATABLE = ("display_name", "description", "tags")
# A run is one journal event, which is one NATS message.
_RUN_BYTES = 1024 * 1024
_RESOURCES = {"datasets": "workspaces/*/datasets/*/versions/*", "models": "workspaces/*/models/*/versions/*"}


def check_request(request: CreateRunRequest) -> None:
    """Raises `InvalidArgument` for the first thing that cannot be."""
    (workspace,) = names.parse("workspaces/*", request.parent)
    if request.run_id:
        names.check_id("runs", request.run_id)
    check_name(workspace, "workspaces/*/experiments/*", request.experiment)
    for related in filter(None, (request.parent_run, request.cloned_from)):
        check_name(workspace, "workspaces/*/runs/*", related)
    if request.kind == pb.RUN_KIND_INTERACTIVE:
        _check_interactive(request)
    else:
        check_name(workspace, "workspaces/*/computes/*", request.compute)
        _check_command(request.command)
    if request.git.patch:
        check_sha256(request.git.patch)
    if request.snapshot:
        check_name(workspace, "workspaces/*/snapshots/*", request.snapshot)
    if request.environment:
        check_name(workspace, "workspaces/*/environments/*/versions/*", request.environment)
    _check_display_name(request.display_name)
    check_description(request.description)
    check_tags(request.tags)
    check_tags(request.properties, "properties")
    _check_variables(request)
    _check_inputs(workspace, request)
    _check_times(request)
    _check_secrets(workspace, request)
    if request.ByteSize() > _RUN_BYTES:
        raise InvalidArgument(
            "RUN_TOO_LARGE",
            f"The run's description has {request.ByteSize():,} bytes.",
            f"Use up to {_RUN_BYTES:,}; pass large values in files of the snapshot.",
        )


def new_run(request: CreateRunRequest, run_id: str, creator: str, trace_id: str) -> Run:
    """The run of a checked request; `environment` and inputs are still as the caller named them.

    `root_run` is set for a run at the top; whoever knows the parent sets it for others.
    """
    name = f"{request.parent}/runs/{run_id}"
    return Run(
        name=name,
        creator=creator,
        experiment=request.experiment,
        display_name=request.display_name or run_id,
        description=request.description,
        tags=request.tags,
        properties=request.properties,
        workload=_workload(request),
        git=request.git if request.HasField("git") else None,
        trace_id=trace_id,
        parent_run=request.parent_run,
        root_run="" if request.parent_run else name,
        kind=request.kind or pb.RUN_KIND_COMMAND,
        cloned_from=request.cloned_from,
    )


def _workload(request: CreateRunRequest) -> Workload:
    """What is to be placed; an interactive run's has no kind, and is placed nowhere."""
    workload = Workload(
        compute=request.compute,
        snapshot=request.snapshot,
        environment=request.environment,
        command=request.command,
        variables=request.variables,
        inputs=request.inputs,
        secrets=dict.fromkeys(request.secrets),
    )
    if request.kind == pb.RUN_KIND_INTERACTIVE:
        return workload
    workload.kind = WORKLOAD_KIND_RUN
    workload.grace.FromTimedelta(request.grace.ToTimedelta() if request.HasField("grace") else _DEFAULT_GRACE)
    if request.HasField("timeout"):
        workload.timeout.CopyFrom(request.timeout)
    return workload


def check_parent(parent: Run, depth: int) -> None:
    """Raises `FailedPrecondition` unless a child may be created; `depth` is the parent's."""
    if parent.state not in states.PARENTS:
        raise FailedPrecondition(
            "PARENT_RUN_ENDED",
            f"The parent {parent.name} is {states.verb(parent.state)}.",
            "Create child runs while their parent waits or runs.",
        )
    if depth >= DEPTH:
        raise FailedPrecondition(
            "RUN_TREE_TOO_DEEP",
            f"{parent.name} is {depth} runs deep in its tree.",
            f"Trees may be {DEPTH} runs deep; give the child a parent nearer to the top.",
        )


def update(run: Run, wanted: Run, paths: Sequence[str]) -> Fact | None:
    """Takes the named fields of `wanted`; raises `InvalidArgument` before anything is changed."""
    for path in paths:
        if path not in _UPDATABLE:
            raise InvalidArgument(
                "INVALID_UPDATE_MASK",
                f"{path[:80]!r} of a run cannot be changed.",
                f"Name {', '.join(_UPDATABLE)} in update_mask.",
            )
    _check_display_name(wanted.display_name)
    check_description(wanted.description)
    check_tags(wanted.tags)
    before = Run()
    before.CopyFrom(run)
    for path in paths or _UPDATABLE:
        run.ClearField(path)  # type: ignore[arg-type]  # one of _UPDATABLE
        if path == "tags":
            run.tags.update(wanted.tags)
        else:
            setattr(run, path, getattr(wanted, path))
    changed = [path for path in _UPDATABLE if getattr(run, path) != getattr(before, path)]
    return Fact("updated", "REQUESTED", f"Changed {', '.join(changed)}.") if changed else None


def check_name(workspace: str, pattern: str, name: str) -> None:
    """Raises `InvalidArgument` unless this is such a name in the workspace."""
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
        check_name(workspace, _RESOURCES[kind_of(item)], item.resource)


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


def _check_secrets(workspace: str, request: CreateRunRequest) -> None:
    if len(request.secrets) > _SECRETS:
        raise InvalidArgument(
            "TOO_MANY_SECRETS", f"{len(request.secrets)} secrets.", f"Name up to {_SECRETS}."
        )
    for name in request.secrets:
        check_name(workspace, "workspaces/*/secrets/*", name)


def check_may_name(caller: Caller, secrets: Iterable[str]) -> None:
    """Raises `PermissionDenied` when a run gives its child a secret that it may not read itself."""
    own = {names.parent_of(version) for version in caller.secrets}
    for name in secrets:
        if caller.role == "Workload" and name not in own:
            raise PermissionDenied(
                "SECRET_NOT_NAMED",
                f"The configuration of {caller.subject} does not name {names.id_of(name)!r}.",
                f"Submit the run with --secret {names.id_of(name)}, so that its children may have it.",
            )


def _check_times(request: CreateRunRequest) -> None:
    if request.HasField("grace") and not timedelta() <= _delta(request.grace) <= _MAXIMUM_GRACE:
        raise InvalidArgument("INVALID_GRACE", "The grace time is out of range.", "Use 0 to 3,600 seconds.")
    if request.HasField("timeout") and not timedelta() < _delta(request.timeout) <= _MAXIMUM_TIMEOUT:
        raise InvalidArgument(
            "INVALID_TIMEOUT", "The timeout is out of range.", "Use more than 0 seconds and up to 365 days."
        )


def _delta(duration: Duration) -> timedelta:
    """As a timedelta; what no timedelta can hold is out of every range."""
    try:
        return duration.ToTimedelta()
    except (OverflowError, ValueError):
        return timedelta(days=-1)


def _check_display_name(text: str) -> None:
    if len(text) > _DISPLAY_NAME_LENGTH:
        raise InvalidArgument(
            "TEXT_TOO_LONG", "The display name is too long.", f"Use up to {_DISPLAY_NAME_LENGTH} characters."
        )


def _check_interactive(request: CreateRunRequest) -> None:
    for field in ("command", "compute", "grace", "timeout", "variables", "secrets"):
        if field in {given.name for given, _ in request.ListFields()}:
            raise InvalidArgument(
                "INTERACTIVE_RUN",
                f"An interactive run has no {field}: its process runs already.",
                f"Leave {field} out, or submit a command.",
            )
