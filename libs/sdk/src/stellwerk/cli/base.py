"""What all commands have in common: options, the connection, errors.

Every command takes the options for output and connection itself, so that they can stand at the end,
where people add them.
"""

import functools
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stellwerk.cli import errors
from stellwerk.cli.arguments import PathType
from stellwerk.settings import Flags, Settings, default_data_dir, resolve

if TYPE_CHECKING:
    from stellwerk import Client, Workspace


@dataclass(frozen=True)
class Session:
    """The common options of one call."""

    flags: Flags
    json: bool
    # Ends with the command.
    context: click.Context

    def client(self) -> "Client":
        """A connection; raises `StellwerkError` when address or key are not known."""
        from stellwerk import Client

        return self.context.with_resource(Client(flags=self.flags))

    def workspace(self) -> "Workspace":
        """The workspace that was named or configured."""
        return self.client().workspace(self.flags.workspace or "")

    def settings(self) -> Settings:
        """Addresses and key, whether known or not."""
        return resolve(self.flags)

    def settings_without_key(self) -> Settings:
        """Addresses alone: neither file nor keyring is asked for a key."""
        return resolve(replace(self.flags, anonymous=True))

    @property
    def data_dir(self) -> Path:
        """The data folder of the stack on this machine."""
        return self.flags.data_dir or default_data_dir()


def _options() -> list[click.Option]:
    path = PathType()
    return [
        click.Option(["-w", "--workspace"], help="Workspace.  [default: from variable or configuration]"),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["table", "json"]),
            default="table",
            help="Form of the result on stdout.",
        ),
        click.Option(["--grpc-address"], metavar="HOST:PORT", help="gRPC address of Stellwerk."),
        click.Option(["--gateway-url"], metavar="URL", help="HTTP address of Stellwerk."),
        click.Option(["--api-key-file"], type=path, help="File that holds the API key."),
        click.Option(["--data-dir"], type=path, help="Data folder of the stack on this machine."),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]


class Command(click.Command):
    """A command with the common options and an example at the end of its help."""

    def __init__(
        self, *args: Any, example: str = "", common: Collection[str] | None = None, **kwargs: Any
    ) -> None:
        """`common` names those of the common options that mean something here; None means all."""
        super().__init__(*args, **kwargs)
        taken = {name for parameter in self.params for name in parameter.opts}
        self.params += [
            option
            for option in _options()
            if not taken & set(option.opts) and (common is None or option.name in common)
        ]
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                formatter.write_text(self.example)

    def invoke(self, ctx: click.Context) -> Any:
        given = ctx.params
        flags = Flags(
            grpc_address=given.pop("grpc_address", None),
            gateway_url=given.pop("gateway_url", None),
            api_key_file=given.pop("api_key_file", None),
            workspace=given.pop("workspace", None),
            data_dir=given.pop("data_dir", None),
        )
        given.pop("debug")
        given["session"] = Session(flags, given.pop("output", "table") == "json", ctx)
        return super().invoke(ctx)


class Group(click.Group):
    """A group whose commands are `Command`s."""

    command_class = Command
    group_class = type


class Root(Group):
    """The outermost group: every error of every command ends here."""

    def main(  # type: ignore[override]  # it always ends the process, as click's does by default
        self, args: list[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        extra.pop("standalone_mode", None)
        code = 0
        try:
            result = super().main(arguments, prog_name or "stellwerk", standalone_mode=False, **extra)
            code = result if isinstance(result, int) else 0
            sys.stdout.flush()
        except BaseException as error:
            if isinstance(error, BrokenPipeError):
                # The reader went away; nothing more may be written, not even at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = errors.show(error, debug="--debug" in arguments)
        from stellwerk.cli import telemetry

        if code != errors.NO_ANSWER:
            telemetry.flush()
        sys.exit(code)


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a command that changes something in a root span called like the command."""

    @functools.wraps(function)
    def wrapper(*args: Any, session: Session, **kwargs: Any) -> Any:
        from stellwerk.cli import telemetry

        with telemetry.root_span(session.context.command_path, session.settings()):
            return function(*args, session=session, **kwargs)

    return wrapper
