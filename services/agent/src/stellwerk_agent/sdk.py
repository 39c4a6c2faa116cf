"""The part of the SDK that commands may import: the package `stellwerk` alone, out of the platform's
site-packages, for the user's interpreter."""

import hashlib
import os
import shutil
from pathlib import Path

import stellwerk


def expose(cache: Path) -> Path:
    """A folder for PYTHONPATH that holds the package and nothing else."""
    source = Path(stellwerk.__file__).parent
    files = sorted(path for path in source.rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(source)).encode() + b"\0" + path.read_bytes() + b"\0")
    folder = cache / "sdk" / digest.hexdigest()[:16]
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary / "stellwerk", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        os.rename(temporary, folder)
    except OSError:
        # Another agent process was faster; a folder of this name has this content.
        shutil.rmtree(temporary)
    return folder
