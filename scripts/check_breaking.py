"""Refuses changes of `protos/` that break callers.

What callers rely on is main's last commit and, once there is one, the last release. `buf`
can read a git repository itself, but by a clone, which fails in shallow checkouts and in
paths with a space; an unpacked `git archive` works everywhere. Without git history
(a source archive, a checkout of one commit without main) there is nothing to compare with.
"""

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = Path(sys.executable).parent / "buf"
MAIN = ("origin/main", "main", "HEAD")


def git(*arguments: str) -> bytes | None:
    """Standard output of git, or None when git is missing or says no."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout if answer.returncode == 0 else None


def baselines() -> Iterator[tuple[str, bytes]]:
    """Names and archives of the states that the working tree must stay compatible with."""
    release = git("describe", "--tags", "--abbrev=0", "--match", "v*")
    names = [release.decode().strip()] if release else []
    names += [name for name in MAIN if git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")][:1]
    for name in names:
        archive = git("archive", "--format=zip", name, "protos")
        if archive is not None:
            yield name, archive


def breaks(name: str, archive: bytes) -> bool:
    """Whether the working tree breaks `name`; buf prints where."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
        against = Path(folder) / "protos"
        answer = subprocess.run([BUF, "breaking", "protos", "--against", against], cwd=ROOT, check=False)
    print(f"buf breaking against {name}: {'ok' if answer.returncode == 0 else 'broken'}")
    return answer.returncode != 0


def main() -> int:
    found = list(baselines())
    if not found:
        print("buf breaking: no git history with protos/ here, nothing to compare with")
    broken = [name for name, archive in found if breaks(name, archive)]
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
