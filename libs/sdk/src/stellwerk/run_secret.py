"""Reads a secret from inside a run, over the HTTP door. Standard library only."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from stellwerk.errors import StellwerkError

_METHOD = "stellwerk.secrets.v1.SecretService/AccessSecret"
_TIMEOUT_SECONDS = 10.0
# A restart of the platform must not end a training.
_PATIENCE_SECONDS = 60.0
_RETRY_SECONDS = 0.5
_MAY_PASS = frozenset({429, 502, 503, 504})
_REASONS = {
    "NOT_FOUND": ("SECRET_NOT_FOUND", "See `stellwerk secret list`."),
    "PERMISSION_DENIED": ("SECRET_NOT_NAMED", "Name it when you submit the run: --secret NAME."),
    "FAILED_PRECONDITION": ("SECRET_DELETED", "Bring it back with `stellwerk secret undelete NAME`."),
}


def read(run: str, name: str) -> bytes:
    """The value of the secret `name` of the run's workspace; raises `StellwerkError`."""
    workspace = "/".join(run.split("/")[:2])
    resource = name if name.startswith("workspaces/") else f"{workspace}/secrets/{name}"
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return _read(resource)
        except StellwerkError as error:
            if error.code != "UNAVAILABLE" or time.monotonic() > give_up:
                raise
        time.sleep(_RETRY_SECONDS)


def _read(resource: str) -> bytes:
    url = os.environ.get("STELLWERK_GATEWAY_URL", "").rstrip("/")
    token_file = os.environ.get("STELLWERK_TOKEN_FILE", "")
    if not url or not token_file:
        raise StellwerkError(
            "NOT_IN_A_RUN",
            "This process does not belong to a run on a compute.",
            "Use `Client().workspace(NAME).secrets.get(NAME)` outside of runs.",
            code="FAILED_PRECONDITION",
        )
    request = urllib.request.Request(
        f"{url}/{_METHOD}",
        data=json.dumps({"name": resource}).encode(),
        headers={
            "content-type": "application/json",
            "authorization": f"Bearer {Path(token_file).read_text().strip()}",
        },
    )
    try:
        with _opener(url).open(request, timeout=_TIMEOUT_SECONDS) as response:
            return base64.b64decode(json.load(response)["value"])
    except urllib.error.HTTPError as error:
        raise _refused(error) from None
    except OSError as error:
        raise StellwerkError(
            "NO_ANSWER", f"{url} does not answer: {error}.", "Check the network.", code="UNAVAILABLE"
        ) from None


def _opener(url: str) -> urllib.request.OpenerDirector:
    """No proxy stands before a door on this machine."""
    local = url.split("://")[-1].startswith(("127.", "localhost", "[::1]"))
    return urllib.request.build_opener(urllib.request.ProxyHandler({} if local else None))


def _refused(error: urllib.error.HTTPError) -> StellwerkError:
    """Connect's JSON error; its details are protobuf, which may not be there."""
    try:
        body = json.load(error)
        code, message = str(body["code"]).upper(), str(body["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "UNKNOWN", f"HTTP {error.code}."
    reason, cure = _REASONS.get(code, ("SECRET_NOT_READ", ""))
    return StellwerkError(reason, message, cure, code="UNAVAILABLE" if error.code in _MAY_PASS else code)
