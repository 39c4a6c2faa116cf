"""Loads the user's scoring script; what goes wrong becomes a reason and a sentence for its author."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType, TracebackType
from typing import Any

_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))
_MODEL_TREE_LINES = 200
_PACKAGES = {"inference_schema": "inference-schema", "sklearn": "scikit-learn", "PIL": "pillow"}


class LoadError(Exception):
    """The script cannot serve: the reason, and a sentence that tells the author what to change."""

    def __init__(self, reason: str, message: str, details: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details


class TimeUp(BaseException):
    """Raised by the timer inside user code; no Exception, so that user code does not swallow it."""


def load_module(path: str) -> ModuleType:
    """The script as a module; raises `LoadError`."""
    _extend_path(path)
    # The name that Azure's server gives it, which pickles may have inside.
    spec = importlib.util.spec_from_file_location("entry_module", path)
    if spec is None or spec.loader is None:
        raise LoadError("SCRIPT_NOT_FOUND", f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, as an import would, for dataclasses and pickle look there.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        if error.filename == path:
            raise LoadError("SCRIPT_NOT_FOUND", f"There is no scoring script {path}.") from None
        raise load_error(error, "SCRIPT_IMPORT_FAILED", "while it was imported") from None
    except SyntaxError as error:
        place = f"{error.filename} line {error.lineno}"
        message = f"The scoring script cannot be read: {error.msg} ({place})."
        raise LoadError("SCRIPT_SYNTAX_ERROR", message, trace(error)) from None
    except BaseException as error:
        raise load_error(error, "SCRIPT_IMPORT_FAILED", "while it was imported") from None
    return module


def _extend_path(path: str) -> None:
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    root = os.environ.get("AML_APP_ROOT", "")
    if root:
        sys.path.append(root)
    if os.environ.get("AZUREML_SOURCE_DIRECTORY"):
        sys.path.append(os.path.join(root, os.environ["AZUREML_SOURCE_DIRECTORY"]))


def function(module: ModuleType, name: str) -> Callable[..., Any]:
    """A function that the script must define."""
    found = getattr(module, name, None)
    if not callable(found):
        script = os.path.basename(str(module.__file__))
        message = f"The scoring script {script} defines no function {name}()."
        raise LoadError(f"{name.upper()}_MISSING", message)
    return found  # type: ignore[no-any-return]


def call_init(init: Callable[[], Any]) -> None:
    """Calls it; a failure shows the model's files, for its usual cause is a wrong path."""
    try:
        init()
    except BaseException as error:
        problem = load_error(error, "INIT_FAILED", "in init()")
        problem.details += "".join(f"{line}\n" for line in model_tree())
        raise problem from None


def load_error(error: BaseException, reason: str, when: str) -> LoadError:
    """What to tell about an exception of user code."""
    if isinstance(error, TimeUp):
        message = "init() did not end in time; the traceback shows where it was."
        return LoadError("INIT_TIMEOUT", message, trace(error))
    if isinstance(error, ModuleNotFoundError):
        package = _PACKAGES.get(error.name or "", error.name)
        message = (
            f"The scoring script needs the module {error.name!r}, which the environment does not have: "
            f"add {package} to it."
        )
        return LoadError("MODULE_NOT_FOUND", message, trace(error))
    if isinstance(error, MemoryError):
        message = f"The scoring script ran out of memory {when}: raise the deployment's memory limit."
        return LoadError("OUT_OF_MEMORY", message, trace(error))
    text = traceback.format_exception_only(type(error), error)[-1].strip()
    return LoadError(reason, f"The scoring script failed {when}: {text}", trace(error))


def model_tree() -> Iterator[str]:
    """The files below the model's folder, at most 200 lines."""
    root = os.environ.get("AZUREML_MODEL_DIR", "")
    yield f"AZUREML_MODEL_DIR={root}"
    count = 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if count == _MODEL_TREE_LINES:
                yield "  ..."
                return
            count += 1
            yield f"  {os.path.relpath(os.path.join(folder, name), root)}"


def trace(error: BaseException) -> str:
    """The traceback without the frames of this package and of the import machinery."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and (
        frames.tb_frame.f_code.co_filename.startswith((_OWN_FOLDER, "<frozen importlib"))
    ):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error.with_traceback(frames), frames))


def log_exception(what: str, error: BaseException) -> None:
    """Writes the traceback to the deployment's log."""
    print(f"stellwerk-scorer: {what}\n{trace(error)}", file=sys.stderr, end="", flush=True)
