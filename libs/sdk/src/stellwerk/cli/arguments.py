"""From text of the command line to values."""

from collections.abc import Iterable
from pathlib import Path

import click

from stellwerk.requirements import requirements


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
