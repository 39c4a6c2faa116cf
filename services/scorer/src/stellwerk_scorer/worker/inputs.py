"""From a request to the arguments of `run`, in the three modes of Azure's contract.

raw: the body as text. schema: a JSON object by the names of the parameters that
`@input_schema` describes. rawhttp: the request itself. Tensors of an Open Inference
request arrive as JSON text too, made by the front.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .loading import LoadError
from .shims.headers import Headers
from .shims.request import AMLRequest

HEADERS_PARAMETER = "request_headers"
_RAW_HTTP_MODULES = (
    "azureml.contrib.services.aml_request",
    "azureml_inference_server_http.api.aml_request",
)
_ALLOWED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class BadInput(Exception):
    """The request is not what `run` takes; the client's fault."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def parameters_of(run: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """The parameters for data, and whether `run` wants headers; raises `LoadError`."""
    parameters = list(inspect.signature(run).parameters.values())
    if any(parameter.kind not in _ALLOWED_KINDS for parameter in parameters):
        raise _signature("run() may not have positional-only parameters, *args or **kwargs.")
    data = [parameter for parameter in parameters if parameter.name != HEADERS_PARAMETER]
    if not data:
        raise _signature("run() needs a parameter that receives the input data.")
    return data, len(data) < len(parameters)


def mode_of(run: Callable[..., Any], data: Sequence[inspect.Parameter]) -> str:
    """`raw`, `schema` or `rawhttp`; raises `LoadError` for what goes not together."""
    raw_http = any(getattr(sys.modules.get(name), "_rawHttpRequested", False) for name in _RAW_HTTP_MODULES)
    schema = schema_util()
    is_decorated = schema is not None and schema.is_schema_decorated(run)
    if raw_http and is_decorated:
        raise _signature("run() cannot be decorated with both @rawhttp and @input_schema.")
    if is_decorated:
        return "schema"
    required = [parameter.name for parameter in data[1:] if parameter.default is inspect.Parameter.empty]
    if required:
        names = ", ".join(required)
        raise _signature(
            f"run() is called with one argument, but also requires {names}: "
            "describe its parameters with @input_schema, or give them defaults."
        )
    return "rawhttp" if raw_http else "raw"


def schema_util() -> Any:
    """The module of `inference-schema` that knows the decorators, None if the script does not use it."""
    return sys.modules.get("inference_schema.schema_util")


def parse_object(payload: bytes, parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
    """Arguments from a JSON object whose keys are parameters; raises `BadInput`."""
    if not payload.strip():
        raise BadInput("INVALID_JSON", "The body is empty; it must be a JSON object.")
    document = parse_json(payload)
    if not isinstance(document, dict):
        raise BadInput("INVALID_JSON", "The body must be a JSON object.")
    return _pick(document, parameters)


def parse_json(payload: bytes) -> Any:
    """The document; raises `BadInput`."""
    try:
        # Bytes, for Python's own reader takes a byte order mark and UTF-16, as Azure's server does.
        return json.loads(payload)
    except UnicodeDecodeError:
        raise BadInput("INVALID_UTF8", "The body is not UTF-8 text.") from None
    except RecursionError:
        raise BadInput("INVALID_JSON", "The body is nested too deeply.") from None
    except ValueError as error:
        raise BadInput("INVALID_JSON", f"The body is not valid JSON: {error}.") from None


def bind_tensors(
    tensors: dict[str, Any], parameters: Sequence[inspect.Parameter], kinds: dict[str, str]
) -> dict[str, Any]:
    """Arguments from named tensors: by name, or all to the only parameter that must be given.

    `kinds` has the JSON type of each parameter's schema: an `array` takes the only tensor,
    an `object` takes them by name. Raises `BadInput`.
    """
    names = {parameter.name for parameter in parameters}
    if tensors.keys() <= names:
        return _pick(tensors, parameters)
    required = [item for item in parameters if item.default is inspect.Parameter.empty] or parameters[:1]
    if len(required) == 1:
        name = required[0].name
        if kinds.get(name) == "object":
            return _pick({name: tensors}, parameters)
        if len(tensors) == 1:
            return _pick({name: next(iter(tensors.values()))}, parameters)
    raise BadInput(
        "INVALID_REQUEST", f"The inputs {', '.join(tensors)} are not those of run(): {', '.join(names)}."
    )


def _pick(document: dict[str, Any], parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
    arguments = {}
    for parameter in parameters:
        value = document.get(parameter.name, parameter.default)
        if value is inspect.Parameter.empty:
            raise BadInput(
                "PARAMETER_MISSING", f"The body has no value for the parameter {parameter.name!r}."
            )
        arguments[parameter.name] = value
    return arguments


def headers_of(meta: bytes) -> Headers:
    """The request's headers, which any case of letters finds."""
    return Headers(json.loads(meta)["headers"])


def raw_request(meta: bytes, payload: bytes) -> AMLRequest:
    """The request object of a script with `@rawhttp`."""
    envelope = json.loads(meta)
    return AMLRequest(envelope["method"], envelope["target"], envelope["headers"], payload)


def _signature(message: str) -> LoadError:
    return LoadError("RUN_SIGNATURE_INVALID", message)
