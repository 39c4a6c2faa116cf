"""Generates `stellwerk/_sync` from `stellwerk/_async`: the blocking face has no source of its own.

Only words change (`async def` -> `def`, `AsyncRun` -> `Run`, …), so types and docstrings stay. What
differs in nature, the event loop on a thread, is `_sync/core.py`, which is written by hand.

With `--check` nothing is written: the exit code says whether the code is up to date.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "libs" / "sdk" / "src" / "stellwerk"
BY_HAND = {"__init__.py", "core.py"}
_WORDS = [
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b_async\b", "_sync"),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\bAsync(?=[A-Z])", ""),
]


def render(source: Path) -> str:
    """The blocking text of one module."""
    text = source.read_text(encoding="utf-8")
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    note = f"# Generated from ../_async/{source.name} by scripts/generate_sync.py; do not edit.\n"
    # Named here, because the sorting of imports must not depend on which files exist already.
    first_party = 'lint.isort.known-first-party=["stellwerk", "stellwerk_protos"]'
    text = _ruff(note + text, "check", "--fix-only", "--select", "I", "--config", first_party)
    return _ruff(text, "format")


def _ruff(text: str, *arguments: str) -> str:
    command = [
        str(Path(sys.executable).parent / "ruff"),
        *arguments,
        "--quiet",
        "--stdin-filename",
        "x.py",
        "-",
    ]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def main() -> None:
    sources = {path.name: path for path in (PACKAGE / "_async").glob("*.py") if path.name not in BY_HAND}
    wanted = {PACKAGE / "_sync" / name: render(path) for name, path in sources.items()}
    there = {path for path in (PACKAGE / "_sync").glob("*.py") if path.name not in BY_HAND}
    stale = [path for path, text in wanted.items() if path not in there or path.read_text() != text]
    left_over = sorted(there - wanted.keys())
    if "--check" in sys.argv[1:]:
        if stale or left_over:
            names = "\n  ".join(str(path.relative_to(ROOT)) for path in (*stale, *left_over))
            sys.exit(f"Generated code is not what _async says; run `make generate` and commit:\n  {names}")
        print("the blocking face of the SDK is up to date")
        return
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    for path in left_over:
        path.unlink()


if __name__ == "__main__":
    main()
