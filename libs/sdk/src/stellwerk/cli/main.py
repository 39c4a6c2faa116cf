"""The command `stellwerk`."""

import click

from stellwerk.cli import (  # noqa: F401  # they add their commands to `run`
    activity,
    assets,
    batch,
    config,
    datastore,
    deployment,
    doctor,
    endpoint,
    events,
    experiment,
    login,
    member,
    monitor,
    people,
    quota,
    run,
    run_manage,
    run_read,
    secret,
    stack,
    why,
    workspace,
)
from stellwerk.cli.base import Command, Root, Session


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="stellwerk", message="%(version)s")
def main() -> None:
    """Stellwerk, the open machine-learning platform.

    Start it with `stellwerk up`. Each command has --help with an example. Exit codes: 0 done, 1 failed,
    2 wrong usage, 3 not found, 4 no or wrong key, 5 no answer from Stellwerk, 6 drifted, 130 interrupted.
    Errors are text on stderr, also with --output json.
    """


@click.command(cls=Command, common=("debug",), example='eval "$(stellwerk completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(session: Session, shell: str) -> None:
    """Print the script that completes commands in a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(main, {}, "stellwerk", "_STELLWERK_COMPLETE").source())


for command in (
    *(stack.up, stack.down, stack.status, stack.logs, stack.credentials),
    *(workspace.workspace, member.member, datastore.datastore, quota.quota),
    *(assets.dataset, assets.environment, run.run, experiment.experiment),
    *(assets.model, secret.secret, why.why),
    *(endpoint.endpoint, deployment.deployment, batch.batch, monitor.monitor),
    *(events.compute, events.events, events.trace),
    *(activity.activity, doctor.doctor),
    *(login.login, login.logout, login.whoami, people.user, people.key, people.signing_key),
    *(config.config, completion),
):
    main.add_command(command)
