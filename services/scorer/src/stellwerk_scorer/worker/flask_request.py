"""The request that a script with `@rawhttp` gets once something has imported Flask: Flask's own.

Azure's server is a Flask application, so there `jsonify`, `make_response` and `flask.request` work
inside `run`, and its package imports Flask for `rawhttp` itself. Else the script gets
`shims/request.py`.
"""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

Call = Callable[[], Any]


@functools.cache
def _application(flask: Any) -> Any:
    return flask.Flask("entry_module")


def call(run: Callable[..., Any], name: str, meta: bytes, payload: bytes) -> Call | None:
    """Calls `run` with the request under this name; None where nobody uses Flask."""
    flask = sys.modules.get("flask")
    if flask is None:
        return None
    application = _application(flask)
    environ = _environ(json.loads(meta), payload)

    def answer(**more: Any) -> Any:
        with application.request_context(environ) as context:
            return run(**{name: context.request}, **more)

    return answer


def _environ(envelope: dict[str, Any], payload: bytes) -> dict[str, Any]:
    """What WSGI (PEP 3333) says of a request."""
    path, _, query = envelope["target"].partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": envelope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": envelope["target"],
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(payload),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for header, value in envelope["headers"]:
        key = header.upper().replace("-", "_")
        key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    # Of the body as it is now: it may have come in chunks, or packed.
    for key in ("HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING"):
        environ.pop(key, None)
    environ["CONTENT_LENGTH"] = str(len(payload))
    return environ
