"""Conda files: their Python version and their pip section; conda itself is not used."""

import re
from pathlib import Path
from typing import Any

from stellwerk.errors import StellwerkError, invalid

_PYTHON = re.compile(r"python\s*(?:={1,2}|\s)\s*(\d+\.\d+)(?:\.[\d*]+)?\s*(?:=\w+)?$")
_PIP = re.compile(r"(?:pip|setuptools|wheel)\b(?!-)")


def read(given: Any, where: str) -> tuple[str, list[str]]:
    """Python version ("" when none is named) and requirement lines of a conda mapping."""
    if not isinstance(given, dict) or not isinstance(given.get("dependencies"), list):
        raise invalid(
            "CONDA_FILE_INVALID", f"{where} has no list of dependencies.", "Write a conda environment file."
        )
    python_version, packages = "", []
    for item in given["dependencies"]:
        if isinstance(item, dict) and set(item) == {"pip"} and isinstance(item["pip"], list):
            packages += [_requirement(str(line), where) for line in item["pip"]]
        elif isinstance(item, str) and (found := _PYTHON.match(item.strip())):
            python_version = found[1]
        elif not (isinstance(item, str) and _PIP.match(item.strip())):
            raise _unsupported(item, where)
    return python_version, packages


def load(path: Path) -> tuple[str, list[str]]:
    """The same of a file."""
    import yaml

    try:
        return read(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise StellwerkError(
            "PATH_NOT_FOUND", f"{path} cannot be read: {error.strerror}.", "Check the path.", code="NOT_FOUND"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise invalid("CONDA_FILE_INVALID", f"{path} is not YAML: {error}", "Repair the file.") from error


def _requirement(line: str, where: str) -> str:
    if line.strip().startswith("-"):
        raise invalid(
            "CONDA_PIP_OPTION",
            f"The pip section of {where} has {line.strip()!r}, which is no requirement.",
            "List the packages themselves.",
        )
    return line.strip()


def _unsupported(item: object, where: str) -> StellwerkError:
    text = str(item).strip()
    name = re.split(r"[\s=<>!~\[]", text)[0]
    if name == "python":
        message, cure = f"{where} asks for {text!r}.", "Name one version, for example python=3.11."
    else:
        message = f"{where} asks for the conda package {text!r}; environments are made of pip packages."
        cure = f"Move {name!r} to the pip section, under the name that it has on PyPI."
    return invalid("CONDA_PACKAGE_UNSUPPORTED", message, cure)
