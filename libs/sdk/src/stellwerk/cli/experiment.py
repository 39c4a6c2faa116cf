"""`stellwerk experiment`: list, and how long runs are kept."""

from typing import Any

import click

from stellwerk import names
from stellwerk.cli import output
from stellwerk.cli.base import Group, Session, traced


@click.group(cls=Group)
def experiment() -> None:
    """Groups of runs."""


@experiment.command("list", example="stellwerk experiment list")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
def list_(session: Session, limit: int) -> None:
    """List the experiments."""
    output.listing(
        session.workspace().experiments.list(limit=limit),
        session.json,
        ("EXPERIMENT", "CREATED", "BY"),
        lambda item: (names.last(item.name), output.when(item.create_time), item.creator),
    )


@experiment.group("retention")
def retention() -> None:
    """How long runs are kept; `stellwerk run remove` acts on it."""


@retention.command("show", example="stellwerk experiment retention show digits")
@click.argument("name", metavar="EXPERIMENT")
def show(session: Session, name: str) -> None:
    """Show the rule of an experiment."""
    _show(session, session.workspace().experiments.retention(name))


@retention.command("set", example="stellwerk experiment retention set digits --keep-days 90 --keep-last 20")
@click.argument("name", metavar="EXPERIMENT")
@click.option("--keep-days", type=click.IntRange(0), default=0, help="Older runs may go.  [default: any age]")
@click.option("--keep-last", type=click.IntRange(0), default=0, help="The newest so many stay.")
@click.option("--archived-only", is_flag=True, help="Only archived runs may go.")
@traced
def set_(session: Session, name: str, keep_days: int, keep_last: int, archived_only: bool) -> None:
    """Set the rule of an experiment; without options everything is kept. Removes nothing by itself."""
    rule = session.workspace().experiments.set_retention(
        name, keep_days=keep_days, keep_last=keep_last, archived_only=archived_only
    )
    _show(session, rule)


def _show(session: Session, rule: Any) -> None:
    conditions = [
        f"older than {rule.keep_days} days" if rule.keep_days else "",
        f"not among the newest {rule.keep_last}" if rule.keep_last else "",
        "archived" if rule.archived_only else "",
    ]
    text = ", ".join(filter(None, conditions))
    facts = [
        ("experiment", names.last(rule.name.removesuffix("/retentionRule"))),
        ("may go", f"runs that have ended and are {text}" if text else "nothing: everything is kept"),
        ("changed", output.when(rule.update_time)),
    ]
    output.facts(rule, session.json, facts)
