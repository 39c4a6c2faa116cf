"""`python -m stellwerk_scorer`: one replica's scoring server."""

import os
import sys

# The worker is started by fork and exec, for which gRPC's handlers do nothing but warn. It reads this once.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from stellwerk_platform.hardening import keep_memory_private
from stellwerk_platform.settings import SettingsError
from stellwerk_scorer import config, local
from stellwerk_scorer.launch import Launch, Started


def _first_worker() -> Started | None:
    """The first worker, if it can be started as the environment says; else `main` tells what is wrong."""
    # It must not read out of this process what is hidden from it.
    keep_memory_private()
    try:
        for name, value in config.configuration_file(os.environ).items():
            os.environ.setdefault(name, value)
        return Launch.of(config.Settings.from_environment()).start()
    except (SettingsError, OSError):
        return None


def _serve() -> int:
    os.environ.update(local.environment(sys.argv[1:]))
    started = _first_worker()
    # Only now, while the worker loads the script.
    from stellwerk_scorer.main import main

    return main(started)


sys.exit(_serve())
