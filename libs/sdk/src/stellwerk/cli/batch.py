"""`stellwerk batch`: jobs that score datasets on the deployments of batch endpoints."""

from pathlib import Path
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import arguments, batch_follow, batch_settings, output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Group, Session, traced


@click.group(cls=Group)
def batch() -> None:
    """Jobs that score datasets, in mini-batches.

    They run on the deployments of endpoints that were created with --batch.
    """


_SHOWN_FILES = 20
_endpoint = click.argument("endpoint")
_job = click.argument("job")
_limit = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many."
)


@batch.command("submit", example="stellwerk batch submit digits-batch images:1 --mini-batch-size 20")
@_endpoint
@click.argument("input", metavar="DATASET[:VERSION]")
@click.option("--path", default="", metavar="PREFIX", help="Only files whose path begins so.")
@click.option("--deployment", default="", metavar="NAME", help="Which.  [default: the one with the traffic]")
@click.option("--name", default="", help="Id of the job.  [default: chosen by Stellwerk]")
@click.option(
    "--output-dataset", default="", metavar="NAME", help="Gets the results.  [default: ENDPOINT-results]"
)
@batch_settings.of_job
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--wait/--no-wait", default=True, help="Show the job until it is over (the default).")
@traced
def submit(
    session: Session, endpoint: str, input: str, tags: tuple[str, ...], wait: bool, **given: Any
) -> int:
    """Score the files of a dataset version.

    The latest unless one is named. Settings that are not given are those of the deployment.
    """
    options = batch_settings.take(given)
    job = session.workspace().batches.submit(
        endpoint, input, tags=arguments.pairs(tags, "--tag"), **given, **options
    )
    if not wait:
        _show(session, job)
        return 0
    click.echo(f"{job.id} on {names.last(job.message.deployment)}", err=True)
    return batch_follow.follow(job, as_json=session.json)


@batch.command("list", example="stellwerk batch list digits-batch")
@click.argument("endpoint", default="-", metavar="[ENDPOINT]")
@click.option("--open", "open_only", is_flag=True, help="Only those that are not over.")
@_limit
def list_(session: Session, endpoint: str, open_only: bool, limit: int) -> None:
    """List the jobs of an endpoint, or of all, newest first."""
    from stellwerk import states

    jobs = session.workspace().batches.list(endpoint, open_only=open_only, limit=limit)
    output.listing(
        (job.message for job in jobs),
        session.json,
        ("ENDPOINT", "JOB", "STATE", "INPUT", "FILES", "FAILED", "CREATED", "RESULTS"),
        lambda item: (
            item.name.split("/")[3],
            names.last(item.name),
            states.batch_job(item),
            names.short_version(item.input),
            f"{item.progress.succeeded_file_count:,}/{item.progress.file_count:,}",
            f"{item.progress.failed_file_count:,}",
            output.when(item.create_time),
            names.short_version(item.output) if item.output else "",
        ),
    )


@batch.command("show", example="stellwerk batch show digits-batch JOB")
@_endpoint
@_job
def show(session: Session, endpoint: str, job: str) -> None:
    """Show one job."""
    _show(session, session.workspace().batches.get(endpoint, job))


@batch.command("watch", example="stellwerk batch watch digits-batch JOB")
@_endpoint
@_job
def watch(session: Session, endpoint: str, job: str) -> int:
    """Show a job until it is over. The exit code is 0 if it is then Completed."""
    return batch_follow.follow(session.workspace().batches.get(endpoint, job), as_json=session.json)


@batch.command("cancel", example="stellwerk batch cancel digits-batch JOB --wait")
@_endpoint
@_job
@click.option("--wait", is_flag=True, help="Until nothing of it is worked on any more.")
@traced
def cancel(session: Session, endpoint: str, job: str, wait: bool) -> None:
    """Stop a job. What it has scored is not registered."""
    found = session.workspace().batches.get(endpoint, job).cancel()
    _show(session, found.wait() if wait else found)


@batch.command("mini-batches", example="stellwerk batch mini-batches digits-batch JOB --state failed")
@_endpoint
@_job
@click.option(
    "--state",
    type=click.Choice(["waiting", "running", "succeeded", "failed"], case_sensitive=False),
    help="Only those.  [default: all]",
)
@_limit
def mini_batches(session: Session, endpoint: str, job: str, state: str | None, limit: int) -> None:
    """List the mini-batches of a job, with what went wrong.

    In the order of its input."""
    from stellwerk import states

    output.listing(
        session.workspace().batches.get(endpoint, job).mini_batches(state=state or "", limit=limit),
        session.json,
        ("INDEX", "STATE", "FILES", "ROWS", "TRIES", "REPLICA", "REASON"),
        lambda item: (
            names.last(item.name),
            states.mini_batch(item),
            f"{item.succeeded_file_count}/{item.file_count}",
            item.row_count,
            item.attempt_count,
            names.last(item.replica),
            output.reason_line(item.reason),
        ),
    )


@batch.command("download", example="stellwerk batch download digits-batch JOB --to results")
@_endpoint
@_job
@click.option("--to", "folder", type=PathType(), default=Path(), help="Folder.  [default: .]")
@click.option("--overwrite", is_flag=True, help="Also files that are there and differ.")
def download(session: Session, endpoint: str, job: str, folder: Path, overwrite: bool) -> None:
    """Write the results of a job into a folder.

    Files that are there and differ, because somebody edited them or they are of another job, are not
    overwritten unless you say so.
    """
    found = session.workspace().batches.get(endpoint, job)
    files = found.download(folder, overwrite=overwrite)
    summary = {
        "job": found.name,
        "dataset": names.short_version(found.message.output),
        "folder": str(folder),
        "files": [file.path for file in files],
    }
    if session.json:
        output.document(summary)
    else:
        output.lines({**summary, "files": _files(files)}.items())


def _files(files: Any) -> str:
    """The names, or how many there are."""
    if len(files) <= _SHOWN_FILES:
        return output.files(files)
    return f"{len(files):,}  ({output.size(sum(file.size_bytes for file in files))})"


def _planned(job: Any) -> str:
    """Where the results will be; none come of a job that is over without any."""
    if job.is_over or batch_settings.only_counts(job.message.settings):
        return ""
    return f"will be a version of {names.last(job.message.output_dataset)}"


def _show(session: Session, job: Any) -> None:
    item = job.message
    facts = [
        ("name", item.name),
        ("state", job.state),
        ("reason", output.reason(item.reason)),
        ("cure", item.reason.cure),
        ("created", f"{output.when(item.create_time)} by {item.creator}"),
        ("started", output.when(item.start_time)),
        ("ended", output.when(item.end_time)),
        ("deployment", f"{names.last(item.deployment)}, rollout {item.rollout}"),
        ("input", names.short_version(item.input)),
        ("path", item.input_path),
        ("progress", batch_follow.progress_text(item.progress)),
        ("settings", batch_settings.describe(item.settings)),
        ("results", names.short_version(item.output) if item.output else _planned(job)),
        ("tags", output.pairs(item.tags)),
    ]
    output.facts(item, session.json, facts)
