"""`stellwerk workspace`: make, show, change and delete workspaces."""

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from stellwerk import names
from stellwerk.cli import arguments, config, output, quota
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm
from stellwerk.errors import StellwerkError

if TYPE_CHECKING:
    from stellwerk import Client
    from stellwerk_protos.registry.v1 import quotas_pb2, workspaces_pb2


@click.group(cls=Group)
def workspace() -> None:
    """Containers of everything else."""


@workspace.command("create", example="stellwerk workspace create demo")
@click.argument("name")
@click.option("--description", default="", help="Free text.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@traced
def create(session: Session, name: str, description: str, tags: tuple[str, ...]) -> None:
    """Create a workspace."""
    created = session.client().workspaces.create(
        name, description=description, tags=arguments.pairs(tags, "--tag")
    )
    _show(session, created)


@workspace.command("list", example="stellwerk workspace list")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
def list_(session: Session, limit: int) -> None:
    """List the workspaces."""
    output.listing(
        session.client().workspaces.list(limit=limit),
        session.json,
        ("NAME", "CREATED", "DESCRIPTION"),
        lambda item: (names.last(item.name), output.when(item.create_time), item.description),
    )


@workspace.command("show", example="stellwerk workspace show demo")
@click.argument("name")
def show(session: Session, name: str) -> None:
    """Show one workspace and what it uses."""
    client = session.client()
    item = client.workspaces.get(name)
    found = None if item.HasField("delete_time") else _quota(client, name)
    if session.json:
        output.document(output.to_json(item) | {"quota": output.to_json(found) if found else None})
        return
    _show(session, item)
    if found is not None:
        click.echo()
        quota.show_table(found)


@workspace.command("use", example="stellwerk workspace use demo")
@click.argument("name")
def use(session: Session, name: str) -> None:
    """Let commands here and below mean a workspace.

    It must exist, and is remembered in .stellwerk/config.json beside the code.
    """
    found = session.client().workspaces.get(name)
    config.remember(session, "workspace", names.last(found.name))


@workspace.command(
    "update", example="stellwerk workspace update demo --description 'Vision team' --tag cost-centre=42"
)
@click.argument("name")
@click.option("--description", help="Free text.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Set a tag. Repeatable.")
@click.option("--remove-tag", "remove_tags", multiple=True, metavar="NAME", help="Repeatable.")
@click.option("--default-datastore", metavar="DATASTORE", help="Where new content is put.")
@traced
def update(
    session: Session,
    name: str,
    description: str | None,
    tags: tuple[str, ...],
    remove_tags: tuple[str, ...],
    default_datastore: str | None,
) -> None:
    """Change description, tags or the default datastore."""
    if description is None and default_datastore is None and not tags and not remove_tags:
        raise click.UsageError("Nothing to change is given.")
    changed = session.client().workspaces.update(
        name,
        description=description,
        tags=arguments.pairs(tags, "--tag"),
        remove_tags=remove_tags,
        default_datastore=default_datastore,
    )
    _show(session, changed)


@workspace.command("delete", example="stellwerk workspace delete demo --force")
@click.argument("name")
@click.option("--force", is_flag=True, help="End its runs, deployments and endpoints.")
@click.option("--dry-run", is_flag=True, help="Only count what would go.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when all is gone.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@traced
def delete(session: Session, name: str, force: bool, dry_run: bool, wait: bool, yes: bool) -> None:
    """Delete a workspace with all that it holds.

    Lists what goes first, and asks. Refused while something lives in it, unless forced. It goes on by
    itself when this command is interrupted; called again, the command waits for the rest.
    """
    workspaces = session.client().workspaces
    preview = workspaces.delete(name, dry_run=True)
    if dry_run:
        _show_data(session, preview.data, "Would remove", preview)
        return
    if not force and any(part.living for part in preview.data.values()):
        workspaces.delete(name)  # refused, with the list of what lives
    if not yes:
        _confirm(name, preview)
    begun = workspaces.delete(name, force=force)
    if not wait:
        _show_data(session, begun.data, "Removing", begun)
        return
    click.echo(f"Deleting {name} ({begun.deletion}) …", err=True)
    done = workspaces.wait_deleted(begun.deletion, _progress())
    _show_data(session, done.removed, "Removed", done)


def _quota(client: "Client", name: str) -> "quotas_pb2.Quota | None":
    """Limits and use; None, and a line for people, when who knows them is away."""
    try:
        return client.workspace(name).quota.get()
    except StellwerkError as error:
        click.echo(f"What it uses is not known now: {error.message}", err=True)
        return None


def _progress() -> Callable[[Any], None]:
    """Says on a terminal how much is gone, in one line."""
    shown = 0

    def show(deletion: Any) -> None:
        nonlocal shown
        gone = sum(count for part in deletion.removed.values() for count in part.counts.values())
        if gone != shown and sys.stderr.isatty():
            shown = gone
            click.echo(f"\r  {gone:,} removed", err=True, nl=deletion.HasField("end_time"))

    return show


def _confirm(name: str, preview: "workspaces_pb2.DeleteWorkspaceResponse") -> None:
    """Shows what goes and asks a person; a script has to say --yes."""
    for line in _lines(preview.data):
        click.echo(line, err=True)
    confirm(
        f"This would delete the workspace {name} for good.",
        f"Delete the workspace {name} with all this for good?",
    )


def _show_data(session: Session, data: Mapping[str, Any], verb: str, message: Any) -> None:
    if session.json:
        output.document(output.to_json(message))
        return
    lines = _lines(data)
    click.echo(f"{verb}:" if lines else f"{verb} nothing: the workspace was empty.")
    for line in lines:
        click.echo(line)


def _lines(data: Mapping[str, Any]) -> list[str]:
    """What there is by kind, the bytes, and what lives."""
    counts: dict[str, int] = {}
    for part in data.values():
        for label, count in part.counts.items():
            counts[label] = counts.get(label, 0) + count
    lines = [f"  {counts[label]:>9,} {label}" for label in sorted(counts) if counts[label]]
    size = sum(part.size_bytes for part in data.values())
    if size:
        lines.append(f"  {output.size(size)} in the blob store")
    living = sorted({name for part in data.values() for name in part.living})
    return lines + [f"  lives: {name.split('/', 2)[2]}" for name in living]


def _show(session: Session, item: Any) -> None:
    output.facts(
        item,
        session.json,
        [
            ("name", item.name),
            ("created", output.when(item.create_time)),
            ("by", item.creator),
            ("description", item.description),
            ("tags", output.pairs(item.tags)),
            ("default datastore", names.last(item.default_datastore)),
            ("vault path", item.vault_path),
            ("journal subject", item.journal_subject),
            ("being deleted since", output.when(item.delete_time)),
        ],
    )
