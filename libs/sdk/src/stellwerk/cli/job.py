"""Job files: the keys of Azure ML's command-job YAML (contract 4.7) that make sense here.

A key that Stellwerk does not act on is refused: a job that silently ran otherwise would be worse.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stellwerk.cli.arguments import requirements
from stellwerk.errors import StellwerkError, invalid

_IGNORED = {"$schema"}
_KEYS = {
    *("type", "name", "display_name", "experiment_name", "description", "tags", "properties"),
    *("command", "code", "environment", "environment_variables", "compute", "inputs"),
}
_ENVIRONMENT_KEYS = {"name", "packages", "requirements", "python_version"}
_INPUT_KEYS = {"type", "path", "mode"}
_INPUT_TYPES = {"uri_folder", "custom_model", "mlflow_model"}
_TEMPLATE = re.compile(r"\$\{\{\s*([^}]*?)\s*\}\}")


@dataclass
class Job:
    """What to submit. The same fields come from a file and from options; options win."""

    command: str = ""
    code: Path = Path()
    environment: str = ""
    packages: list[str] | None = None
    python_version: str = ""
    compute: str = "local"
    experiment: str = ""
    name: str = ""
    display_name: str = ""
    description: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


def load(path: Path) -> Job:
    """Reads a job file; raises `StellwerkError` for what it cannot mean."""
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StellwerkError(
            "PATH_NOT_FOUND", f"{path} cannot be read: {error.strerror}.", "Check the path.", code="NOT_FOUND"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise invalid("JOB_FILE_INVALID", f"{path} is not YAML: {error}", "Repair the file.") from error
    if not isinstance(given, dict):
        raise invalid("JOB_FILE_INVALID", f"{path} is not a mapping of keys.", "See `run submit --help`.")
    _refuse(given, _KEYS | _IGNORED, str(path))
    if given.get("type", "command") != "command":
        raise _unsupported(f"type: {given['type']}", str(path))
    job = Job(
        code=path.parent / _text(given, "code", "."),
        compute=_text(given, "compute", "local"),
        experiment=_text(given, "experiment_name"),
        name=_text(given, "name"),
        display_name=_text(given, "display_name"),
        description=_text(given, "description"),
        tags=_texts(given, "tags"),
        properties=_texts(given, "properties"),
        variables=_texts(given, "environment_variables"),
    )
    _read_environment(job, given.get("environment"), path)
    literals = _read_inputs(job, given.get("inputs") or {}, str(path))
    job.command = _fill(_text(given, "command"), job, literals)
    return job


def _read_environment(job: Job, given: Any, path: Path) -> None:
    if isinstance(given, str):
        job.environment = given.removeprefix("azureml:")
    elif isinstance(given, dict):
        _refuse(given, _ENVIRONMENT_KEYS, f"environment in {path}")
        job.environment = _text(given, "name")
        job.packages = [str(package) for package in given.get("packages") or ()]
        if "requirements" in given:
            job.packages = requirements(path.parent / _text(given, "requirements")) + job.packages
        job.python_version = _text(given, "python_version")
    elif given is not None:
        raise invalid("JOB_FILE_INVALID", f"environment in {path} is neither a name nor a mapping.", "")


def _read_inputs(job: Job, given: Any, where: str) -> dict[str, str]:
    """Fills the data inputs in; returns the literal ones."""
    if not isinstance(given, dict):
        raise invalid("JOB_FILE_INVALID", f"inputs in {where} is not a mapping.", "Write NAME: VALUE lines.")
    literals: dict[str, str] = {}
    for name, value in given.items():
        if not isinstance(value, dict):
            literals[str(name)] = str(value)
            continue
        _refuse(value, _INPUT_KEYS, f"inputs.{name} in {where}")
        kind = _text(value, "type", "uri_folder")
        if kind not in _INPUT_TYPES:
            raise _unsupported(f"type: {kind}", f"inputs.{name} in {where}")
        reference = _text(value, "path").removeprefix("azureml:")
        job.inputs[str(name)] = f"models/{reference}" if kind.endswith("_model") else reference
    return literals


def _fill(command: str, job: Job, literals: Mapping[str, str]) -> str:
    """Puts inputs in place of `${{inputs.x}}`: the folder of data, the text of a literal."""

    def value(match: re.Match[str]) -> str:
        name = match[1].removeprefix("inputs.")
        if name in job.inputs:
            return '"$STELLWERK_INPUT_' + re.sub(r"[-.]", "_", name).upper() + '"'
        if name in literals and match[1] != name:
            return shlex.quote(literals[name])
        raise invalid(
            "JOB_INPUT_UNKNOWN", f"The command uses {match[0]}, which is no input.", "Add it to inputs."
        )

    return _TEMPLATE.sub(value, command)


def _text(given: Mapping[str, Any], key: str, default: str = "") -> str:
    value = given.get(key)
    if isinstance(value, dict | list):
        raise invalid("JOB_FILE_INVALID", f"{key} is not text.", f"Write {key}: TEXT.")
    return default if value is None else str(value)


def _texts(given: Mapping[str, Any], key: str) -> dict[str, str]:
    value = given.get(key) or {}
    if not isinstance(value, dict):
        raise invalid("JOB_FILE_INVALID", f"{key} is not a mapping.", "Write NAME: VALUE lines.")
    return {str(name): str(text) for name, text in value.items()}


def _refuse(given: Mapping[Any, Any], known: set[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise _unsupported(str(key), where)


def _unsupported(key: str, where: str) -> StellwerkError:
    return invalid(
        "JOB_KEY_UNSUPPORTED", f"Stellwerk does not act on {key!r} ({where}).", "Remove it from the file."
    )
