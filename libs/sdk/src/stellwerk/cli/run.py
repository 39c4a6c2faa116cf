"""`stellwerk run`: submit, follow, read."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stellwerk import names
from stellwerk.cli import arguments, output
from stellwerk.cli.base import Group, Session
from stellwerk.jobs import Job, load
from stellwerk.requirements import requirements

if TYPE_CHECKING:
    from stellwerk import AsyncRun, AsyncWorkspace

DEFAULT_COMMAND = "python train.py"


@click.group(cls=Group)
def run() -> None:
    """Executions of a command on a compute."""


@run.command(
    "submit",
    example='stellwerk run submit examples/digits --command "python train.py" --input digits=digits:1',
)
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("-f", "--file", "job_file", type=click.Path(path_type=Path), help="Job file (YAML).")
@click.option("-c", "--command", help=f"Shell command.  [default: {DEFAULT_COMMAND}]")
@click.option("--experiment", help="Groups runs.  [default: name of the folder]")
@click.option("-e", "--environment", help="NAME[:VERSION]; with packages the name of what is made.")
@click.option("--packages", multiple=True, metavar="NAMES", help="Requirements, separated by commas.")
@click.option(
    "-r",
    "--requirements",
    type=click.Path(path_type=Path),
    help="Requirements file.  [default: requirements.txt of the folder, unless an environment is named]",
)
@click.option("--python", "python_version", help="Python version of the packages, X.Y.")
@click.option("--compute", help="Where.  [default: local]")
@click.option("--input", "inputs", multiple=True, metavar="NAME=DATASET:VERSION", help="Repeatable.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Set for the command.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--name", help="Id of the run.  [default: chosen by Stellwerk]")
@click.option("--display-name", help="A name for people.")
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
    for option in ("command", "experiment", "compute", "name", "display_name", "python_version"):
        if options[option]:
            setattr(job, option, options[option])
    job.inputs |= arguments.pairs(options["inputs"], "--input")
    job.variables |= arguments.pairs(options["variables"], "--variable")
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
    return await workspace.runs.submit(
        job.command,
        code=job.code,
        environment=job.environment,
        packages=job.packages or (),
        python_version=job.python_version,
        compute=job.compute,
        inputs=job.inputs,
        experiment=job.experiment,
        name=job.name,
        display_name=job.display_name,
        description=job.description,
        tags=job.tags,
        properties=job.properties,
        variables=job.variables,
    )


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
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
def list_(session: Session, experiment: str, limit: int) -> None:
    """List runs, newest first."""
    from stellwerk import states

    found = session.workspace().runs.list(experiment=experiment, limit=limit)
    output.listing(
        (item.message for item in found),
        session.json,
        ("RUN", "STATE", "EXPERIMENT", "CREATED", "REASON"),
        lambda item: (
            names.last(item.name),
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
        ("inputs", "\n".join(f"{entry.name}: {entry.resource}" for entry in item.workload.inputs)),
        ("snapshot", names.last(item.workload.snapshot)[:16]),
        ("git", f"{item.git.commit[:12]} {item.git.branch}{' (dirty)' * item.git.dirty}".strip()),
        ("phases", phases(item.phases)),
        ("tags", output.pairs(item.tags)),
        ("trace", item.trace_id),
    ]
    if not session.json:
        facts.append(("outputs", output.files(found.artifacts())))
    output.facts(item, session.json, facts)


@run.command("cancel", example="stellwerk run cancel RUN")
@click.argument("name", metavar="RUN")
@click.option("--message", default="", help="Why, for the record.")
def cancel(session: Session, name: str, message: str) -> None:
    """Ask a run to stop."""
    from stellwerk.cli import telemetry

    with telemetry.root_span("stellwerk run cancel", session.settings()):
        found = session.workspace().runs.cancel(name, message=message)
    if session.json:
        output.document(output.to_json(found.message))
    else:
        click.echo(f"{found.id}: {found.state}")


@run.command("logs", example="stellwerk run logs RUN -f")
@click.argument("name", metavar="RUN")
@click.option("--log", default="", help="Path of the log.  [default: what the command printed]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
@click.option("--list", "listed", is_flag=True, help="List the logs instead.")
def logs(session: Session, name: str, log: str, follow: bool, listed: bool) -> None:
    """Print a log."""
    found = session.workspace().runs.get(name)
    if listed:
        output.listing(
            found.logs(),
            session.json,
            ("LOG", "SIZE"),
            lambda item: (item.log, output.size(item.size_bytes)),
        )
        return
    pieces = found.log(log=log, follow=follow)
    if session.json:
        output.document({"log": log or "user_logs/std_log.txt", "text": "".join(pieces)})
        return
    empty = True
    for piece in pieces:
        click.echo(piece, nl=False)
        empty = False
    if empty:
        click.echo("The log is empty; `--list` shows the others of the run.", err=True)


@run.command("metrics", example="stellwerk run metrics RUN loss")
@click.argument("name", metavar="RUN")
@click.argument("metric", required=False)
def metrics(session: Session, name: str, metric: str | None) -> None:
    """Summarise the metrics of a run, or print all points of one."""
    found = session.workspace().runs.get(name)
    if metric is not None:
        points = found.history(metric)
        if session.json:
            output.document([point._asdict() for point in points])
        else:
            output.table(("STEP", "TIME", "VALUE"), [(p.step, p.time_ms, f"{p.value:.10g}") for p in points])
        return
    output.listing(
        found.metrics(),
        session.json,
        ("METRIC", "COUNT", "MIN", "MAX", "LAST", "STEP"),
        lambda item: (
            item.metric,
            item.count,
            f"{item.min:.6g}",
            f"{item.max:.6g}",
            f"{item.last:.6g}",
            item.last_step,
        ),
    )


@run.command("download", example="stellwerk run download RUN outputs --to results/")
@click.argument("name", metavar="RUN")
@click.argument("path", default="")
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path(), help="Folder.  [default: .]")
def download(session: Session, name: str, path: str, folder: Path) -> None:
    """Write the outputs of a run, or those at PATH, into a folder."""
    files = session.workspace().runs.get(name).download(folder, path=path)
    output.listing(
        files,
        session.json,
        ("FILE", "SIZE"),
        lambda item: (item.path, output.size(item.size_bytes)),
    )
