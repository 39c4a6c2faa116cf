"""The session's stack, and its owner's key."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def owner_key(stack: dict[str, Any]) -> str:
    return Path(stack["owner_key_file"]).read_text().strip()
