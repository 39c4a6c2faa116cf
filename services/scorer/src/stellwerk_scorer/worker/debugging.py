"""Lets a debugger into the worker before the script is loaded: `debugpy`, if the environment has it."""

from __future__ import annotations

from .loading import LoadError


def wait_for_debugger(port: int) -> None:
    """Listens on loopback until a debugger is there; raises `LoadError`."""
    try:
        import debugpy  # type: ignore[import-not-found]  # the environment has it, or not
    except ModuleNotFoundError:
        raise LoadError(
            "DEBUGGER_MISSING",
            "The environment does not have the module 'debugpy': add debugpy to its packages "
            "(`stellwerk deployment try --packages ...,debugpy`), or leave --debug-port out.",
        ) from None
    try:
        debugpy.listen(("127.0.0.1", port))
    except (OSError, RuntimeError) as error:
        raise LoadError(
            "DEBUG_PORT_UNAVAILABLE",
            f"No debugger can be waited for on port {port}: {error}. Choose another one.",
        ) from None
    print(f"stellwerk-scorer: waits for a debugger on 127.0.0.1:{port}", flush=True)
    debugpy.wait_for_client()
