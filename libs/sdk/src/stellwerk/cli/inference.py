"""`stellwerk endpoint|deployment`: models that answer."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import arguments, endpoint_keys, output
from stellwerk.cli.base import Group, Session, traced
from stellwerk.errors import StellwerkError


@click.group(cls=Group)
def endpoint() -> None:
    """Addresses that deployments stand behind."""


@endpoint.command("create", example="stellwerk endpoint create digits")
@click.argument("name")
@click.option("--description", default="", help="Free text.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option(
    "--auth",
    type=endpoint_keys.MODES,
    default="both",
    show_default=True,
    help="What callers show: the endpoint's keys, tokens and API keys of the platform, or both.",
)
@traced
def endpoint_create(session: Session, name: str, description: str, tags: tuple[str, ...], auth: str) -> None:
    """Create an endpoint, and print its two keys. They are shown only now.

    Callers send one of them as `Authorization: Bearer KEY`.
    """
    created = session.workspace().endpoints.create(
        name, description=description, tags=arguments.pairs(tags, "--tag"), auth=auth
    )
    made = endpoint_keys.make_both(session, name) if auth != "token" else {}
    if session.json:
        shown = output.to_json(session.workspace().endpoints.get(name).message)
        output.document({**shown, "keys": made})
        return
    _show_endpoint(session, created)
    output.lines((f"{which} key", key) for which, key in made.items())


endpoint.add_command(endpoint_keys.keys)
endpoint.add_command(endpoint_keys.auth)


@endpoint.command("list", example="stellwerk endpoint list")
def endpoint_list(session: Session) -> None:
    """List the endpoints."""
    from stellwerk import states

    output.listing(
        (item.message for item in session.workspace().endpoints.list()),
        session.json,
        ("NAME", "STATE", "TRAFFIC", "PATH"),
        lambda item: (
            names.last(item.name),
            states.provisioning(item),
            output.pairs(item.traffic),
            item.path,
        ),
    )


@endpoint.command("show", example="stellwerk endpoint show digits")
@click.argument("name")
def endpoint_show(session: Session, name: str) -> None:
    """Show one endpoint."""
    _show_endpoint(session, session.workspace().endpoints.get(name))


@endpoint.command("traffic", example="stellwerk endpoint traffic digits blue=90 green=10 --mirror red=5")
@click.argument("name")
@click.argument("shares", nargs=-1, metavar="[DEPLOYMENT=PERCENT]...")
@click.option("--none", "nobody", is_flag=True, help="Take the traffic away from all.")
@click.option("--mirror", "mirrors", multiple=True, metavar="DEPLOYMENT=PERCENT", help="Copies. Repeatable.")
@click.option("--no-mirror", is_flag=True, help="Send no more copies.")
@click.option("--sticky-header", metavar="HEADER", help='Same value, same deployment; "" for none.')
@traced
def endpoint_traffic(
    session: Session,
    name: str,
    shares: tuple[str, ...],
    nobody: bool,
    mirrors: tuple[str, ...],
    no_mirror: bool,
    sticky_header: str | None,
) -> None:
    """Set the share of each deployment, and who gets copies."""
    if shares and nobody:
        raise click.UsageError("Give either DEPLOYMENT=PERCENT... or --none.")
    if mirrors and no_mirror:
        raise click.UsageError("Give either --mirror or --no-mirror.")
    if not (shares or nobody or mirrors or no_mirror or sticky_header is not None):
        raise click.UsageError("Give DEPLOYMENT=PERCENT..., --none, --mirror, or --sticky-header.")
    changed = session.workspace().endpoints.set_traffic(
        name,
        _percents(shares, "DEPLOYMENT=PERCENT") if shares or nobody else None,
        mirror=_percents(mirrors, "--mirror") if mirrors or no_mirror else None,
        sticky_header=sticky_header,
    )
    _show_endpoint(session, changed)


def _percents(given: tuple[str, ...], what: str) -> dict[str, int]:
    pairs = arguments.pairs(given, what)
    for deployment_name, percent in pairs.items():
        if not percent.isdigit():
            raise click.BadParameter(
                f"{percent!r} is not a whole number of percent.", param_hint=deployment_name
            )
    return {deployment_name: int(percent) for deployment_name, percent in pairs.items()}


@endpoint.command("delete", example="stellwerk endpoint delete digits")
@click.argument("name")
@traced
def endpoint_delete(session: Session, name: str) -> None:
    """Delete an endpoint with its deployments."""
    _show_endpoint(session, session.workspace().endpoints.delete(name))


@endpoint.command("score", example="stellwerk endpoint score digits --file request.json")
@click.argument("name")
@click.option("--data", help="The request, JSON.")
@click.option("--file", "file", type=click.Path(path_type=Path), help="File with the request; - is stdin.")
def endpoint_score(session: Session, name: str, data: str | None, file: Path | None) -> None:
    """Send a request and print the answer, always as JSON."""
    if (data is None) == (file is None):
        raise click.UsageError("Give either --data or --file.")
    body = data.encode() if data is not None else _request_body(file or Path("-"))
    found = session.workspace().endpoints.get(name)
    click.echo(json.dumps(found.score(body), ensure_ascii=False))


def _request_body(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise StellwerkError(
            "PATH_NOT_FOUND", f"{file} cannot be read: {error.strerror}.", "Check the path.", code="NOT_FOUND"
        ) from error


def _show_endpoint(session: Session, found: Any) -> None:
    item = found.message
    facts = [
        ("name", item.name),
        ("state", found.state),
        ("reason", output.reason(item.reason)),
        ("created", f"{output.when(item.create_time)} by {item.creator}"),
        ("description", item.description),
        ("traffic", output.pairs(item.traffic)),
        ("copies", output.pairs(item.mirror_traffic)),
        ("sticky by", item.sticky_header),
        ("callers show", endpoint_keys.mode_word(item)),
        ("url", found.url),
    ]
    output.facts(item, session.json, facts)


@click.group(cls=Group)
def deployment() -> None:
    """Models with a scoring script, behind an endpoint."""


_of = click.option("--endpoint", "endpoint_name", required=True, metavar="NAME", help="The endpoint.")


@deployment.command(
    "create",
    example="stellwerk deployment create blue --endpoint digits --model digits:1 "
    "--environment digits --code examples/digits --script score.py",
)
@click.argument("name")
@_of
@click.option("--model", "models", multiple=True, required=True, metavar="NAME:VERSION", help="Repeatable.")
@click.option("-e", "--environment", required=True, metavar="NAME[:VERSION]", help="Packages of the script.")
@click.option("--code", type=click.Path(path_type=Path), default=Path(), help="Folder.  [default: .]")
@click.option("--script", default="score.py", show_default=True, help="Scoring script in the folder.")
@click.option("--compute", default="local", show_default=True, help="Where.")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Set for the script.")
@click.option("--request-timeout", type=float, default=0, metavar="SECONDS", help="For one request.")
@click.option(
    "--max-concurrent", type=int, default=0, metavar="N", help="Requests that a replica has at a time."
)
@click.option("--max-queue", type=int, default=0, metavar="N", help="Requests that may wait; more get 429.")
@click.option("--retry-lost", is_flag=True, help="The script may run twice for a request.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is ready or failed (the default).")
@traced
def deployment_create(
    session: Session, name: str, endpoint_name: str, wait: bool, variables: tuple[str, ...], **given: Any
) -> int:
    """Start a deployment and wait until it answers."""
    deployments = session.workspace().deployments
    created = deployments.create(
        name, endpoint=endpoint_name, variables=arguments.pairs(variables, "--variable"), **given
    )
    if wait:
        created = _wait(deployments, endpoint_name, created)
    _show_deployment(session, created)
    return 1 if wait and _state(created) != "Succeeded" else 0


def _wait(deployments: Any, endpoint_name: str, created: Any) -> Any:
    """The deployment at the end of its start; each change is a line on stderr."""
    shown = ""
    newest = created
    for newest in deployments.watch(endpoint_name, names.last(created.name)):
        ready = f"{newest.ready_replica_count}/{newest.replica_count} ready"
        text = f"{_state(newest)}  {ready}  {output.reason_line(newest.reason)}".rstrip()
        if text != shown:
            click.echo(text, err=True)
        shown = text
    return newest


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
        ("models", _models(item)),
        ("environment", names.short_version(item.workload.environment)),
        ("script", item.workload.command),
        ("requests", _request_settings(item.request_settings)),
    ]
    output.facts(item, session.json, facts)


def _request_settings(settings: Any) -> str:
    """What was set; the rest are defaults."""
    texts = [
        (settings.timeout_ms, f"{settings.timeout_ms / 1000:g} s each"),
        (settings.max_concurrent_requests, f"{settings.max_concurrent_requests} at a time"),
        (settings.max_queued_requests, f"{settings.max_queued_requests} may wait"),
        (settings.retry_lost_requests, "lost ones are sent again"),
    ]
    return ", ".join(text for value, text in texts if value)


def _models(item: Any) -> str:
    return ", ".join(names.short_version(entry.resource) for entry in item.workload.inputs)


def _state(item: Any) -> str:
    from stellwerk import states

    return states.provisioning(item)
