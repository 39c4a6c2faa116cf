"""`stellwerk dataset|environment|model`."""

from pathlib import Path
from typing import Any

import click

from stellwerk import names
from stellwerk.cli import arguments, output
from stellwerk.cli.arguments import PathType
from stellwerk.cli.base import Group, Session, traced
from stellwerk.cli.confirm import confirm

_limit = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many."
)
_description = click.option("--description", default="", help="Free text.")
_tags = click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Repeatable.")


def _common(item: Any) -> list[tuple[str, object]]:
    return [
        ("name", item.name),
        ("created", output.when(item.create_time)),
        ("by", item.creator),
        ("description", item.description),
        ("tags", output.pairs(item.tags)),
    ]


@click.group(cls=Group)
def dataset() -> None:
    """Data in versions that never change."""


@dataset.command("create", example="stellwerk dataset create digits digits.csv")
@click.argument("name")
@click.argument("path", type=PathType())
@_description
@_tags
@traced
def dataset_create(session: Session, name: str, path: Path, description: str, tags: tuple[str, ...]) -> None:
    """Register a file or folder as the next version of a dataset."""
    version = session.workspace().datasets.create_version(
        name, path, description=description, tags=arguments.pairs(tags, "--tag")
    )
    _show_files_version(session, version)


@dataset.command("list", example="stellwerk dataset list")
@click.argument("name", default="-")
@_limit
def dataset_list(session: Session, name: str, limit: int) -> None:
    """List versions of one dataset, or of all."""
    _list_versions(session, session.workspace().datasets.list(name, limit=limit))


@dataset.command("show", example="stellwerk dataset show digits:1")
@click.argument("reference", metavar="NAME[:VERSION]")
def dataset_show(session: Session, reference: str) -> None:
    """Show one version, the latest unless one is named."""
    _show_files_version(session, session.workspace().datasets.get(reference))


@dataset.command("download", example="stellwerk dataset download digits:1 --to data/")
@click.argument("reference", metavar="NAME[:VERSION]")
@click.option("--to", "folder", type=PathType(), default=Path(), help="Folder.  [default: .]")
def dataset_download(session: Session, reference: str, folder: Path) -> None:
    """Write the files of a version into a folder."""
    _show_files_version(session, session.workspace().datasets.download(reference, folder))


def _list_versions(session: Session, versions: Any) -> None:
    output.listing(
        versions,
        session.json,
        ("VERSION", "SIZE", "FILES", "DIGEST", "CREATED"),
        lambda item: (
            names.short_version(item.name),
            output.size(item.size_bytes),
            len(item.files),
            item.digest[:19],
            output.when(item.create_time),
        ),
    )


def _show_files_version(session: Session, item: Any) -> None:
    origin = [("run", item.run), ("path", item.path)] if hasattr(item, "run") else [("source", item.source)]
    facts = [
        *_common(item),
        *origin,
        ("digest", item.digest),
        ("size", output.size(item.size_bytes)),
        ("files", output.files(item.files)),
    ]
    output.facts(item, session.json, facts)


@click.group(cls=Group)
def environment() -> None:
    """Python versions and packages in versions that never change."""


@environment.command(
    "create", example='stellwerk environment create sklearn --packages "scikit-learn,pandas"'
)
@click.argument("name")
@click.option("--packages", multiple=True, metavar="NAMES", help="Requirements, separated by commas.")
@click.option("-r", "--requirements", type=PathType(), help="Requirements file.")
@click.option("--python", "python_version", default="", metavar="X.Y", help="Python version.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Set for commands.")
@_description
@_tags
@traced
def environment_create(
    session: Session,
    name: str,
    packages: tuple[str, ...],
    requirements: Path | None,
    python_version: str,
    variables: tuple[str, ...],
    description: str,
    tags: tuple[str, ...],
) -> None:
    """Register the next version of an environment.

    The same content stays the same version.
    """
    version = session.workspace().environments.create_version(
        name,
        packages=arguments.packages(packages, requirements) or (),
        python_version=python_version,
        variables=arguments.pairs(variables, "--variable"),
        description=description,
        tags=arguments.pairs(tags, "--tag"),
    )
    _show_environment(session, version)


@environment.command("list", example="stellwerk environment list")
@click.argument("name", default="-")
@_limit
def environment_list(session: Session, name: str, limit: int) -> None:
    """List versions of one environment, or of all."""
    output.listing(
        session.workspace().environments.list(name, limit=limit),
        session.json,
        ("VERSION", "PYTHON", "PACKAGES", "LOCKED", "CREATED"),
        lambda item: (
            names.short_version(item.name),
            item.python_version,
            ", ".join(item.packages),
            "yes" if item.lock else "no",
            output.when(item.create_time),
        ),
    )


@environment.command("show", example="stellwerk environment show sklearn:1")
@click.argument("reference", metavar="NAME[:VERSION]")
def environment_show(session: Session, reference: str) -> None:
    """Show one version, the latest unless one is named."""
    _show_environment(session, session.workspace().environments.get(reference))


def _show_environment(session: Session, item: Any) -> None:
    facts = [
        *_common(item),
        ("python", item.python_version),
        ("packages", "\n".join(item.packages)),
        ("variables", output.pairs(item.variables)),
        ("digest", item.digest or "not locked yet"),
    ]
    output.facts(item, session.json, facts)


@click.group(cls=Group)
def model() -> None:
    """Trained models in versions that never change."""


@model.command("register", example="stellwerk model register digits --run RUN --path outputs/model.joblib")
@click.argument("name")
@click.option("--run", help="Run whose outputs hold the model.")
@click.option("--path", required=True, help="File or folder: in the run's outputs, or without --run here.")
@_description
@_tags
@traced
def model_register(
    session: Session, name: str, run: str | None, path: str, description: str, tags: tuple[str, ...]
) -> None:
    """Register the next version of a model."""
    version = session.workspace().models.register(
        name, path=path, run=run, description=description, tags=arguments.pairs(tags, "--tag")
    )
    _show_files_version(session, version)


@model.command("list", example="stellwerk model list digits")
@click.argument("name", default="-")
@_limit
def model_list(session: Session, name: str, limit: int) -> None:
    """List versions of one model, or of all."""
    _list_versions(session, session.workspace().models.list(name, limit=limit))


@model.command("show", example="stellwerk model show digits:1")
@click.argument("reference", metavar="NAME[:VERSION]")
def model_show(session: Session, reference: str) -> None:
    """Show one version, the latest unless one is named."""
    _show_files_version(session, session.workspace().models.get(reference))


@model.command("delete", example="stellwerk model delete digits:1 --yes")
@click.argument("reference", metavar="NAME:VERSION")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@traced
def model_delete(session: Session, reference: str, yes: bool) -> None:
    """Delete one version that no deployment uses."""
    if not yes:
        confirm(f"This would delete {reference} for good.", f"Delete {reference} for good?")
    _show_files_version(session, session.workspace().models.delete(reference))


@model.command("download", example="stellwerk model download digits:1 --to model/")
@click.argument("reference", metavar="NAME[:VERSION]")
@click.option("--to", "folder", type=PathType(), default=Path(), help="Folder.  [default: .]")
def model_download(session: Session, reference: str, folder: Path) -> None:
    """Write the files of a version into a folder."""
    _show_files_version(session, session.workspace().models.download(reference, folder))
