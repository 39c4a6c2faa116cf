"""Stellwerk: SDK and command line of the open machine-learning platform.

Inside a run only the standard library may be needed: the user's environment has neither grpc nor
protobuf. So this module imports nothing; names are looked up when they are first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stellwerk._async.batches import AsyncBatchJob
    from stellwerk._async.client import AsyncClient
    from stellwerk._async.endpoints import AsyncEndpoint
    from stellwerk._async.run import AsyncRun
    from stellwerk._async.workspace import AsyncWorkspace
    from stellwerk._sync.batches import BatchJob
    from stellwerk._sync.client import Client
    from stellwerk._sync.endpoints import Endpoint
    from stellwerk._sync.run import Run
    from stellwerk._sync.workspace import Workspace
    from stellwerk.errors import StellwerkError
    from stellwerk.interactive import InteractiveRun, RunCanceled
    from stellwerk.run_context import RunContext, current_run

__all__ = [
    "AsyncBatchJob",
    "AsyncClient",
    "AsyncEndpoint",
    "AsyncRun",
    "AsyncWorkspace",
    "BatchJob",
    "Client",
    "Endpoint",
    "InteractiveRun",
    "Run",
    "RunCanceled",
    "RunContext",
    "StellwerkError",
    "Workspace",
    "current_run",
]

_HOMES = {
    "AsyncBatchJob": "stellwerk._async.batches",
    "AsyncClient": "stellwerk._async.client",
    "AsyncEndpoint": "stellwerk._async.endpoints",
    "AsyncRun": "stellwerk._async.run",
    "AsyncWorkspace": "stellwerk._async.workspace",
    "BatchJob": "stellwerk._sync.batches",
    "Client": "stellwerk._sync.client",
    "Endpoint": "stellwerk._sync.endpoints",
    "Run": "stellwerk._sync.run",
    "Workspace": "stellwerk._sync.workspace",
    "StellwerkError": "stellwerk.errors",
    "InteractiveRun": "stellwerk.interactive",
    "RunCanceled": "stellwerk.interactive",
    "RunContext": "stellwerk.run_context",
    "current_run": "stellwerk.run_context",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'stellwerk' has no attribute {name!r}")
    try:
        return getattr(import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("stellwerk."):
            raise
        raise ImportError(
            f"stellwerk.{name} needs the package {error.name!r}, which this environment lacks. "
            "Add 'stellwerk' to the packages of the environment; logging from a run needs no package."
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
