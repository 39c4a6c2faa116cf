"""What the folder of an MLflow model says of the environment that it needs."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from stellwerk import names
from stellwerk.errors import StellwerkError, invalid
from stellwerk.jobs import conda
from stellwerk.requirements import requirements

_MLMODEL = "MLmodel"
# The first that is there: MLflow writes both, and the Python version stands in the first alone.
_FILES = ("conda.yaml", "requirements.txt")


def environment_file(paths: Iterable[str]) -> str:
    """Which of a model's files describes its environment; "" if none does or it is no model of MLflow."""
    known = set(paths)
    mlmodel = min((path for path in known if names.last(path) == _MLMODEL), default="")
    if not mlmodel:
        return ""
    folder = mlmodel.removesuffix(_MLMODEL)
    return next((folder + name for name in _FILES if folder + name in known), "")


def read_environment(file: str, content: bytes, model: str) -> tuple[str, list[str]]:
    """Python version ("": any) and requirement lines; raises `StellwerkError` for what cannot be made."""
    name = names.last(file)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            return conda.load(path) if name.endswith(".yaml") else ("", requirements(path))
        except StellwerkError as error:
            said = error.message.replace(str(path), name)
            raise invalid(
                error.reason,
                f"The environment that {model} describes cannot be made. {said}",
                "Make one yourself and name it with --environment.",
            ) from error
