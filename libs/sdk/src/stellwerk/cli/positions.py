"""Where a reader of the journal is, kept in a file between its calls."""

import json
import os
from pathlib import Path

from stellwerk.errors import invalid


class Position:
    """The next sequence that is wanted."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int | None:
        """What was kept; None at the first time. Raises `StellwerkError` for a file that is none of ours."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))["next_sequence"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable() from error
        if not isinstance(found, int) or found < 1:
            raise self._unreadable()
        return found

    def keep(self, next_sequence: int) -> None:
        """Replaces the file in one step."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"next_sequence": next_sequence}) + "\n", encoding="utf-8")
        temporary.replace(self._path)

    def _unreadable(self) -> Exception:
        return invalid(
            "POSITION_UNREADABLE",
            f"{self._path} does not hold a position in the journal.",
            "Name another file, or remove it to start anew.",
        )
