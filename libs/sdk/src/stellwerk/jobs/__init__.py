"""Run configuration files of Azure ML, v1 and v2, as far as their keys make sense here.

A key that Stellwerk does not act on is refused with the reason: a run that silently did something else
would be worse.
"""

from pathlib import Path

from stellwerk.errors import StellwerkError, invalid
from stellwerk.jobs import command_job, runconfig
from stellwerk.jobs.model import Job

__all__ = ["Job", "load"]


def load(path: Path) -> Job:
    """Reads a file in either format; raises `StellwerkError` for what it cannot mean."""
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StellwerkError(
            "PATH_NOT_FOUND", f"{path} cannot be read: {error.strerror}.", "Check the path.", code="NOT_FOUND"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise invalid("JOB_FILE_INVALID", f"{path} is not YAML: {error}", "Repair the file.") from error
    if not isinstance(given, dict):
        raise invalid("JOB_FILE_INVALID", f"{path} is not a mapping of keys.", "See `run submit --help`.")
    if path.suffix == ".runconfig" or ("script" in given and "type" not in given):
        return runconfig.read(given, path)
    return command_job.read(given, path)
