"""Which processes of a stack score."""

from pathlib import Path

import psutil


def scorers(data_dir: Path) -> list[psutil.Process]:
    """The scoring servers of the stack with this data folder."""
    return [process for process in psutil.process_iter() if _is_scorer(process, data_dir)]


def _is_scorer(process: psutil.Process, data_dir: Path) -> bool:
    try:
        script = process.environ().get("STELLWERK_SCORER_SCRIPT", "")
        command = process.cmdline()
        is_shim = any("shim.py" in word for word in command)
        return script.startswith(str(data_dir)) and command[-2:] == ["-m", "stellwerk_scorer"] and not is_shim
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
