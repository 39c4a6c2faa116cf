# Generated from ../_async/model_environment.py by scripts/generate_sync.py; do not edit.
"""The environment that a model of MLflow describes itself, as a version of an environment."""

from stellwerk import names
from stellwerk._sync.assets import Environments, Models
from stellwerk._sync.core import Core
from stellwerk.errors import invalid
from stellwerk.mlflow_model import environment_file, read_environment

_LONGEST_ID = 63


def environment_of_model(core: Core, parent: str, reference: str) -> str:
    """The full name of a version of `mlflow-{model}` with what the model's own files ask for.

    The same content is the same version. Raises `StellwerkError` for a model that describes none.
    """
    model = Models(core, parent).get(reference)
    digests = {file.path: file.sha256 for file in model.files}
    path = environment_file(digests)
    if not path:
        raise invalid(
            "ENVIRONMENT_MISSING",
            f"No environment is named, and {reference} does not describe one.",
            "Name one with --environment; only models of MLflow bring theirs along.",
        )
    content = core.read_blob(parent, digests[path])
    python_version, packages = read_environment(path, content, reference)
    version = names.short_version(model.name)
    created = Environments(core, parent).create_version(
        f"mlflow-{version.partition(':')[0]}"[:_LONGEST_ID].rstrip("._-"),
        packages=packages,
        python_version=python_version,
        description=f"Described by {path} of model {version}.",
    )
    return created.name
