"""`python -m stellwerk_launcher`: the launcher without the command line of the SDK."""

import argparse
import json
import sys
from pathlib import Path

from stellwerk_launcher import folder, stack
from stellwerk_launcher.errors import LauncherError


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", type=Path, default=folder.default_data_dir())
    parser = argparse.ArgumentParser(prog="python -m stellwerk_launcher")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[shared], help="start servers and services")
    up.add_argument("--detach", action="store_true", help="return when everything is ready")
    up.add_argument("--servers-only", action="store_true", help="leave the platform's services out")
    up.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)
    commands.add_parser("down", parents=[shared], help="stop them")
    commands.add_parser("status", parents=[shared], help="print processes and addresses as JSON")
    logs = commands.add_parser("logs", parents=[shared], help="print the log of one process")
    logs.add_argument("name")
    logs.add_argument("--follow", action="store_true")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.command == "up" and options.detached:
        path = folder.prepare(options.data_dir)
        return stack.serve(path, servers_only=options.servers_only, detached=True)
    if options.command == "up":
        return stack.up(options.data_dir, detach=options.detach, servers_only=options.servers_only)
    if options.command == "down":
        stack.down(options.data_dir)
        return 0
    if options.command == "status":
        print(json.dumps(stack.status(options.data_dir), indent=2))
        return 0
    for line in stack.logs(options.data_dir, options.name, options.follow):
        print(line, flush=True)
    return 0


def main() -> int:
    """Runs one command; an expected failure is one line and exit code 1."""
    options = _parser().parse_args()
    try:
        return _run(options)
    except LauncherError as error:
        if getattr(options, "detached", False):
            print(stack.ERROR_MARK + json.dumps(error.as_dict()), flush=True)
        else:
            print(f"error [{error.reason}] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
