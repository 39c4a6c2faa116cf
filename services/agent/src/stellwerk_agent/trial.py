"""`stellwerk deployment try --local`: a deployment in the foreground, as a node would run it, without one.

The environment is built by the code that builds it on nodes, and the scoring server is the same process.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from stellwerk_agent.environments import Environment, EnvironmentBuilder, clean_environment
from stellwerk_agent.failure import StepFailed
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.registry.v1 import environments_pb2

_POLL_SECONDS = 0.1
_STOP_SECONDS = 25.0
_DAY_MS = 86_400_000
_ROWS = "predictions.csv"


@dataclass(frozen=True)
class Trial:
    """What is tried: paths are absolute, a port of 0 takes a free one."""

    folder: Path
    # Empty: the one model is served without a script.
    script: str
    environment: environments_pb2.EnvironmentVersion
    # Folder or file by name and version, as `models:/name/version` would be laid out.
    models: Mapping[tuple[str, str], Path]
    variables: Mapping[str, str]
    port: int = 5001
    request: bytes | None = None
    # By the paths that they have in the dataset: files of a mini-batch, for the script of a batch deployment.
    mini_batch: Mapping[str, Path] | None = None
    # Where the script waits for a debugger before it is loaded; 0: it does not.
    debug_port: int = 0


def run(trial: Trial, cache: Path) -> tuple[int, bytes | None]:
    """Serves until Ctrl-C; with a request or mini-batch only until that is answered. Exit code and answer.

    Of a mini-batch the answer is the table of its rows.
    Raises `PlatformError` when the environment cannot be built. The log goes to stderr.
    """
    environment = _environment(trial, cache)
    with tempfile.TemporaryDirectory(prefix="stellwerk-try-") as folder:
        models = _lay_out(trial.models, Path(folder, "models"))
        batch = _lay_out_files(trial.mini_batch, Path(folder, "batch")) if trial.mini_batch else None
        port = trial.port or _free_port()
        with _serving(trial, environment, models, batch, port) as process:
            if batch is not None:
                return _score_files(process, port, batch, list(trial.mini_batch or ()))
            if trial.request is None:
                return _wait(process), None
            return _ask(process, port, "/score", trial.request)


def _environment(trial: Trial, cache: Path) -> Environment:
    log = cache / "trial" / f"environment-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(EnvironmentBuilder(cache).build(trial.environment, log))
    except StepFailed as failure:
        sys.stderr.write(log.read_text(errors="replace") if log.exists() else "")
        reason = failure.reason
        raise InvalidArgument(reason.code, reason.message, reason.cure) from failure
    finally:
        log.unlink(missing_ok=True)


def _lay_out(models: Mapping[tuple[str, str], Path], folder: Path) -> Path | None:
    """`AZUREML_MODEL_DIR`: the folder of one model, or one that holds `<name>/<version>/`."""
    if not models:
        return None
    (first, *others) = models.values()
    if first.is_dir() and not others:
        # As it is: MLflow takes no links that lead out of a model's folder.
        return first
    for (name, version), path in models.items():
        place = folder if len(models) == 1 else folder / name / version
        place.mkdir(parents=True, exist_ok=True)
        for entry in [path] if path.is_file() else path.iterdir():
            (place / entry.name).symlink_to(entry)
    return folder


def _lay_out_files(files: Mapping[str, Path], folder: Path) -> Path:
    """One mini-batch, as an agent lays it out."""
    for path, source in files.items():
        place = folder / "try" / "files" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)
    return folder


@contextmanager
def _serving(
    trial: Trial, environment: Environment, models: Path | None, batch: Path | None, port: int
) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [sys.executable, "-m", "stellwerk_scorer", "--local", "--python", str(environment.python)]
    argv += ["--port", str(port)]
    argv += ["--script", str(trial.folder / trial.script)] if trial.script else []
    argv += ["--model-dir", str(models)] if models else []
    argv += ["--debug-port", str(trial.debug_port)] if trial.debug_port else []
    variables = {**clean_environment(), **environment.variables, **trial.variables, "PYTHONUNBUFFERED": "1"}
    if batch is not None:
        variables["STELLWERK_SCORER_BATCH_FOLDER"] = str(batch)
    if len(trial.models) == 1:
        ((name, version),) = trial.models
        variables |= {"STELLWERK_SCORER_MODEL_NAME": name, "STELLWERK_SCORER_MODEL_VERSION": version}
    # Its standard output is the answer's; what the script says goes to stderr, all of it in order.
    process = subprocess.Popen(argv, cwd=trial.folder, env=variables, stdout=sys.stderr.fileno())
    try:
        yield process
    finally:
        _stop(process)


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """Until it ends, by itself or by Ctrl-C, which the terminal sends to both."""
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _stop(process)
        return 0
    return 0 if code == 0 else 1


def _stop(process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        except KeyboardInterrupt:
            # The second Ctrl-C: it has been waited for long enough.
            process.kill()


def _score_files(
    process: "subprocess.Popen[bytes]", port: int, batch: Path, files: Sequence[str]
) -> tuple[int, bytes | None]:
    """The table of the rows, or what went wrong."""
    request = {"folder": "try", "files": files, "action": "APPEND_ROW", "output_file_name": _ROWS}
    body = json.dumps({**request, "timeout_ms": _DAY_MS}).encode()
    code, answer = _ask(process, port, "/mini-batch", body)
    if code or answer is None:
        return code, answer
    counts = json.loads(answer)
    sys.stderr.write(f"{counts['succeeded_file_count']} of {len(files)} files were scored.\n")
    return 0, b"".join((batch / "try" / "results" / name).read_bytes() for name in counts["files"])


def _ask(process: "subprocess.Popen[bytes]", port: int, path: str, body: bytes) -> tuple[int, bytes | None]:
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=None) as client:
        while process.poll() is None:
            if _is_ready(client):
                answer = client.post(path, content=body, headers=headers)
                return (0 if answer.is_success else 1), answer.content
            time.sleep(_POLL_SECONDS)
    return 1, None


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/ready").is_success
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def version_of(packages: Sequence[str], python_version: str = "") -> environments_pb2.EnvironmentVersion:
    """An environment that is registered nowhere."""
    return environments_pb2.EnvironmentVersion(packages=packages, python_version=python_version)
