"""How long people wait: from `run submit` to their script's first line, and for the whole demo."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

ROUNDS = 20
ROOT = Path(__file__).resolve().parents[2]
STELLWERK = Path(sys.executable).with_name("stellwerk")
FIRST_LINE = "import time, os; open(os.environ['FIRST_LINE'], 'w').write(repr(time.time()))\n"


@benchmark("flow.submit_to_first_line", unit="s (p50)", better="lower", goal=2.0)
def submit_to_first_line(resources: Resources) -> Measurement:
    """From the start of the command to the first line of the script, with a warm environment."""
    status, folder = resources.stack.status(), resources.folder()
    environment = os.environ | {
        "STELLWERK_GRPC_ADDRESS": status["grpc_address"],
        "STELLWERK_GATEWAY_URL": status["gateway_url"],
        "STELLWERK_API_KEY_FILE": status["owner_key_file"],
        "STELLWERK_WORKSPACE": "bench",
    }

    def stellwerk(*arguments: str) -> None:
        subprocess.run(
            [STELLWERK, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=120
        )

    code = folder / "code"
    code.mkdir()
    (code / "first.py").write_text(FIRST_LINE)
    stellwerk("workspace", "create", "bench")
    seconds = []
    for number in range(ROUNDS + 1):
        target = folder / f"time-{number}"
        begin = time.time()
        stellwerk(
            *("run", "submit", str(code), "--command", f"FIRST_LINE='{target}' python first.py"),
            *("--name", f"r{number}"),
        )
        seconds.append(float(target.read_text()) - begin)
    # The first one makes the environment.
    return Measurement(statistics.median(seconds[1:]), ROUNDS)


@benchmark("flow.demo_warm", unit="s", better="lower", goal=60.0)
def demo_warm(resources: Resources) -> Measurement:
    """The whole of `make demo`, from the start of the servers to their end, for the second time."""

    def demo() -> float:
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, ROOT / "scripts" / "demo.py"], stdout=subprocess.DEVNULL, check=True, timeout=600
        )
        return time.perf_counter() - begin

    demo()
    return Measurement(statistics.median(demo() for _ in range(3)), 3)
