"""Command-job YAML of Azure ML's CLI v2 (contract 4.7)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stellwerk.errors import invalid
from stellwerk.jobs import conda
from stellwerk.jobs.model import Job, mapping, names_list, refuse, seconds, text, texts, unsupported
from stellwerk.requirements import requirements

_KEYS = {
    *("$schema", "type", "name", "display_name", "experiment_name", "description", "tags", "properties"),
    *("command", "code", "environment", "environment_variables", "compute", "inputs", "limits"),
    *("resources", "parent_job_name"),
    # Not of Azure: the secrets of the workspace that the command may read.
    "secrets",
}
_READ_ONLY = "the platform writes it, nobody sets it"
_REASONS = {
    "distribution": "a run is one process on one node",
    "outputs": "what the command writes to ./outputs is kept with the run",
    "services": "runs open no ports",
    "identity": "a run has a token of its own",
    "queue_settings": "there are no tiers and priorities",
    **dict.fromkeys(("id", "status", "creation_context", "log_files", "parameters"), _READ_ONLY),
}
_NO_CONTAINER = "a run is a process with an environment of packages, in no container"
_ENVIRONMENT_KEYS = {
    *("$schema", "name", "packages", "requirements", "python_version", "conda_file", "variables"),
}
_ENVIRONMENT_REASONS = {
    **dict.fromkeys(("image", "build", "os_type", "docker_args"), _NO_CONTAINER),
    **dict.fromkeys(("version", "inference_config"), "an inline environment gets its version by itself"),
    **dict.fromkeys(("description", "tags", "properties"), "make the environment first to describe it"),
}
_RESOURCE_REASONS = {
    "instance_type": "the compute decides",
    "shm_size": _NO_CONTAINER,
    "docker_args": _NO_CONTAINER,
    "max_instance_count": "the number of nodes does not change",
    **dict.fromkeys(("properties", "locations"), "the compute decides"),
}
_INPUT_KEYS = {"type", "path", "mode"}
_INPUT_TYPES = {"uri_folder", "custom_model", "mlflow_model"}
_INPUT_TYPE_REASONS = {
    "uri_file": "inputs are folders, so use uri_folder and the name of the file in it",
    "mltable": "register the data as a dataset of files",
    "triton_model": "use custom_model",
}
_MODES = {"", "ro_mount", "download"}


def read(given: Mapping[str, Any], path: Path) -> Job:
    """A job from the keys of a file; raises `StellwerkError`."""
    where = str(path)
    refuse(given, _KEYS, _REASONS, where)
    if (kind := text(given, "type", "command")) != "command":
        raise unsupported(f"type: {kind}", where, "only command jobs are run from files")
    limits, resources = mapping(given, "limits"), mapping(given, "resources")
    refuse(limits, {"timeout"}, {}, f"limits in {where}")
    refuse(resources, {"instance_count"}, _RESOURCE_REASONS, f"resources in {where}")
    if resources.get("instance_count", 1) != 1:
        raise unsupported("instance_count", where, "a run has one node")
    job = Job(
        code=path.parent / text(given, "code", "."),
        compute=text(given, "compute", "local").removeprefix("azureml:"),
        experiment=text(given, "experiment_name"),
        name=text(given, "name"),
        display_name=text(given, "display_name"),
        description=text(given, "description"),
        parent=text(given, "parent_job_name"),
        timeout_seconds=seconds(limits, "timeout"),
        tags=texts(given, "tags"),
        properties=texts(given, "properties"),
        variables=texts(given, "environment_variables"),
        secrets=names_list(given, "secrets"),
    )
    _read_environment(job, given.get("environment"), path)
    literals = _read_inputs(job, mapping(given, "inputs"), where)
    job.command = job.fill(text(given, "command"), literals)
    return job


def _read_environment(job: Job, given: Any, path: Path) -> None:
    if given is None:
        return
    if isinstance(given, str):
        job.environment = given.removeprefix("azureml:")
        return
    if not isinstance(given, dict):
        raise invalid("JOB_FILE_INVALID", f"environment in {path} is neither a name nor a mapping.", "")
    refuse(given, _ENVIRONMENT_KEYS, _ENVIRONMENT_REASONS, f"environment in {path}")
    job.environment = text(given, "name")
    job.packages = [str(package) for package in given.get("packages") or ()]
    job.python_version = text(given, "python_version")
    job.variables = {**texts(given, "variables"), **job.variables}
    if "requirements" in given:
        job.packages = requirements(path.parent / text(given, "requirements")) + job.packages
    if "conda_file" in given:
        found = given["conda_file"]
        if isinstance(found, dict):
            python_version, packages = conda.read(found, f"conda_file in {path}")
        else:
            python_version, packages = conda.load(path.parent / text(given, "conda_file"))
        job.packages = packages + job.packages
        job.python_version = job.python_version or python_version


def _read_inputs(job: Job, given: Mapping[str, Any], where: str) -> dict[str, str]:
    """Fills the data inputs in; returns the literal ones."""
    literals: dict[str, str] = {}
    for name, value in given.items():
        if not isinstance(value, dict):
            literals[name] = text({name: value}, name)
            continue
        place = f"inputs.{name} in {where}"
        refuse(value, _INPUT_KEYS, {}, place)
        kind = text(value, "type", "uri_folder")
        if kind not in _INPUT_TYPES:
            raise unsupported(f"type: {kind}", place, _INPUT_TYPE_REASONS.get(kind, "there is no such type"))
        if (mode := text(value, "mode")) not in _MODES:
            raise unsupported(f"mode: {mode}", place, "inputs are brought to the node and read there")
        job.inputs[name] = _reference(text(value, "path"), kind, place)
    return literals


def _reference(path: str, kind: str, place: str) -> str:
    if "://" in path or path.startswith((".", "/", "~")) or not path:
        raise unsupported(
            f"path: {path}", place, "inputs are registered data; register it with `stellwerk dataset create`"
        )
    reference = path.removeprefix("azureml:")
    return f"models/{reference}" if kind.endswith("_model") else reference
