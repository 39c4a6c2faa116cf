"""From a submit to the first line of the user's script, and a burst of runs on few slots."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import stellwerk
from tests.bench.resources import Resources
from tests.bench.suite import Measurement, benchmark

ROUNDS = 20
BURST = 200
FIRST_LINE = "import time, os; open(os.environ['FIRST_LINE'], 'w').write(repr(time.time()))\n"


@contextmanager
def _workspace(resources: Resources, name: str) -> Iterator[stellwerk.Workspace]:
    status = resources.stack.status()
    key = Path(status["owner_key_file"]).read_text().strip()
    with stellwerk.Client(
        grpc_address=status["grpc_address"], gateway_url=status["gateway_url"], api_key=key
    ) as client:
        client.workspaces.create(name)
        yield client.workspace(name)


def _code(resources: Resources) -> Path:
    folder = resources.folder()
    (folder / "first.py").write_text(FIRST_LINE)
    return folder


@benchmark("runs.submit_to_first_line", unit="ms (p50)", better="lower", goal=500)
def submit_to_first_line(resources: Resources) -> Measurement:
    """From `runs.submit(...)` in a process that is connected to the first line of the script, all warm."""
    code, times = _code(resources), resources.folder()
    with _workspace(resources, "bench-submit") as workspace:
        milliseconds = []
        for number in range(ROUNDS + 1):
            target = times / str(number)
            begin = time.time()
            run = workspace.runs.submit(
                "python first.py", code=code, experiment="first", variables={"FIRST_LINE": str(target)}
            )
            run = run.wait()
            assert run.state == "Completed", run
            milliseconds.append((float(target.read_text()) - begin) * 1000)
    # The first one makes the environment.
    return Measurement(statistics.median(milliseconds[1:]), ROUNDS)


@benchmark("runs.burst", unit="s", better="lower")
def burst(resources: Resources) -> Measurement:
    """200 runs submitted at once to `local`, until the last one has ended; each logs a point and a line."""
    code = resources.folder()
    (code / "one.py").write_text(
        "import os, stellwerk\n"
        "run = stellwerk.current_run()\n"
        "run.log('number', int(os.environ['NUMBER']))\n"
        "print('number', os.environ['NUMBER'])\n"
    )
    with _workspace(resources, "bench-burst") as workspace:

        def submit(number: int) -> stellwerk.Run:
            return workspace.runs.submit(
                "python one.py", code=code, experiment="burst", variables={"NUMBER": str(number)}
            )

        submit(-1).wait()
        begin = time.perf_counter()
        with ThreadPoolExecutor(16) as threads:
            runs = list(threads.map(submit, range(BURST)))
            ended = list(threads.map(lambda run: run.wait(), runs))
        seconds = time.perf_counter() - begin
        assert Counter(run.state for run in ended) == {"Completed": BURST}
        for number, run in enumerate(ended):
            assert [point.value for point in run.history("number")] == [number]
            assert "".join(run.log(log="user_logs/std_log.txt")) == f"number {number}\n"
    return Measurement(seconds, 1)
