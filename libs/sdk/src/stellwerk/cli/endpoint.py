"""`stellwerk endpoint`: addresses that deployments stand behind."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import arguments, endpoint_data, endpoint_keys, endpoint_load, output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm
from stellwerk.errors import StellwerkError

_SHOWN_JOBS = 20


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
@click.option("--batch", is_flag=True, help="It scores datasets (`stellwerk batch`) and answers no requests.")
@traced
def endpoint_create(
    session: Session, name: str, description: str, tags: tuple[str, ...], auth: str, batch: bool
) -> None:
    """Create an endpoint, and print its two keys. They are shown only now.

    Callers send one of them as `Authorization: Bearer KEY`. A batch endpoint has no keys: whoever starts
    its jobs shows a token or an API key of the platform.
    """
    if batch and auth == "key":
        raise click.UsageError("A batch endpoint has no keys: leave --auth out.")
    created = session.workspace().endpoints.create(
        name,
        description=description,
        tags=arguments.pairs(tags, "--tag"),
        auth="token" if batch else auth,
        batch=batch,
    )
    made = endpoint_keys.make_both(session, name) if auth != "token" and not batch else {}
    if session.json:
        shown = output.to_json(session.workspace().endpoints.get(name).message)
        output.document({**shown, "keys": made})
        return
    _show_endpoint(session, created)
    output.lines((f"{which} key", key) for which, key in made.items())


endpoint.add_command(endpoint_keys.keys)
endpoint.add_command(endpoint_keys.auth)
endpoint.add_command(endpoint_load.top)
endpoint.add_command(endpoint_load.load)
endpoint.add_command(endpoint_load.simulate)
endpoint.add_command(endpoint_data.data)


@endpoint.command("list", example="stellwerk endpoint list")
def endpoint_list(session: Session) -> None:
    """List the endpoints."""
    from stellwerk import states

    output.listing(
        (item.message for item in session.workspace().endpoints.list()),
        session.json,
        ("NAME", "KIND", "STATE", "TRAFFIC", "PATH"),
        lambda item: (
            names.last(item.name),
            states.endpoint_kind(item),
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
@click.option("-y", "--yes", is_flag=True, help="Do not ask about its deployments and jobs.")
@traced
def endpoint_delete(session: Session, name: str, yes: bool) -> None:
    """Delete an endpoint with its deployments.

    Batch jobs of it that are not over are canceled. Lists both first, and asks.
    """
    workspace = session.workspace()
    existing = [] if yes else [names.last(item.name) for item in workspace.deployments.list(name)]
    if existing:
        jobs = workspace.batches.list(name, open_only=True)
        text = f"{name} has deployments that go with it: {', '.join(existing)}."
        text += f" Jobs that are not over are canceled: {_some(jobs)}." if jobs else ""
        confirm(text, f"{text} Delete them all?")
    _show_endpoint(session, workspace.endpoints.delete(name))


def _some(jobs: Any) -> str:
    shown = ", ".join(f"{job.id} ({job.state})" for job in jobs[:_SHOWN_JOBS])
    return f"{shown} and {len(jobs) - _SHOWN_JOBS:,} more" if len(jobs) > _SHOWN_JOBS else shown


@endpoint.command("score", example="stellwerk endpoint score digits --file request.json")
@click.argument("name")
@click.option("--data", help="The request, JSON.")
@click.option("--file", "file", type=PathType(), help="File with the request; - is stdin.")
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
    from stellwerk import states

    item = found.message
    facts = [
        ("name", item.name),
        ("kind", states.endpoint_kind(item)),
        ("state", found.state),
        ("reason", output.reason(item.reason)),
        ("created", f"{output.when(item.create_time)} by {item.creator}"),
        ("description", item.description),
        ("traffic", output.pairs(item.traffic)),
        ("copies", output.pairs(item.mirror_traffic)),
        ("sticky by", item.sticky_header),
        ("callers show", endpoint_keys.mode_word(item)),
        ("data kept", endpoint_data.retention_text(item)),
        ("url", found.url),
    ]
    output.facts(item, session.json, facts)
