"""Paths that the caller names. Standard library only: it is needed inside runs too."""

from pathlib import Path

from stellwerk.errors import invalid


def given(path: str | Path) -> Path:
    """The path; raises `StellwerkError` (INVALID_PATH) for an empty text.

    To `Path` an empty text is the current folder, so that an unset variable of a shell would upload it.
    """
    if path == "":
        raise invalid(
            "INVALID_PATH", "The path is empty.", "Name a file or folder; '.' is the current folder."
        )
    return Path(path)
