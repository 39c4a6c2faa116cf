"""The life of the worker: it fails to load, is too slow, dies, and comes back."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from services.scorer.tests.support import StartScorer

INIT = "def init():\n    pass\n"
RUN = "def run(raw):\n    return raw\n"


@pytest.mark.parametrize(
    ("script", "reason", "says"),
    [
        (f"import nowhere_to_be_found\n{INIT}{RUN}", "MODULE_NOT_FOUND", "'nowhere_to_be_found'"),
        (f"def init():\n    import gone.away\n{RUN}", "MODULE_NOT_FOUND", "'gone'"),
        (f"from json import nothing\n{INIT}{RUN}", "SCRIPT_IMPORT_FAILED", "cannot import name 'nothing'"),
        ("def run(:\n", "SCRIPT_SYNTAX_ERROR", "line 1"),
        (INIT, "RUN_MISSING", "defines no function run()"),
        (RUN, "INIT_MISSING", "defines no function init()"),
        (f"{INIT}def run():\n    pass\n", "RUN_SIGNATURE_INVALID", "needs a parameter"),
        (f"{INIT}def run(*raw):\n    pass\n", "RUN_SIGNATURE_INVALID", "*args"),
        (f"{INIT}def run(a, b):\n    pass\n", "RUN_SIGNATURE_INVALID", "also requires b"),
        (f"def init():\n    open('/no/model')\n{RUN}", "INIT_FAILED", "/no/model"),
        (f"def init():\n    raise SystemExit(5)\n{RUN}", "INIT_FAILED", "SystemExit"),
        (f"import os\ndef init():\n    os._exit(9)\n{RUN}", "WORKER_DIED", "exit code 9"),
    ],
)
async def test_a_script_that_cannot_serve_ends_the_scorer_with_its_reason(
    scorer: StartScorer, script: str, reason: str, says: str
) -> None:
    async with scorer(script) as running:
        assert await asyncio.wait_for(running.process.wait(), 60) == 3
        line = await running.line(f"stellwerk-scorer: {reason}: ")
        assert says in line
        assert running.lines[-1] == line
        assert "stellwerk_scorer/" not in running.log, "no frames of ours"
        assert "<frozen importlib" not in running.log


async def test_a_failing_init_shows_its_traceback_and_the_model_folder(
    scorer: StartScorer, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    (model / "digits").mkdir(parents=True)
    (model / "digits" / "model.joblib").write_text("")
    script = f"def init():\n    raise KeyError('weights')\n{RUN}"
    async with scorer(script, AZUREML_MODEL_DIR=str(model)) as running:
        await running.process.wait()
        await running.line("INIT_FAILED")
        assert "raise KeyError('weights')" in running.log
        assert f"AZUREML_MODEL_DIR={model}" in running.log
        assert "digits/model.joblib" in running.log


async def test_a_broken_interpreter_and_a_missing_script(scorer: StartScorer) -> None:
    async with scorer(INIT + RUN, "/no/python") as running:
        assert await running.process.wait() == 3
        await running.line("INTERPRETER_BROKEN: The interpreter /no/python cannot be started")
    async with scorer(INIT + RUN, STELLWERK_SCORER_SCRIPT="/no/score.py") as running:
        assert await running.process.wait() == 3
        await running.line("SCRIPT_NOT_FOUND: There is no scoring script /no/score.py")


async def test_health_is_answered_while_the_script_loads(scorer: StartScorer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"def init():\n    print('loading')\n    open({str(gate)!r}).read()\n{RUN}"
    async with scorer(script) as running, running.http() as http:
        await running.line("loading")
        assert (await http.get("/v2/health/live")).status_code == 200
        assert (await http.get("/v2/health/ready")).status_code == 503
        assert (await http.get("/v2/models/digits/ready")).status_code == 503
        response = await http.post("/score", content="1")
        assert (response.status_code, response.json()["reason"]) == (503, "WORKER_NOT_READY")
        await asyncio.to_thread(gate.write_text, "go")
        await running.ready()
        assert (await http.get("/v2/health/ready")).json() == {"ready": True}


# Python runs it first of all: notes what the process imports and starts, in its order.
NOTES = """
import os, sys

file = open(os.path.join(os.path.dirname(__file__), f"{os.getpid()}.txt"), "a", buffering=1)

def note(event, arguments):
    if event in ("import", "subprocess.Popen"):
        print(event, arguments[0], file=file)

sys.addaudithook(note)
"""


async def test_the_worker_starts_before_the_front_is_imported(scorer: StartScorer, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "sitecustomize.py").write_text(NOTES)
    async with scorer(INIT + RUN, PYTHONPATH=str(tmp_path / "notes")) as running:
        await running.ready()
        noted = (tmp_path / "notes" / f"{running.process.pid}.txt").read_text().splitlines()
    (start,) = [at for at, line in enumerate(noted) if line.startswith("subprocess.Popen")]
    for module in ("stellwerk_scorer.main", "grpc"):
        assert noted.index(f"import {module}") > start, f"the worker waits for {module}"


FRAGILE = """
    import os, time

    def init():
        print(f"worker {os.getpid()} begins")

    def run(raw):
        if raw == "die":
            os._exit(7)
        if raw == "slow":
            print("slow begins")
            while True:
                time.sleep(60)
        if raw == "stuck":
            print("stuck begins")
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
        return raw
"""


async def test_processes_of_the_script_end_by_sigterm(scorer: StartScorer) -> None:
    """As those of a `multiprocessing.Pool` must; the worker itself only ends with the front."""
    script = """
        import multiprocessing, time

        def work(pipe):
            pipe.send("up")
            time.sleep(60)

        def init():
            pass

        def run(raw):
            ours, its = multiprocessing.Pipe()
            child = multiprocessing.get_context("fork").Process(target=work, args=(its,))
            child.start()
            ours.recv()
            child.terminate()
            child.join()
            return child.exitcode
    """
    async with scorer(script) as running, (await running.ready()).http() as http:
        assert (await http.post("/score")).json() == -15


async def test_a_dead_worker_costs_its_request_and_is_replaced(scorer: StartScorer) -> None:
    async with scorer(FRAGILE) as running, (await running.ready()).http() as http:
        response = await http.post("/score", content="die")
        assert (response.status_code, response.json()["reason"]) == (502, "WORKER_DIED")
        assert "exit code 7" in response.json()["error"]
        assert (await http.get("/v2/health/live")).status_code == 200
        await running.line("begins", count=2)
        await running.ready()
        assert (await http.post("/score", content="hello")).json() == "hello"


async def test_a_killed_worker_is_not_ready_and_those_who_wait_are_told(scorer: StartScorer) -> None:
    async with scorer(FRAGILE) as running, (await running.ready()).http() as http:
        pid = int((await running.line("worker")).split()[1])
        busy = asyncio.create_task(http.post("/score", content="slow"))
        await running.line("slow begins")
        waiting = asyncio.create_task(http.post("/score", content="patient"))
        not_ready = asyncio.create_task(running.health(health_pb2.HealthCheckResponse.NOT_SERVING))
        os.kill(pid, signal.SIGKILL)
        response = await busy
        assert (response.status_code, response.json()["reason"]) == (502, "WORKER_DIED")
        assert "signal 9" in response.json()["error"]
        response = await waiting
        assert response.status_code in (200, 503), "the second may have arrived when the new worker was there"
        await not_ready
        await running.ready()


@pytest.mark.parametrize("body", ["slow", "stuck"])
async def test_a_run_that_takes_too_long(scorer: StartScorer, body: str) -> None:
    async with scorer(FRAGILE, SCORING_TIMEOUT_MS="300") as running, (await running.ready()).http() as http:
        response = await http.post("/score", content=body)
        assert (response.status_code, response.json()["reason"]) == (500, "SCORING_TIMEOUT")
        assert response.headers["x-ms-run-function-failed"] == "true"
        if body == "stuck":
            # It would not be interrupted, so the worker was replaced.
            await running.line("begins", count=3)
        # On a slow machine the next one may be too late as well.
        async with asyncio.timeout(60):
            while (response := await http.post("/score", content="hello")).status_code != 200:
                assert response.status_code in (500, 503)
        assert response.json() == "hello"


async def test_who_waits_behind_a_stuck_run_is_not_lost_with_it(scorer: StartScorer) -> None:
    async with scorer(FRAGILE, SCORING_TIMEOUT_MS="3000") as running, (await running.ready()).http() as http:
        stuck = asyncio.create_task(http.post("/score", content="stuck"))
        await running.line("stuck begins")
        # Its own time has to last until the stuck one is killed, which is a second after its end.
        async with asyncio.timeout(60):
            while not stuck.done():
                waiting = await http.post("/score", content="patient")
                assert waiting.status_code in (200, 500, 503), waiting.text
        assert (await stuck).status_code == 500


async def test_a_request_that_waits_too_long_is_never_started(scorer: StartScorer) -> None:
    script = INIT + "import time\ndef run(raw):\n    print('got', raw)\n    time.sleep(60)\n"
    limit = {"STELLWERK_SCORER_TIMEOUT_MS": "500"}
    async with scorer(script, **limit) as running:
        await running.ready()
        reader, writer = await asyncio.open_connection(*running.http_address.split(":"))
        head = f"POST /score HTTP/1.1\r\nauthorization: Bearer {running.token}\r\ncontent-length: 1\r\n\r\n"
        # In one piece, so that all have about the same time left: one or two may have a moment more.
        count = 10
        writer.write(f"{head}x".encode() * count)
        answers = b""
        while answers.count(b'_TIMEOUT"') < count:
            more = await reader.read(65536)
            assert more, answers
            answers += more
        writer.close()
        await writer.wait_closed()
        late = answers.count(b'"QUEUE_TIMEOUT"')
        assert late >= 1, answers
        assert running.log.count("got x") <= count - late


async def test_sigterm_lets_the_request_under_way_end(scorer: StartScorer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"{INIT}def run(raw):\n    print('working')\n    return open({str(gate)!r}).read()\n"
    async with scorer(script) as running, (await running.ready()).http() as http:
        busy = asyncio.create_task(http.post("/score", content="1"))
        await running.line("working")
        running.process.terminate()
        await asyncio.to_thread(gate.write_text, "done")
        assert (await busy).json() == "done"
        assert await running.process.wait() == 0


async def test_the_worker_ends_with_a_front_that_was_killed(scorer: StartScorer) -> None:
    async with scorer(FRAGILE) as running, (await running.ready()).http() as http:
        busy = asyncio.create_task(http.post("/score", content="stuck"))
        await running.line("stuck begins")
        running.process.kill()
        await asyncio.wait([busy])
        # The log is a pipe that the worker holds too: its end is the end of both.
        assert running.reader is not None
        await running.reader


async def test_secrets_of_the_platform_do_not_reach_user_code(scorer: StartScorer) -> None:
    script = f"{INIT}import os\ndef run(raw):\n    return os.environ.get('STELLWERK_OTLP_KEY', 'nothing')\n"
    secret = {"STELLWERK_OTLP_KEY": "swk_secret"}
    async with scorer(script, **secret) as running, (await running.ready()).http() as http:
        assert (await http.post("/score", content="1")).json() == "nothing"


async def test_an_address_that_is_taken_is_named(scorer: StartScorer) -> None:
    async with scorer(INIT + RUN) as first:
        for name, address in (("HTTP", first.http_address), ("GRPC", first.grpc_address)):
            with pytest.raises(AssertionError, match=f"ADDRESS_UNAVAILABLE Cannot listen on {address}"):
                async with scorer(INIT + RUN, **{f"STELLWERK_SCORER_{name}_LISTEN": address}):
                    pass


async def test_a_missing_setting_is_named(scorer: StartScorer) -> None:
    with pytest.raises(AssertionError, match="STELLWERK_SCORER_TIMEOUT_MS='soon' cannot be read"):
        async with scorer(INIT + RUN, SCORING_TIMEOUT_MS="soon"):
            pass
