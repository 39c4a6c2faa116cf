"""`stellwerk config`: what is remembered beside the code. The key never is."""

import json
import re
from pathlib import Path

import click

from stellwerk.cli import output
from stellwerk.cli.base import Group, Session
from stellwerk.errors import invalid
from stellwerk.settings import CONFIG_KEYS, CONFIG_PATH, find_config, read_json

# As stellwerk_platform.names has it.
_WORKSPACE = re.compile(r"[a-z0-9][a-z0-9-]{0,30}[a-z0-9]")


@click.group(cls=Group)
def config() -> None:
    """Workspace and addresses of a project."""


@config.command("set", example="stellwerk config set workspace demo")
@click.argument("key", type=click.Choice(CONFIG_KEYS))
@click.argument("value")
def config_set(session: Session, key: str, value: str) -> None:
    """Remember a value for this folder.

    It goes into .stellwerk/config.json, here or in the nearest folder above that has one.
    """
    if key == "workspace":
        value = _workspace(value)
    remember(session, key, value)


def remember(session: Session, key: str, value: str) -> None:
    """Writes a value beside the code and says where."""
    path = find_config(Path.cwd()) or Path.cwd() / CONFIG_PATH
    stored = read_json(path) | {key: value}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    if session.json:
        output.document({"path": str(path), **stored})
    else:
        click.echo(f"{key} = {value}  ({path})")


def _workspace(value: str) -> str:
    name = value.removeprefix("workspaces/")
    if not _WORKSPACE.fullmatch(name):
        raise invalid(
            "INVALID_NAME",
            f"{value[:80]!r} cannot be the name of a workspace.",
            "Use 2 to 32 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit.",
        )
    return name


@config.command("show", example="stellwerk config show")
def config_show(session: Session) -> None:
    """Show the values that hold here and where each comes from."""
    settings = session.settings()
    values = {key: getattr(settings, key) for key in CONFIG_KEYS}
    if session.json:
        output.document({**values, "api_key": bool(settings.api_key), "origins": dict(settings.origins)})
        return
    values["api_key"] = "(known)" if settings.api_key else ""
    rows = [(key, value or "-", settings.origins.get(key, "")) for key, value in values.items()]
    output.table(("KEY", "VALUE", "FROM"), rows)
