"""`azureml.core.model.Model`, of which scoring scripts use one function: where is my model?"""

from __future__ import annotations

import os
from typing import Any


class ModelPathNotFoundException(Exception):
    """There is no such model below `AZUREML_MODEL_DIR`."""


class Model:
    """Models of a deployment."""

    @staticmethod
    def get_model_path(model_name: str, version: Any = None, _workspace: Any = None) -> str:
        """The model's file, or its folder if it has several; the newest version unless one is named."""
        root = os.environ.get("AZUREML_MODEL_DIR", "")
        folder = os.path.join(root, model_name)
        if not os.path.isdir(folder):
            return _only_model(root, model_name)
        versions = [name for name in os.listdir(folder) if name.isdecimal()]
        if not versions:
            return _single(folder)
        wanted = max(versions, key=int) if version is None else str(version)
        if wanted not in versions:
            raise ModelPathNotFoundException(
                f"There is no version {wanted} of the model {model_name}: {', '.join(sorted(versions))}."
            )
        return _single(os.path.join(folder, wanted))


def _only_model(root: str, model_name: str) -> str:
    only = os.environ.get("STELLWERK_SCORER_MODEL_NAME", "") or model_name
    if not os.path.isdir(root) or not os.listdir(root) or only not in (model_name, "model"):
        raise ModelPathNotFoundException(f"There is no model {model_name} in AZUREML_MODEL_DIR={root}.")
    return _single(root)


def _single(folder: str) -> str:
    entries = os.listdir(folder)
    return os.path.join(folder, entries[0]) if len(entries) == 1 else folder
