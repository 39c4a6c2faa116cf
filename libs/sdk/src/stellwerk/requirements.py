"""Requirements files of pip."""

from pathlib import Path

from stellwerk.errors import StellwerkError


def requirements(path: Path) -> list[str]:
    """Requirement lines of a file, without comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise StellwerkError(
            "PATH_NOT_FOUND", f"{path} cannot be read: {error}.", "Check the path.", code="NOT_FOUND"
        ) from error
    return [text for line in lines if (text := line.split(" #")[0].strip()) and not text.startswith("#")]
