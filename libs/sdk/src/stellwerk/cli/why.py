"""`stellwerk why`: the causal chain behind a state, in plain words."""

import click

from stellwerk.cli import output
from stellwerk.cli.base import Command, Session


@click.command(cls=Command, example="stellwerk why RUN")
@click.argument("name")
def why(session: Session, name: str) -> None:
    """Say why something is in its state.

    A run by its name, another resource as endpoints/NAME; first cause first.
    """
    found = session.workspace().why(name)
    if session.json:
        output.document(output.to_json(found))
        return
    click.echo(found.summary)
    for line in found.lines:
        click.echo(f"{output.when(line.time)}  {line.type.removesuffix('.v1').removeprefix('stellwerk.')}")
        click.echo(f"    {output.reason(line.reason) or line.resource}")
        if line.reason.cure:
            click.echo(f"    cure: {line.reason.cure}")
        cause = f", caused by {line.cause}" if line.cause else ""
        click.echo(f"    by {line.actor or 'nobody'}, event {line.event_id}{cause}")
