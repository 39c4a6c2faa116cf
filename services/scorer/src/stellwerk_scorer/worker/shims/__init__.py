"""Modules of Azure's packages that scoring scripts import, for environments that do not have them.

They are looked for last, so that what the environment has is used.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import model, monitoring, request, response

_RAW_HTTP = {"rawhttp": None, "AMLRequest": request.AMLRequest, "_rawHttpRequested": False}
_CONTENTS: dict[str, dict[str, Any]] = {
    "azureml": {},
    "azureml.ai": {},
    "azureml.ai.monitoring": {"Collector": monitoring.Collector},
    "azureml.ai.monitoring.context": {
        "BasicCorrelationContext": monitoring.BasicCorrelationContext,
        "CorrelationContext": monitoring.CorrelationContext,
    },
    "azureml.contrib": {},
    "azureml.contrib.services": {},
    "azureml.contrib.services.aml_request": _RAW_HTTP,
    "azureml.contrib.services.aml_response": {"AMLResponse": response.AMLResponse},
    "azureml.core": {"Model": model.Model},
    "azureml.core.model": {"Model": model.Model},
    "azureml_inference_server_http": {},
    "azureml_inference_server_http.api": {},
    "azureml_inference_server_http.api.aml_request": _RAW_HTTP,
    "azureml_inference_server_http.api.aml_response": {"AMLResponse": response.AMLResponse},
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _CONTENTS:
            return None
        is_package = any(name.startswith(fullname + ".") for name in _CONTENTS)
        return importlib.util.spec_from_loader(fullname, self, is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_CONTENTS[module.__name__])
        if "rawhttp" in vars(module):

            def rawhttp(function: Any) -> Any:
                """Marks `run` as one that takes the request itself."""
                vars(module)["_rawHttpRequested"] = True
                return function

            vars(module)["rawhttp"] = rawhttp


def install() -> None:
    """Offers the modules from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
