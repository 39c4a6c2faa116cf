"""`python -m stellwerk_scorer --local`: the scorer in the foreground, without a stack, for debugging."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_EPILOG = """examples:
  python -m stellwerk_scorer --local --script score.py --model-dir model/
  python -m stellwerk_scorer --local --model-dir model/ --port 5001     (no script: MLflow or scikit-learn)
  curl http://127.0.0.1:5001/score -d '{"data": [[1, 2, 3]]}'

What the script prints, and the traceback of what it raises, appear here. Ctrl-C ends it.
Without arguments the settings come from STELLWERK_SCORER_… variables: docs/interfaces.md, "A replica".
"""


def environment(arguments: Sequence[str]) -> dict[str, str]:
    """The variables that stand for the arguments; ends the process when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m stellwerk_scorer",
        description="Serves a scoring script, or a model without one, over HTTP and gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--local", action="store_true", help="serve on loopback, to everybody on this machine"
    )
    parser.add_argument("--script", default="", help="the scoring script; without it the model is served")
    parser.add_argument("--model-dir", default="", help="the folder of the model (AZUREML_MODEL_DIR)")
    parser.add_argument("--port", type=int, default=5001, help="HTTP port (default 5001; 0 takes a free one)")
    parser.add_argument("--grpc-port", type=int, default=0, help="gRPC port (default: a free one)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--workers", type=int, help="worker processes (default: WORKER_COUNT, else 1)")
    parser.add_argument(
        "--max-batch-size", type=int, default=1, help="requests in one call of run (default 1)"
    )
    parser.add_argument(
        "--timeout-ms", type=int, help="for one request (default: SCORING_TIMEOUT_MS, else 60000)"
    )
    parser.add_argument(
        "--debug-port", type=int, default=0, help="wait for a debugger (debugpy) on this port"
    )
    if not arguments:
        return {}
    given = parser.parse_args(arguments)
    if not given.local:
        parser.error("without a stack nobody can check keys: say --local to serve without, on loopback only")
    if not given.script and not given.model_dir:
        parser.error("give --script, or --model-dir for a model that needs no script")
    for path in (path for path in (given.script, given.model_dir) if path):
        if not Path(path).exists():
            parser.error(f"there is no {path}")
    return {
        "STELLWERK_SCORER_LOCAL": "1",
        "STELLWERK_SCORER_HTTP_LISTEN": f"127.0.0.1:{given.port}",
        "STELLWERK_SCORER_GRPC_LISTEN": f"127.0.0.1:{given.grpc_port}",
        "STELLWERK_SCORER_PYTHON": given.python,
        "STELLWERK_SCORER_SCRIPT": str(Path(given.script).absolute()) if given.script else "",
        "STELLWERK_SCORER_MAX_BATCH_SIZE": str(given.max_batch_size),
        **({"STELLWERK_SCORER_WORKERS": str(given.workers)} if given.workers else {}),
        **({"STELLWERK_SCORER_TIMEOUT_MS": str(given.timeout_ms)} if given.timeout_ms else {}),
        # As Azure's server does, so that what lies beside the folder of the script can be imported.
        "AML_APP_ROOT": os.environ.get("AML_APP_ROOT") or os.getcwd(),
        **({"AZUREML_MODEL_DIR": str(Path(given.model_dir).absolute())} if given.model_dir else {}),
        **(_debugging(given.debug_port) if given.debug_port else {}),
    }


def _debugging(port: int) -> dict[str, str]:
    """One worker, and a day for whoever looks at each line of `init` and `run`."""
    return {
        "STELLWERK_SCORER_DEBUG_PORT": str(port),
        "STELLWERK_SCORER_WORKERS": "1",
        "STELLWERK_SCORER_TIMEOUT_MS": "86400000",
        "STELLWERK_SCORER_INIT_TIMEOUT_SECONDS": "86400",
    }
