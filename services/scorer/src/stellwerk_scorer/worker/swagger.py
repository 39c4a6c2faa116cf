"""The OpenAPI documents of a scoring script, in the versions that its schema allows.

The shape is that of Azure's server, so that clients generated from one fit the other. A file
`swagger.json`, `swagger2.json`, `swagger3.json` or `swagger3.1.json` beside the script replaces one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from .inputs import schema_util

# version -> the names that it is asked by, and the user's files, best first
VERSIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "2": (("2", "2.0"), ("swagger.json", "swagger2.json")),
    "3": (("3", "3.0"), ("swagger3.json",)),
    "3.1": (("3.1",), ("swagger3.1.json",)),
}
_ANYTHING = {"type": "object", "example": {}}
_FAILED = "The service failed to execute due to an error."
_ERROR = {"type": "object", "properties": {"message": {"type": "string"}}}


def documents(run: Callable[..., Any] | None) -> dict[str, Any]:
    """The document for each name of a version that can be served."""
    found = {}
    for version, (names, files) in VERSIONS.items():
        document = _users(files)
        if document is None and any(name in _supported(run) for name in names):
            document = _version_2(run) if version == "2" else _version_3(run, version)
        if document is not None:
            found.update(dict.fromkeys(names, document))
    return found


def parameter_kinds(run: Callable[..., Any]) -> dict[str, str]:
    """The JSON type of each parameter that the schema describes."""
    properties = _schemas(run)[0].get("properties", {})
    return {name: str(schema.get("type", "")) for name, schema in properties.items()}


def _users(files: tuple[str, ...]) -> Any:
    script = os.environ.get("STELLWERK_SCORER_SCRIPT", "")
    roots = [os.environ.get("AML_APP_ROOT", ""), os.path.dirname(os.path.abspath(script)) if script else ""]
    for path in (os.path.join(root, name) for root in roots if root for name in files):
        try:
            with open(path, encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            print(f"stellwerk-scorer: {path} is not used, for it cannot be read: {error}", flush=True)
    return None


def _supported(run: Callable[..., Any] | None) -> list[str]:
    schema = schema_util()
    if schema is None or run is None:
        return ["2.0", "3.0", "3.1"]
    return [str(version) for version in schema.get_supported_versions(run)]


def _schemas(run: Callable[..., Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    schema = schema_util()
    if schema is None or run is None or not schema.is_schema_decorated(run):
        return _ANYTHING, _ANYTHING
    return schema.get_input_schema(run), schema.get_output_schema(run)


def _info() -> dict[str, str]:
    name = os.environ.get("SERVICE_NAME", "ML service")
    return {
        "title": name,
        "description": f"API specification for the Azure Machine Learning service {name}",
        "version": os.environ.get("SERVICE_VERSION", "1.0"),
    }


def _prefix() -> str:
    prefix = os.environ.get("SERVICE_PATH_PREFIX", "").strip("/")
    return f"/{prefix}" if prefix else ""


_ANSWERS = {
    "": "If service is up and running, this response will be returned with the content 'Healthy'",
    "score": "The service processed the input correctly and provided a result prediction, if applicable.",
    "swagger.json": "The Swagger specification.",
}
_PAYLOAD = "The input payload for executing the real-time machine learning service."
_HEALTH = "Simple health check endpoint to ensure the service is up at any given point."
_OPERATIONS = {
    "": ("get", "ServiceHealthCheck", _HEALTH),
    "score": ("post", "RunMLService", "Run web service's model and get the prediction output"),
    "swagger.json": ("get", "GetSwaggerSpec", "Get the Swagger specification."),
}
_VERSION_PARAMETER = {"name": "version", "in": "query", "required": False}


def _version_2(run: Callable[..., Any] | None) -> dict[str, Any]:
    given, returned = _schemas(run)

    def operation(name: str) -> dict[str, Any]:
        verb, identifier, description = _OPERATIONS[name]
        schema: dict[str, Any] = {"type": "string"}
        if name == "score":
            schema = {"$ref": "#/definitions/ServiceOutput"}
        found: dict[str, Any] = {
            "operationId": identifier,
            "description": description,
            "responses": {
                "200": {"description": _ANSWERS[name], "schema": schema},
                "default": {"description": _FAILED, "schema": {"$ref": "#/definitions/ErrorResponse"}},
            },
        }
        if name == "score":
            body = {"name": "serviceInputPayload", "in": "body", "description": _PAYLOAD}
            found["security"] = [{"Bearer": []}]
            found["parameters"] = [{**body, "schema": {"$ref": "#/definitions/ServiceInput"}}]
        if name == "swagger.json":
            found["parameters"] = [{**_VERSION_PARAMETER, "type": "string"}]
        return {verb: found}

    bearer = {"type": "apiKey", "name": "Authorization", "in": "header"}
    return {
        "swagger": "2.0",
        "info": _info(),
        "schemes": ["https"],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "securityDefinitions": {"Bearer": {**bearer, "description": "For example: Bearer abc123"}},
        "paths": {f"{_prefix()}/{name}": operation(name) for name in _OPERATIONS},
        "definitions": {"ServiceInput": given, "ServiceOutput": returned, "ErrorResponse": _ERROR},
    }


def _version_3(run: Callable[..., Any] | None, version: str) -> dict[str, Any]:
    given, returned = _schemas(run)

    def content(schema: dict[str, Any], media_type: str = "application/json") -> dict[str, Any]:
        return {media_type: {"schema": schema}}

    def operation(name: str) -> dict[str, Any]:
        verb, identifier, description = _OPERATIONS[name]
        answer = content({"type": "string"}, "application/json" if name else "text/plain")
        if name == "score":
            answer = content({"$ref": "#/components/schemas/ServiceOutput"})
        failure = content({"$ref": "#/components/schemas/ErrorResponse"})
        found: dict[str, Any] = {
            "operationId": identifier,
            "description": description,
            "responses": {
                "200": {"description": _ANSWERS[name], "content": answer},
                "default": {"description": _FAILED, "content": failure},
            },
        }
        if name == "score":
            body = content({"$ref": "#/components/schemas/ServiceInput"})
            found["requestBody"] = {"description": _PAYLOAD, "content": body}
        if name == "swagger.json":
            found["parameters"] = [{**_VERSION_PARAMETER, "schema": {"type": "string"}}]
        return {verb: found}

    schemas = {"ServiceInput": given, "ServiceOutput": returned, "ErrorResponse": _ERROR}
    return {
        "openapi": "3.1.0" if version == "3.1" else "3.0.3",
        "info": _info(),
        "security": [{"Bearer": []}],
        "paths": {f"{_prefix()}/{name}": operation(name) for name in _OPERATIONS},
        "components": {
            "securitySchemes": {"Bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
    }
