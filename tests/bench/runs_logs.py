"""What it costs a script that its output is followed: 100 MB a minute, with and without the platform."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import stellwerk
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

ROUNDS = 5
# A fifth of a minute at 100 MB a minute.
LINES = 200_000
SECONDS = 12.0
# Works for each line as a training does, so that the lines come at about that rate; says how long it took.
SCRIPT = """
import os, pathlib, time
rounds, lines = int(os.environ["ROUNDS_A_LINE"]), int(os.environ["LINES"])
line = "x" * 99
began = time.perf_counter()
for _ in range(lines):
    for _ in range(rounds):
        pass
    print(line)
pathlib.Path(os.environ["TIME_FILE"]).write_text(str(time.perf_counter() - began))
"""


def _alone(script: Path, variables: dict[str, str], output: Path) -> None:
    with output.open("wb") as file:
        environment = os.environ | variables | {"PYTHONUNBUFFERED": "1"}
        subprocess.run([sys.executable, script], env=environment, stdout=file, check=True)


@benchmark("runs.log_slowdown", unit="% slower", better="lower", goal=5)
def log_slowdown(resources: Resources) -> Measurement:
    """The script's own time within a run, against the same script beside the idle platform, interleaved."""
    code, times = resources.folder(), resources.folder()
    (code / "talk.py").write_text(SCRIPT)
    status = resources.stack.status()
    key = Path(status["owner_key_file"]).read_text().strip()

    def alone(number: str, variables: dict[str, str]) -> float:
        found = times / f"alone-{number}"
        _alone(code / "talk.py", variables | {"TIME_FILE": str(found)}, times / "output")
        return float(found.read_text())

    # How much work a line takes to come at the wanted rate on this machine.
    trial = alone("trial", {"ROUNDS_A_LINE": "1000", "LINES": "2000"})
    variables = {"ROUNDS_A_LINE": str(int(1000 * SECONDS / LINES / (trial / 2000))), "LINES": str(LINES)}
    with stellwerk.Client(
        grpc_address=status["grpc_address"], gateway_url=status["gateway_url"], api_key=key
    ) as client:
        client.workspaces.create("bench-logs")
        runs = client.workspace("bench-logs").runs

        def followed(number: str) -> float:
            found = times / f"followed-{number}"
            run = runs.submit(
                "python talk.py",
                code=code,
                experiment="talk",
                variables=variables | {"TIME_FILE": str(found)},
            ).wait()
            assert run.state == "Completed", run
            assert (
                sum(log.size_bytes for log in run.logs() if log.log == "user_logs/std_log.txt") == LINES * 100
            )
            return float(found.read_text())

        slower = []
        for number in range(ROUNDS):
            # Neighbours in time, so that what else the machine does weighs on both.
            pair = alone(str(number), variables), followed(str(number))
            slower.append(100 * (pair[1] / pair[0] - 1))
    return Measurement(statistics.median(slower), ROUNDS)
