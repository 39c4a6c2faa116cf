"""`stellwerk deployment`: models with a scoring script or without one, behind an endpoint."""

from collections.abc import Callable
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import arguments, batch_settings, deployment_try, endpoint_data, endpoint_load, output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Group, Session, traced

_SAMPLE_HELP = "Request in the folder (without a script: of the model) that is to be scored first."
_KEEP_HELP = "Rollouts kept for rolling back."


@click.group(cls=Group)
def deployment() -> None:
    """Models, with a scoring script or not, that answer."""


deployment.add_command(endpoint_load.scale)
deployment.add_command(deployment_try.try_)
_of = click.option("--endpoint", "endpoint_name", required=True, metavar="NAME", help="The endpoint.")


@deployment.command(
    "create",
    example="stellwerk deployment create blue --endpoint digits --model digits:1 "
    "--environment digits --code examples/digits --script score.py",
)
@click.argument("name")
@_of
@click.option("--model", "models", multiple=True, required=True, metavar="NAME:VERSION", help="Repeatable.")
@click.option(
    "-e",
    "--environment",
    default="",
    metavar="NAME[:VERSION]",
    help="Packages.  [default: what a model of MLflow that has no script describes]",
)
@click.option("--code", type=PathType(), help="Folder.  [default with --script: .]")
@click.option("--script", default="", help="Scoring script in the folder.  [default with --code: score.py]")
@click.option("--compute", default="local", show_default=True, help="Where.")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Set for the script.")
@click.option("--request-timeout", type=float, default=0, metavar="SECONDS", help="For one request.")
@click.option(
    "--max-concurrent", type=int, default=0, metavar="N", help="Requests that a replica has at a time."
)
@click.option("--max-queue", type=int, default=0, metavar="N", help="Requests that may wait; more get 429.")
@endpoint_load.scale_options
@click.option("--retry-lost", is_flag=True, help="The script may run twice for a request.")
@click.option("--sample", default="", metavar="FILE", help=_SAMPLE_HELP)
@click.option("--keep", type=click.IntRange(1, 20), default=10, show_default=True, help=_KEEP_HELP)
@endpoint_data.collecting
@batch_settings.of_deployment
@click.option("--wait/--no-wait", default=True, help="Wait until it is ready or failed (the default).")
@traced
def deployment_create(
    session: Session, name: str, endpoint_name: str, wait: bool, variables: tuple[str, ...], **given: Any
) -> int:
    """Start a deployment and wait until it answers.

    Without --code and --script the model itself is served: a folder of MLflow, or a pickle of scikit-learn.

    Of a batch endpoint, until its script is ready to score; the options from --mini-batch-size to
    --concurrency are for those. Without --max it has then up to --replicas replicas while there is work,
    and none else.
    """
    deployment_try.say_no_script(given["code"], given["script"])
    given["scale"] = endpoint_load.scale_settings(given)
    given["batch"] = batch_settings.take(given)
    endpoint_data.check(*(given[name] for name in endpoint_data.NAMES))
    workspace = session.workspace()
    deployments = workspace.deployments
    if given["scale"] is None and workspace.endpoints.get(endpoint_name).is_batch:
        given["scale"] = endpoint_load.asleep_between(given["replicas"])
    created = deployments.create(
        name, endpoint=endpoint_name, variables=arguments.pairs(variables, "--variable"), **given
    )
    if wait:
        created = _wait(deployments, endpoint_name, created)
    _show_deployment(session, created)
    return 1 if wait and _state(created) != "Succeeded" else 0


def _wait(deployments: Any, endpoint_name: str, created: Any) -> Any:
    """The deployment at the end of its start; each change is a line on stderr. An interrupt detaches."""
    name, newest, show = names.last(created.name), created, _changes()
    try:
        for newest in deployments.watch(endpoint_name, name):
            show(newest)
    except KeyboardInterrupt:
        where = f"{name} --endpoint {endpoint_name}"
        click.echo(
            f"Detached; {name} goes on. See it: stellwerk deployment show {where}   "
            f"Delete it: stellwerk deployment delete {where}",
            err=True,
        )
        raise
    return newest


def _changes() -> Callable[[Any], None]:
    shown = ""

    def show(newest: Any) -> None:
        nonlocal shown
        ready = f"{newest.ready_replica_count}/{newest.replica_count} ready"
        target = _rollout(newest, newest.target_rollout)
        reason = newest.reason if target is None else target.reason
        step = f"rollout {target.number}  " if target is not None else ""
        text = f"{_state(newest)}  {ready}  {step}{output.reason_line(reason)}".rstrip()
        if text != shown:
            click.echo(text, err=True)
        shown = text

    return show


@deployment.command(
    "update", example="stellwerk deployment update blue --endpoint digits --model digits:2 --code ."
)
@click.argument("name")
@_of
@click.option("--model", "models", multiple=True, metavar="NAME:VERSION", help="In place of all. Repeatable.")
@click.option("-e", "--environment", metavar="NAME[:VERSION]", help="Packages of the script.")
@click.option("--code", type=PathType(), help="Folder.")
@click.option("--script", help="Scoring script in the folder.")
@click.option("--no-script", is_flag=True, help="Serve the model without a script.")
@click.option("--compute", help="Where.")
@click.option("--replicas", type=click.IntRange(1, 100), help="How many; without a rollout.")
@click.option(
    "--variable", "variables", multiple=True, metavar="NAME=VALUE", help="In place of all. Repeatable."
)
@click.option("--request-timeout", type=float, metavar="SECONDS", help="For one request.")
@click.option("--max-concurrent", type=int, metavar="N", help="Requests that a replica has at a time.")
@click.option("--max-queue", type=int, metavar="N", help="Requests that may wait; more get 429.")
@click.option("--retry-lost/--no-retry-lost", default=None, help="The script may run twice for a request.")
@click.option("--sample", metavar="FILE", help="Request in the folder that must be answered first.")
@click.option("--keep", type=click.IntRange(1, 20), help=_KEEP_HELP)
@endpoint_data.collecting
@click.option("--no-collect", is_flag=True, help="Collect nothing any more.")
@batch_settings.of_deployment
@click.option(
    "--wait/--no-wait", default=True, help="Wait until the new replicas serve or failed (the default)."
)
@traced
def deployment_update(
    session: Session,
    name: str,
    endpoint_name: str,
    wait: bool,
    models: tuple[str, ...],
    variables: tuple[str, ...],
    collect: tuple[str, ...],
    collect_percent: float,
    collect_headers: tuple[str, ...],
    collect_max_bytes: int,
    no_collect: bool,
    no_script: bool,
    **given: Any,
) -> int:
    """Replace what a deployment does, without a lost request.

    What fails changes nothing.
    """
    if collect and no_collect:
        raise click.UsageError("Give either --collect or --no-collect.")
    if no_script:
        if given["code"] is not None or given["script"] is not None:
            raise click.UsageError("Give either --no-script or --code and --script.")
        given["script"] = ""
    changes_collection = bool(collect) or no_collect
    endpoint_data.check(collect, collect_percent, collect_headers, collect_max_bytes)
    given["batch"] = batch_settings.take(given) or None
    others = any(value is not None for value in given.values())
    if not (models or variables or changes_collection or others):
        raise click.UsageError("Say what is to change: --model, --code, --replicas, ...")
    changed = session.workspace().deployments.update(
        name,
        endpoint=endpoint_name,
        models=models or None,
        variables=arguments.pairs(variables, "--variable") if variables else None,
        collect=collect if changes_collection else None,
        collect_percent=collect_percent,
        collect_headers=collect_headers,
        collect_max_bytes=collect_max_bytes,
        **given,
    )
    return _finish(session, endpoint_name, changed, wait)


@deployment.command("rollback", example="stellwerk deployment rollback blue --endpoint digits")
@click.argument("name")
@_of
@click.option(
    "--to", type=click.IntRange(1), default=None, metavar="ROLLOUT", help="Number.  [default: before]"
)
@click.option("--wait/--no-wait", default=True, help="Wait until its replicas serve or failed (the default).")
@traced
def deployment_rollback(session: Session, name: str, endpoint_name: str, to: int | None, wait: bool) -> int:
    """Go back to what served before, or end a rollout that goes on."""
    changed = session.workspace().deployments.roll_back(endpoint_name, name, to=to or 0)
    return _finish(session, endpoint_name, changed, wait)


def _finish(session: Session, endpoint_name: str, changed: Any, wait: bool) -> int:
    """Waits for the rollout, if there is one, shows the deployment, and says by 1 that it failed."""
    number = changed.target_rollout
    if wait and number:
        changed = _wait(session.workspace().deployments, endpoint_name, changed)
    _show_deployment(session, changed)
    if not (wait and number) or changed.rollout == number:
        return 0
    failed = _rollout(changed, number)
    if failed is not None:
        click.echo(f"Rollout {number} failed; rollout {changed.rollout} goes on serving.", err=True)
        click.echo(output.reason(failed.reason), err=True)
    return 1


def _rollout(item: Any, number: int) -> Any:
    """The rollout of that number; None if there is none."""
    return next((rollout for rollout in item.rollouts if number and rollout.number == number), None)


@deployment.command("replicas", example="stellwerk deployment replicas blue --endpoint digits")
@click.argument("name")
@_of
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
def deployment_replicas(session: Session, name: str, endpoint_name: str, limit: int) -> None:
    """List the replicas, those that have ended too, newest first."""
    output.listing(
        session.workspace().deployments.replicas(endpoint_name, name, limit=limit),
        session.json,
        ("NAME", "STATE", "ROLLOUT", "CREATED", "REASON"),
        lambda item: (
            names.last(item.name),
            _state(item),
            str(item.rollout),
            output.when(item.create_time),
            output.reason_line(item.reason),
        ),
    )


@deployment.command("logs", example="stellwerk deployment logs digits blue --tail 50 --follow")
@click.argument("endpoint_name", metavar="ENDPOINT")
@click.argument("name", metavar="DEPLOYMENT")
@click.option("--replica", default="", metavar="NAME", help="Which.  [default: the newest]")
@click.option("--log", default="", help="Path of the log.  [default: what the scoring server printed]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the replica has ended.")
@click.option("--tail", type=click.IntRange(0), default=0, help="Only the last so many lines.")
@click.option("--times", is_flag=True, help="Begin each line with the time when the node read it (UTC).")
def deployment_logs(session: Session, endpoint_name: str, name: str, replica: str, **options: Any) -> None:
    """Print what a replica said, also after its end."""
    found = session.workspace().deployments.logs(endpoint_name, name, replica=replica)
    pieces = found.log(**options)
    if session.json:
        output.document({"replica": found.name, "log": options["log"], "text": "".join(pieces)})
        return
    empty = True
    for piece in pieces:
        click.echo(piece, nl=False)
        empty = False
    if empty:
        click.echo("Nothing was said; `stellwerk deployment replicas` lists the others.", err=True)


@deployment.command("list", example="stellwerk deployment list --endpoint digits")
@_of
def deployment_list(session: Session, endpoint_name: str) -> None:
    """List the deployments of an endpoint."""
    output.listing(
        session.workspace().deployments.list(endpoint_name),
        session.json,
        ("NAME", "STATE", "READY", "MODEL", "REASON"),
        lambda item: (
            names.last(item.name),
            _state(item),
            f"{item.ready_replica_count}/{item.replica_count}",
            _models(item),
            output.reason_line(item.reason),
        ),
    )


@deployment.command("show", example="stellwerk deployment show blue --endpoint digits")
@click.argument("name")
@_of
def deployment_show(session: Session, name: str, endpoint_name: str) -> None:
    """Show one deployment."""
    _show_deployment(session, session.workspace().deployments.get(endpoint_name, name))


@deployment.command("delete", example="stellwerk deployment delete blue --endpoint digits")
@click.argument("name")
@_of
@traced
def deployment_delete(session: Session, name: str, endpoint_name: str) -> None:
    """Delete a deployment that takes no traffic."""
    _show_deployment(session, session.workspace().deployments.delete(endpoint_name, name))


def _show_deployment(session: Session, item: Any) -> None:
    facts = [
        ("name", item.name),
        ("state", _state(item)),
        ("reason", output.reason(item.reason)),
        ("cure", item.reason.cure),
        ("created", f"{output.when(item.create_time)} by {item.creator}"),
        ("replicas", f"{item.ready_replica_count} of {item.replica_count} ready"),
        ("scaling", endpoint_load.scale_text(item)),
        ("models", _models(item)),
        ("environment", names.short_version(item.workload.environment)),
        ("script", item.workload.command or "none: the model itself is served"),
        ("rollouts", ", ".join(_rollout_text(item, rollout) for rollout in item.rollouts)),
        ("requests", _request_settings(item.request_settings)),
        ("collects", endpoint_data.settings(item)),
        ("batch", _batch_text(item)),
    ]
    output.facts(item, session.json, facts)


def _rollout_text(item: Any, rollout: Any) -> str:
    note = " (serves)" if rollout.number == item.rollout else ""
    return f"{rollout.number} {_state(rollout)}{note}"


def _request_settings(settings: Any) -> str:
    """What was set; the rest are defaults."""
    texts = [
        (settings.timeout_ms, f"{settings.timeout_ms / 1000:g} s each"),
        (settings.max_concurrent_requests, f"{settings.max_concurrent_requests} at a time"),
        (settings.max_queued_requests, f"{settings.max_queued_requests} may wait"),
        (settings.retry_lost_requests, "lost ones are sent again"),
    ]
    return ", ".join(text for value, text in texts if value)


def _batch_text(item: Any) -> str:
    workload = item.workload
    return batch_settings.describe(workload.batch_settings) if workload.HasField("batch_settings") else ""


def _models(item: Any) -> str:
    return ", ".join(names.short_version(entry.resource) for entry in item.workload.inputs)


def _state(item: Any) -> str:
    from stellwerk import states

    return states.provisioning(item)
