"""Scripts and requests at their worst: the client gets a clear error, the deployment's log the details."""

import gzip
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.system.support import Cli, Outcome

WORKSPACE = "hostilescoring"
SCRIPT = """
import json, os, sys

def init():
    print("ready for anything", flush=True)

def run(raw):
    what = json.loads(raw)["what"]
    if what == "exit":
        os._exit(1)
    if what == "sys.exit":
        sys.exit("bye")
    if what == "memory":
        return [bytearray(1 << 20) for _ in range(10_000)]
    if what == "deep":
        value = []
        for _ in range(100_000):
            value = [value]
        return value
    return {"bytes": b"raw", "nan": float("nan"), "generator": (n for n in [1]), "fine": "fine"}[what]
"""
RUN = "\ndef run(raw):\n    return raw\n"
INITS = {
    "eats": "def init():\n    return [bytearray(1 << 20) for _ in range(10_000)]\n",
    "hangs": "import time\ndef init():\n    time.sleep(600)\n",
    "misses": "def init():\n    open('no-such-model.pkl')\n",
}
LIMITS = (
    *("--variable", f"STELLWERK_SCORER_MEMORY_BYTES={300 << 20}"),
    *("--variable", "STELLWERK_SCORER_MAX_BODY_BYTES=10000000"),
)
# For the one that hangs: the others may take as long as the machine is busy.
IMPATIENT = ("--variable", "STELLWERK_SCORER_INIT_TIMEOUT_SECONDS=2")


@pytest.fixture(scope="module")
def create(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Starts deployments of a script; each command runs by itself."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "model.txt").write_text("none")
    cli.ok("model", "register", "none", "--path", folder / "model.txt")
    cli.ok("environment", "create", "bare")
    cli.ok("endpoint", "create", "worst")

    def start(name: str, script: str, *more: str) -> Any:
        code = folder / name
        code.mkdir()
        (code / "score.py").write_text(script)
        return cli.start(
            *("deployment", "create", name, "--endpoint", "worst", "--model", "none:1"),
            *("--environment", "bare", "--code", code),
            *LIMITS,
            *more,
        )

    return start


def ended(process: Any) -> Outcome:
    out, err = process.communicate()
    return Outcome(process.returncode, out, err)


def test_an_init_that_fails_is_told_with_its_reason_and_logged(cli: Cli, create: Any) -> None:
    more: dict[str, tuple[str, ...]] = {"hangs": IMPATIENT}
    started = {name: create(name, script + RUN, *more.get(name, ())) for name, script in INITS.items()}
    said = {name: ended(process) for name, process in started.items()}
    for name, reason in {"eats": "OUT_OF_MEMORY", "hangs": "INIT_TIMEOUT", "misses": "INIT_FAILED"}.items():
        assert said[name].code == 1
        assert reason in said[name].out + said[name].err
        log = cli.ok("deployment", "logs", "worst", name)
        assert "Traceback" in log
        assert reason in log
    assert "no-such-model.pkl" in said["misses"].err + said["misses"].out


@pytest.fixture(scope="module")
def url(cli: Cli, create: Any, stack: dict[str, Any]) -> str:
    made = ended(create("blue", SCRIPT))
    assert made.code == 0, made
    return f"{stack['gateway_url']}{cli.json('endpoint', 'show', 'worst')['path']}/score"


BODIES: dict[str, tuple[bytes, dict[str, str], int, str, str]] = {
    "bytes": (b'{"what": "bytes"}', {}, 500, "RESULT_NOT_JSON", "bytes is not JSON"),
    "nan": (b'{"what": "nan"}', {}, 500, "RESULT_NOT_JSON", "not JSON compliant"),
    "generator": (b'{"what": "generator"}', {}, 500, "RESULT_NOT_JSON", "generator is not JSON"),
    "deep result": (b'{"what": "deep"}', {}, 500, "RESULT_NOT_JSON", "recursion"),
    "memory": (b'{"what": "memory"}', {}, 500, "SCRIPT_ERROR", "MemoryError"),
    "sys.exit": (b'{"what": "sys.exit"}', {}, 500, "SCRIPT_ERROR", "SystemExit: bye"),
    "unknown": (b'{"what": "other"}', {}, 500, "SCRIPT_ERROR", "KeyError: 'other'"),
    "wrong type": (b'["what"]', {}, 500, "SCRIPT_ERROR", "TypeError"),
    "exit": (b'{"what": "exit"}', {}, 502, "WORKER_DIED", "ended with code 1"),
    "no utf-8": (b'{"what": "\xff"}', {}, 400, "INVALID_UTF8", ""),
    "no json": (b"what", {}, 400, "INVALID_JSON", ""),
    "deep body": (b'{"what": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 400, "INVALID_JSON", ""),
    "gzip bomb": (
        gzip.compress(bytes(200 << 20), 1),
        {"content-encoding": "gzip"},
        413,
        "PAYLOAD_TOO_LARGE",
        "",
    ),
}


def test_each_is_a_clear_error_for_the_client_and_in_the_log(cli: Cli, url: str, owner_key: str) -> None:
    key = {"authorization": f"Bearer {owner_key}"}
    wrong = []
    with httpx.Client(headers=key, timeout=60, trust_env=False) as client:
        for name, (body, headers, status, reason, _) in BODIES.items():
            answer = client.post(url, content=body, headers=headers)
            found = answer.json()
            if (answer.status_code, found.get("reason")) != (status, reason) or "Traceback" in answer.text:
                wrong.append((name, answer.status_code, answer.text[:500]))
            # The next request is answered, if need be by a new worker.
            soon = time.monotonic() + 60
            while client.post(url, content=b'{"what": "fine"}').status_code != 200:
                assert time.monotonic() < soon, f"nothing is answered any more after {name}"
    assert not wrong
    # The log travels for a moment.
    soon = time.monotonic() + 60
    while True:
        log = cli.ok("deployment", "logs", "worst", "blue")
        missing = [name for name, case in BODIES.items() if case[4] not in log]
        if not missing:
            break
        assert time.monotonic() < soon, missing


def test_two_hundred_megabytes_are_refused_before_they_are_sent(url: str, owner_key: str) -> None:
    place = urlsplit(url)
    head = f"POST {place.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {owner_key}\r\n"
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as connection:
        connection.sendall(f"{head}expect: 100-continue\r\ncontent-length: 200000000\r\n\r\n".encode())
        answer = connection.recv(65536)
    assert answer.split()[1] == b"413"
    assert b"PAYLOAD_TOO_LARGE" in answer
