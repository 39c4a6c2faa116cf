"""How an error leaves the command line: two or three lines on stderr and an exit code."""

import sys
import traceback
from typing import Any

import click

from stellwerk.errors import StellwerkError

FAILED = 1
USAGE = 2
NO_ANSWER = 5
DRIFTED = 6
INTERRUPTED = 130
_EXIT_CODES = {
    "INVALID_ARGUMENT": USAGE,
    "NOT_FOUND": 3,
    "UNAUTHENTICATED": 4,
    "PERMISSION_DENIED": 4,
    "UNAVAILABLE": NO_ANSWER,
    "DEADLINE_EXCEEDED": NO_ANSWER,
}


def show(error: BaseException, *, debug: bool) -> int:
    """Prints an error and returns the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return FAILED
    if isinstance(error, click.ClickException):
        return _show_usage(error)
    reason, message, cure, trace_id, code = _parts(error)
    _print(reason, message, cure)
    if trace_id:
        print(f"  trace: {trace_id}", file=sys.stderr)
    return _EXIT_CODES.get(code, FAILED)


def _show_usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return USAGE
    context = getattr(error, "ctx", None)
    cure = f"See `{context.command_path} --help`." if context is not None else ""
    _print("USAGE", error.format_message(), cure)
    return USAGE


def _parts(error: Any) -> tuple[str, str, str, str, str]:
    if isinstance(error, StellwerkError):
        return error.reason, error.message, error.cure, error.trace_id, error.code
    # The launcher's error, looked at by its shape so that it need not be imported.
    if type(error).__name__ == "LauncherError":
        known = {"STACK_DOWN": "UNAVAILABLE", "LOG_NOT_FOUND": "NOT_FOUND"}
        code = known.get(error.reason, "UNKNOWN")
        return error.reason, error.message, error.cure, "", code
    message = f"{type(error).__name__}: {error}".rstrip(": ")
    return "INTERNAL", message, "Run the command again with --debug and report what it prints.", "", ""


def _print(reason: str, message: str, cure: str) -> None:
    print(f"error[{reason}]: {message}", file=sys.stderr)
    if cure:
        print(f"  cure: {cure}", file=sys.stderr)
