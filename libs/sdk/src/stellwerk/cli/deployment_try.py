"""`stellwerk deployment try`: a scoring script, or a model without one, in the foreground."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import arguments
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Command, Session
from stellwerk.errors import StellwerkError
from stellwerk.mlflow_model import environment_file, read_environment

_DEFAULT_SCRIPT = "score.py"
_LARGEST_MINI_BATCH = 1_000


def say_no_script(code: Path | None, script: str) -> None:
    """Tells who has a scoring script here that it is not used."""
    if code is None and not script and Path(_DEFAULT_SCRIPT).is_file():
        click.echo(
            f"The model is served without a script; --script {_DEFAULT_SCRIPT} uses the one here.", err=True
        )


def _module() -> Any:
    """The part that runs deployments; raises `StellwerkError` where it is not installed."""
    try:
        return importlib.import_module("stellwerk_agent.trial")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("stellwerk_"):
            raise
        raise StellwerkError(
            "AGENT_MISSING",
            "What runs deployments is not installed here.",
            "Install the packages stellwerk-agent and stellwerk-scorer.",
        ) from error


@click.command(
    "try",
    cls=Command,
    example="stellwerk deployment try --local examples/digits --model model.joblib "
    "--packages scikit-learn --request request.json",
)
@click.argument("folder", type=PathType(exists=True, file_okay=False), required=False)
@click.option("--local", is_flag=True, required=True, help="On this machine, in the foreground.")
@click.option("--script", default="", help="Scoring script in the folder.  [default: score.py]")
@click.option(
    "--model", "models", multiple=True, metavar="NAME[:VERSION]|PATH", help="Registered or not. Repeatable."
)
@click.option("-e", "--environment", metavar="NAME[:VERSION]", help="A registered environment.")
@click.option("--packages", multiple=True, metavar="NAMES", help="Or requirements, separated by commas.")
@click.option("--python", "python_version", default="", metavar="X.Y", help="Python of --packages.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Set for the script.")
@click.option("--port", type=click.IntRange(0, 65535), default=5001, show_default=True, help="0: a free one.")
@click.option(
    "--debug-port",
    type=click.IntRange(1, 65535),
    help="Wait there for a debugger; needs the package debugpy.",
)
@click.option("--request", type=PathType(), help="Score this file, then end.")
@click.option(
    "--mini-batch",
    type=PathType(exists=True),
    metavar="PATH",
    help="Score this file, or the files of this folder, in one run(mini_batch), print the rows, then end.",
)
def try_(
    session: Session,
    folder: Path | None,
    local: bool,
    script: str,
    models: tuple[str, ...],
    environment: str | None,
    packages: tuple[str, ...],
    python_version: str,
    variables: tuple[str, ...],
    port: int,
    debug_port: int | None,
    request: Path | None,
    mini_batch: Path | None,
) -> int:
    """Run a deployment here, as a node would, without a stack.

    With --model but neither FOLDER nor --script the model itself is served, one of MLflow in the environment
    that it describes. What the script prints and its traceback appear on stderr; Ctrl-C ends it. With
    --debug-port the script is loaded when a debugger (VS Code: "Python Debugger: Remote Attach") is there,
    and no time-out ends it. The script of a batch deployment is tried with --mini-batch. Only registered
    models and environments need a running Stellwerk.
    """
    if environment and packages:
        raise click.UsageError("Give either --environment or --packages.")
    if request and mini_batch:
        raise click.UsageError("Give either --request or --mini-batch.")
    if models:
        say_no_script(folder, script)
    if folder is not None or script or not models:
        folder, script = folder or Path(), script or _DEFAULT_SCRIPT
        if not (folder / script).is_file():
            raise _missing(folder / script)
    elif len(models) > 1:
        raise click.UsageError("Without a script one --model can be served.")
    module = _module()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stellwerk"
    found = dict(_model(session, cache, model) for model in models)
    wanted = _split(packages)
    if not (environment or wanted or script):
        described, wanted = _described(*found.values())
        python_version = python_version or described
    trial = module.Trial(
        folder=(folder or Path()).resolve(),
        script=script,
        environment=session.workspace().environments.get(environment)
        if environment
        else module.version_of(wanted, python_version),
        models=found,
        variables=arguments.pairs(variables, "--variable"),
        port=port,
        request=_read(request) if request else None,
        mini_batch=_files(mini_batch.resolve()) if mini_batch else None,
        debug_port=debug_port or 0,
    )
    click.echo("Preparing the environment; Ctrl-C ends.", err=True)
    return _run(module, trial, cache)


def _run(module: Any, trial: Any, cache: Path) -> int:
    from stellwerk_platform.errors import PlatformError

    try:
        code, answer = module.run(trial, cache)
    except PlatformError as error:
        raise StellwerkError(error.reason, error.message, error.cure) from error
    if answer is not None:
        sys.stdout.buffer.write(answer if answer.endswith(b"\n") else answer + b"\n")
        sys.stdout.buffer.flush()
    return int(code)


def _described(model: Path) -> tuple[str, list[str]]:
    """Python version and packages that a model of MLflow asks for itself; none of any other model."""
    file = environment_file(str(path.relative_to(model)) for path in model.rglob("*"))
    return read_environment(file, (model / file).read_bytes(), model.name) if file else ("", [])


def _split(packages: tuple[str, ...]) -> list[str]:
    return [name.strip() for text in packages for name in text.split(",") if name.strip()]


def _model(session: Session, cache: Path, reference: str) -> tuple[tuple[str, str], Path]:
    """Name and version, and where it lies; what is registered is downloaded once."""
    path = Path(reference)
    if path.exists():
        return (path.stem, "1"), path.resolve()
    if "/" in reference or path.suffix:
        raise _missing(path)
    found = session.workspace().models.get(reference)
    name, version = names.short_version(found.name).split(":")
    folder = cache / "models" / found.digest.partition(":")[2]
    session.workspace().models.download(f"{name}:{version}", folder)
    return (name, version), folder


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _missing(path) from error


def _files(path: Path) -> dict[str, Path]:
    """The files of a mini-batch by their paths in a dataset; raises `StellwerkError`."""
    found = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    root = path.parent if path.is_file() else path
    if not 1 <= len(found) <= _LARGEST_MINI_BATCH:
        raise StellwerkError(
            "MINI_BATCH_SIZE_INVALID",
            f"{path} holds {len(found):,} files; a mini-batch has 1 to {_LARGEST_MINI_BATCH:,}.",
            "Give a folder with as many files as one call of run(mini_batch) is to get.",
        )
    return {name: root / name for name in sorted(entry.relative_to(root).as_posix() for entry in found)}


def _missing(path: Path) -> StellwerkError:
    return StellwerkError("PATH_NOT_FOUND", f"There is no {path}.", "Check the path.", code="NOT_FOUND")
