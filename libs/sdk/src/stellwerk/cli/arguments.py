"""From text of the command line to values."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from stellwerk import paths
from stellwerk.requirements import requirements


class PathType(click.Path[Path]):
    """A path; an empty one is refused (INVALID_PATH). `checks` are those of `click.Path`."""

    def __init__(self, **checks: bool) -> None:
        super().__init__(path_type=Path, **checks)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return super().convert(paths.given(value), param, ctx)


def pairs(given: Iterable[str], option: str) -> dict[str, str]:
    """`a=1` -> {"a": "1"}; raises a usage error for anything else."""
    result = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE.", param_hint=option)
        result[key] = value
    return result


def packages(given: Iterable[str], file: Path | None) -> list[str] | None:
    """What `--packages` and `-r` say together; None when neither was given."""
    listed = [part.strip() for text in given for part in text.split(",") if part.strip()]
    if file is not None:
        return requirements(file) + listed
    return listed or None
