"""`stellwerk run`: submit, follow, read."""

import asyncio
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stellwerk import names
from stellwerk.cli import arguments, output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Group, Session
from stellwerk.errors import StellwerkError
from stellwerk.jobs import Job, load
from stellwerk.requirements import requirements

if TYPE_CHECKING:
    from stellwerk import AsyncRun, AsyncWorkspace
    from stellwerk_protos.runs.v1 import runs_pb2

DEFAULT_COMMAND = "python train.py"


@click.group(cls=Group)
def run() -> None:
    """Executions of a command on a compute."""


@run.command(
    "submit",
    example='stellwerk run submit examples/digits --command "python train.py" --input digits=digits:1',
)
@click.argument("folder", type=PathType(), required=False)
@click.option(
    "-f",
    "--file",
    "job_file",
    type=PathType(),
    help="Job file: command-job YAML or .runconfig.",
)
@click.option("-c", "--command", help=f"Shell command.  [default: {DEFAULT_COMMAND}]")
@click.option("--experiment", help="Groups runs.  [default: name of the folder]")
@click.option("-e", "--environment", help="NAME[:VERSION]; with packages the name of what is made.")
@click.option("--packages", multiple=True, metavar="NAMES", help="Requirements, separated by commas.")
@click.option(
    "-r",
    "--requirements",
    type=PathType(),
    help="Requirements file.  [default: requirements.txt of the folder, unless an environment is named]",
)
@click.option("--python", "python_version", help="Python version of the packages, X.Y.")
@click.option("--compute", help="Where.  [default: local]")
@click.option("--input", "inputs", multiple=True, metavar="NAME=DATASET:VERSION", help="Repeatable.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Set for the command.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="It may read this one. Repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--name", help="Id of the run.  [default: chosen by Stellwerk]")
@click.option("--display-name", help="A name for people.")
@click.option("--parent", metavar="RUN", help="The run that this one is a part of.")
@click.option("--timeout", "timeout_seconds", type=click.FloatRange(0, min_open=True), help="Wall time, s.")
@click.option("--follow/--detach", default=True, help="Show the run until it is over (the default).")
def submit(session: Session, folder: Path | None, job_file: Path | None, follow: bool, **options: Any) -> int:
    """Run a command in a copy of FOLDER (here unless given)."""
    job = load(job_file) if job_file is not None else Job()
    if folder is not None:
        job.code = folder
    _apply(job, options)
    return asyncio.run(_submit(session, job, follow))


def _apply(job: Job, options: dict[str, Any]) -> None:
    """Options win over the file."""
    texts = ("command", "experiment", "compute", "name", "display_name", "python_version", "parent")
    for option in (*texts, "timeout_seconds"):
        if options[option]:
            setattr(job, option, options[option])
    job.inputs |= arguments.pairs(options["inputs"], "--input")
    job.variables |= arguments.pairs(options["variables"], "--variable")
    job.secrets += [secret for secret in options["secrets"] if secret not in job.secrets]
    job.tags |= arguments.pairs(options["tags"], "--tag")
    given = arguments.packages(options["packages"], options["requirements"])
    if options["environment"]:
        job.environment, job.packages = options["environment"], given
    elif given is not None:
        job.packages = given
    beside = job.code / "requirements.txt"
    if not job.environment and job.packages is None and beside.is_file():
        job.packages = requirements(beside)
    job.command = job.command or DEFAULT_COMMAND


async def _submit(session: Session, job: Job, follow: bool) -> int:
    from stellwerk import AsyncClient
    from stellwerk.cli import telemetry
    from stellwerk.cli.follow import follow as show

    async with AsyncClient(flags=session.flags) as client:
        with telemetry.root_span("stellwerk run submit", session.settings()):
            submitted = await _create(client.workspace(session.flags.workspace or ""), job)
        if not follow:
            _show_submitted(session, submitted)
            return 0
        click.echo(f"Submitted {submitted.name}  (trace {submitted.message.trace_id})", err=session.json)
        return await show(submitted, as_json=session.json)


async def _create(workspace: "AsyncWorkspace", job: Job) -> "AsyncRun":
    return await workspace.runs.submit(job.command, **job.arguments())


def _show_submitted(session: Session, submitted: "AsyncRun") -> None:
    if session.json:
        output.document(output.to_json(submitted.message))
    else:
        click.echo(f"Submitted {submitted.id}; watch it: stellwerk run watch {submitted.id}")


@run.command("watch", example="stellwerk run watch RUN")
@click.argument("name", metavar="RUN")
def watch(session: Session, name: str) -> int:
    """Show a run until it is over: states, log and metrics."""

    async def work() -> int:
        from stellwerk import AsyncClient
        from stellwerk.cli.follow import follow

        async with AsyncClient(flags=session.flags) as client:
            found = await client.workspace(session.flags.workspace or "").runs.get(name)
            return await follow(found, as_json=session.json)

    return asyncio.run(work())


@run.command("list", example="stellwerk run list --experiment digits")
@click.option("--experiment", default="", help="Only runs of this experiment.")
@click.option("--archived", is_flag=True, help="Show archived runs too.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
def list_(session: Session, experiment: str, archived: bool, limit: int) -> None:
    """List runs, newest first."""
    found = session.workspace().runs.list(experiment=experiment, include_archived=archived, limit=limit)
    show_runs(session, (item.message for item in found))


def show_runs(
    session: Session, found: Iterable["runs_pb2.Run"], depths: Mapping[str, int] | None = None
) -> None:
    """Runs as a table, indented by their depths, or as an array."""
    from stellwerk import states

    output.listing(
        found,
        session.json,
        ("RUN", "STATE", "EXPERIMENT", "CREATED", "REASON"),
        lambda item: (
            "  " * (depths or {}).get(item.name, 0) + names.last(item.name),
            states.run(item),
            names.last(item.experiment),
            output.when(item.create_time),
            output.reason_line(item.reason),
        ),
    )


@run.command("show", example="stellwerk run show RUN")
@click.argument("name", metavar="RUN")
def show(session: Session, name: str) -> None:
    """Show one run."""
    from stellwerk.cli.follow import phases

    found = session.workspace().runs.get(name)
    item = found.message
    facts: list[tuple[str, object]] = [
        ("name", item.name),
        ("state", found.state),
        ("reason", output.reason(item.reason)),
        ("cure", item.reason.cure),
        ("experiment", names.last(item.experiment)),
        ("display name", item.display_name),
        ("description", item.description),
        ("created", f"{output.when(item.create_time)} by {item.creator}"),
        ("ended", output.when(item.end_time)),
        ("exit code", item.exit_code if item.HasField("exit_code") else None),
        ("command", item.workload.command),
        ("compute", names.last(item.workload.compute)),
        ("environment", names.short_version(item.workload.environment)),
        ("secrets", ", ".join(map(names.last, item.workload.secrets))),
        ("inputs", "\n".join(f"{entry.name}: {entry.resource}" for entry in item.workload.inputs)),
        ("snapshot", names.last(item.workload.snapshot)[:16]),
        ("git", f"{item.git.commit[:12]} {item.git.branch}{' (dirty)' * item.git.dirty}".strip()),
        ("phases", phases(item.phases)),
        ("tags", output.pairs(item.tags)),
        ("params", output.pairs(item.params)),
        ("parent", names.last(item.parent_run)),
        ("repeats", names.last(item.cloned_from)),
        ("archived", output.when(item.archive_time)),
        ("trace", item.trace_id),
    ]
    if not session.json:
        facts.append(("outputs", output.files(found.artifacts())))
    output.facts(item, session.json, facts)


@run.command("cancel", example="stellwerk run cancel RUN")
@click.argument("name", metavar="RUN")
@click.option("--message", default="", help="Why, for the record.")
def cancel(session: Session, name: str, message: str) -> None:
    """Ask a run and all runs below it to stop."""
    from stellwerk.cli import telemetry

    with telemetry.root_span("stellwerk run cancel", session.settings()):
        found = session.workspace().runs.cancel(name, message=message)
    if session.json:
        output.document(output.to_json(found.message))
    else:
        click.echo(f"{found.id}: {found.state}")


@run.command("download", example="stellwerk run download RUN outputs --to results/")
@click.argument("name", metavar="RUN")
@click.argument("path", metavar="[PATH]", default="")
@click.option("--to", "folder", type=PathType(), default=Path(), help="Folder.  [default: .]")
def download(session: Session, name: str, path: str, folder: Path) -> None:
    """Write the outputs of a run into a folder.

    PATH is one of the outputs, or a folder of them; --to is where they go.
    """
    try:
        files = session.workspace().runs.get(name).download(folder, path=path)
    except StellwerkError as error:
        if error.reason == "ARTIFACT_NOT_FOUND":
            error.cure = (
                f"To write into a folder {path}: stellwerk run download {name} --to {shlex.quote(path)}. "
                f"The outputs that there are: stellwerk run show {name}."
            )
        raise
    output.listing(
        files,
        session.json,
        ("FILE", "SIZE"),
        lambda item: (item.path, output.size(item.size_bytes)),
    )
