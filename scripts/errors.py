"""Generates docs/errors.md from the code: every reason that a caller can meet, with its cure.

A reason is the first argument of a `PlatformError` subclass, of `StellwerkError`, `LauncherError`,
`StepFailed` or `CheckFailed`, or the `code` of a `Reason`. With `--check` nothing is written and a
stale page is an error.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stellwerk_platform.errors import PlatformError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
CLASSES = {error.__name__: error for error in PlatformError.__subclasses__()}
PLAIN = {"StellwerkError", "LauncherError", "StepFailed", "CheckFailed", "Reason"}
HEADER = """# Errors

Every error has a stable reason code, says what happened, and what to do.

- Over gRPC: a `google.rpc.Status` with an `ErrorInfo` (`reason`, `domain` = `stellwerk`, `metadata.cure`).
- Over HTTP: JSON with the same.
- On the command line: `error[REASON]: …`, `cure: …` and an exit code.
- On a run, allocation, deployment or replica: its `reason`.

This page is generated from the code (`make generate`); `…` stands for what differs from case to case.

| reason | gRPC, HTTP | what happened | what to do | from |
|---|---|---|---|---|
"""


@dataclass
class Entry:
    """One reason; the first message found stands for all."""

    code: str = ""
    message: str = ""
    cure: str = ""
    places: set[str] = field(default_factory=set)


def text_of(node: ast.expr | None) -> str:
    """The literal text of an expression, with `…` for its variable parts; "" for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def is_reason(text: str) -> bool:
    """UPPER_SNAKE_CASE."""
    return (
        len(text) > 2 and text.replace("_", "").isalnum() and text == text.upper() and not text[0].isdigit()
    )


def calls(path: Path) -> Iterator[tuple[str, Entry]]:
    """The reasons in one module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        if name not in CLASSES and name not in PLAIN:
            continue
        arguments = [*node.args, *(3 * [None])]
        reason = text_of(arguments[0] or keywords.get("reason") or keywords.get("code"))
        if not is_reason(reason):
            continue
        kind = CLASSES.get(name)
        code = f"{kind.grpc_code.name}, {kind.http_status}" if kind else ""
        message = text_of(arguments[1] or keywords.get("message"))
        yield reason, Entry(code, message, text_of(arguments[2] or keywords.get("cure")), {owner(path)})


def owner(path: Path) -> str:
    """`registry` of services/registry/src/…"""
    return path.relative_to(ROOT).parts[1]


def page() -> str:
    """The whole page."""
    entries: dict[str, Entry] = {}
    for path in sorted([*ROOT.glob("libs/*/src/**/*.py"), *ROOT.glob("services/*/src/**/*.py")]):
        for reason, found in calls(path):
            entry = entries.setdefault(reason, found)
            entry.places |= found.places
            entry.code, entry.message = entry.code or found.code, entry.message or found.message
            entry.cure = entry.cure or found.cure
    rows = []
    for reason, entry in sorted(entries.items()):
        places = ", ".join(sorted(entry.places))
        cells = (f"`{reason}`", entry.code, cell(entry.message), cell(entry.cure), places)
        rows.append(f"| {' | '.join(cells)} |")
    return HEADER + "\n".join(rows) + "\n"


def cell(text: str) -> str:
    """Text that cannot break the table."""
    return " ".join(text.replace("|", "\\|").split())


def main() -> None:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit("docs/errors.md is not what the code says; run `make generate`.")


if __name__ == "__main__":
    main()
