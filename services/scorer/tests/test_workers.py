"""Several workers, batches, bounds: what callers notice of them."""

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import httpx
import pytest

from services.scorer.tests.support import BARE_PYTHON, StartScorer
from stellwerk_scorer.job import Job
from stellwerk_scorer.worker import frames
from stellwerk_scorer.worker_process import WorkerProcess

WHO = """
    import os, time

    def init():
        print("begins", os.getpid())

    def run(raw):
        if raw == "hang":
            print("hangs", os.getpid())
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
        return os.getpid()
"""


async def test_one_that_hangs_holds_up_nobody(scorer: StartScorer) -> None:
    settings = {"WORKER_COUNT": "2", "STELLWERK_SCORER_DRAIN_SECONDS": "0"}
    async with scorer(WHO, BARE_PYTHON, **settings) as running, (await running.ready()).http() as http:
        await running.line("the scoring script is ready (worker 2)")
        seen: Counter[int] = Counter()
        while len(seen) < 2:
            answers = await asyncio.gather(*(http.post("/score", content="who") for _ in range(20)))
            seen.update(answer.json() for answer in answers)
        # The others are sent while both workers have work ahead: none may stay behind the one that hangs.
        first = [asyncio.create_task(http.post("/score", content="who")) for _ in range(10)]
        stuck = asyncio.create_task(http.post("/score", content="hang"))
        others = [asyncio.create_task(http.post("/score", content="who")) for _ in range(50)]
        answers = await asyncio.gather(*first, *others)
        assert not stuck.done()
        assert {answer.status_code for answer in answers} == {200}
        assert (await http.get("/v2/health/ready")).status_code == 200
        stuck.cancel()
        await asyncio.wait([stuck])


async def test_a_killed_worker_costs_no_request_but_its_own(scorer: StartScorer) -> None:
    async with scorer(WHO, BARE_PYTHON, WORKER_COUNT="2") as running, (await running.ready()).http() as http:
        await running.line("the scoring script is ready (worker 2)")
        answers: list[httpx.Response] = []
        underway = asyncio.Event()

        async def ask() -> None:
            for _ in range(100):
                answers.append(await http.post("/score", content="who"))
                if len(answers) >= 100:
                    underway.set()

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(ask())
            await underway.wait()
            victim = answers[-1].json()
            os.kill(victim, signal.SIGKILL)
        failed = [answer for answer in answers if answer.status_code != 200]
        assert len(answers) == 800
        assert len(failed) <= 1
        assert all(answer.json()["reason"] == "WORKER_DIED" for answer in failed)
        await running.line("begins", count=3)


async def test_a_full_queue_and_a_client_that_left(scorer: StartScorer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"""
        def init():
            pass

        def run(raw):
            print("got", raw)
            if raw == "wait":
                open({str(gate)!r}).read()
            return raw
    """
    bound = {"STELLWERK_SCORER_MAX_QUEUE": "2"}
    async with scorer(script, BARE_PYTHON, **bound) as running, (await running.ready()).http() as http:
        busy = asyncio.create_task(http.post("/score", content="wait"))
        await running.line("got wait")
        waiting = {asyncio.create_task(http.post("/score", content=f"w{i}")): f"w{i}" for i in range(3)}
        (refused,), _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert refused.result().json()["reason"] == "QUEUE_FULL"
        assert (refused.result().status_code, refused.result().headers["retry-after"]) == (429, "1")
        del waiting[refused]
        gone, patient = waiting
        gone.cancel()
        await asyncio.wait([gone])
        assert (await http.get("/v2/health/live")).status_code == 200
        await asyncio.to_thread(gate.write_text, "go")
        assert (await busy).json() == "wait"
        assert (await patient).json() == waiting[patient]
        assert f"got {waiting[gone]}" not in running.log


@pytest.mark.parametrize("where", ["init", "run"])
async def test_memory_has_a_bound(scorer: StartScorer, where: str) -> None:
    script = f"""
        def eat():
            return [bytearray(1 << 20) for _ in range(10_000)]

        def init():
            {"eat()" if where == "init" else "pass"}

        def run(raw):
            return len(eat()) if raw == "eat" else raw
    """
    bound = {"STELLWERK_SCORER_MEMORY_BYTES": str(300 << 20)}
    async with scorer(script, BARE_PYTHON, **bound) as running, running.http() as http:
        if where == "init":
            assert await asyncio.wait_for(running.process.wait(), 60) == 3
            await running.line("stellwerk-scorer: OUT_OF_MEMORY: ")
            return
        await running.ready()
        answer = await http.post("/score", content="eat")
        assert (answer.status_code, answer.json()["reason"]) == (500, "SCRIPT_ERROR")
        assert "MemoryError" in answer.json()["error"]
        assert (await http.post("/score", content="on")).json() == "on"


async def test_an_init_that_hangs_is_ended_and_shown(scorer: StartScorer) -> None:
    script = "import time\ndef init():\n    time.sleep(600)\ndef run(raw):\n    pass\n"
    async with scorer(script, BARE_PYTHON, STELLWERK_SCORER_INIT_TIMEOUT_SECONDS="1") as running:
        assert await asyncio.wait_for(running.process.wait(), 60) == 3
        await running.line("stellwerk-scorer: INIT_TIMEOUT: ")
        assert "time.sleep(600)" in running.log


BATCHES = """
    import json, time

    def init():
        pass

    def run(raw):
        rows = json.loads(raw)["data"]
        print("batch", len(rows), flush=True)
        time.sleep(0.05)
        if ["poison"] in rows:
            raise ValueError("poison")
        if ["odd"] in rows:
            return ["one answer for all"]
        return [row[0] * 2 for row in rows]
"""


def _infer(value: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [value]}]}


async def test_batches_give_each_caller_its_own_rows(scorer: StartScorer) -> None:
    batching = {"STELLWERK_SCORER_MAX_BATCH_SIZE": "16", "STELLWERK_SCORER_MAX_BATCH_WAIT_MS": "5"}
    async with scorer(BATCHES, BARE_PYTHON, **batching) as running, (await running.ready()).http() as http:

        async def score(*rows: Any) -> Any:
            answer = await http.post("/score", json={"data": [[row] for row in rows]})
            return answer.json() if answer.status_code == 200 else answer.json()["reason"]

        assert await score(1) == [2]
        assert await running.line("batch") == "batch 1", "who is alone does not wait for others"
        # On a slow machine they may come one by one the first time, with up to three rows each.
        sizes = [1]
        while max(sizes) <= 3:
            found = await asyncio.gather(*(score(*range(n, n + 1 + n % 3)) for n in range(40)))
            assert found == [[2 * value for value in range(n, n + 1 + n % 3)] for n in range(40)]
            sizes = [int(line.split()[1]) for line in running.lines if line.startswith("batch")]
        # One bad request in a batch is the only one that fails; an odd result costs nobody his answer.
        found = await asyncio.gather(*(score("poison" if n == 5 else n) for n in range(12)))
        assert found == [[2 * n] if n != 5 else "SCRIPT_ERROR" for n in range(12)]
        is_seen = False
        while not is_seen:
            found = await asyncio.gather(*(score("odd" if n == 5 else n) for n in range(12)))
            assert found == [[2 * n] if n != 5 else ["one answer for all"] for n in range(12)]
            is_seen = "a batch is scored request by request" in running.log
        answers = await asyncio.gather(
            *(http.post("/v2/models/digits/infer", json=_infer(n)) for n in range(12))
        )
        assert [answer.json()["outputs"][0]["data"] for answer in answers] == [[2.0 * n] for n in range(12)]


async def test_a_gateway_is_told_what_the_replica_uses(scorer: StartScorer) -> None:
    batching = {"STELLWERK_SCORER_MAX_BATCH_SIZE": "16"}
    async with scorer(BATCHES, BARE_PYTHON, **batching) as running, (await running.ready()).http() as http:
        ready, asked = "/v2/health/ready", 0
        used: dict[str, Any] = {"calls": 0, "requests": 0}
        # On a slow machine they may come one by one the first time.
        while used["calls"] == used["requests"]:
            await asyncio.gather(*(http.post("/score", json={"data": [[n]]}) for n in range(12)))
            asked += 12
            answer = await http.get(ready, headers={"x-stellwerk-usage": "1"})
            used = json.loads(answer.headers["x-stellwerk-usage"])
            assert used["requests"] == asked
        assert used["calls"] >= 1
        assert sum(used["batches"].values()) == used["calls"]
        assert set(used["batches"]) <= {"1", "2", "4", "8", "16"}
        most = sum(int(size) * count for size, count in used["batches"].items())
        assert asked <= most < 2 * asked, "each call is counted by the next power of two"
        assert used["cpu_seconds"] > 0
        assert used["memory_bytes"] > 10_000_000
        assert "x-stellwerk-usage" not in (await http.get(ready)).headers


async def test_who_comes_alone_after_a_batch_is_not_made_to_wait_for_another() -> None:
    """By the rule itself: the wait is some milliseconds, which no test over the network could tell."""
    worker = WorkerProcess(lambda _worker: None, lambda _job: None)
    worker._transport = create_autospec(asyncio.Transport, instance=True)
    job = Job(frames.SCORE, b"", b"1", asyncio.get_running_loop().time() + 60, lambda _outcome: None)
    worker.send([job] * 3)
    assert worker.last_batch == 3
    worker.send([job])
    assert worker.last_batch == 1


async def test_arrays_are_batched_along_their_first_axis(scorer: StartScorer, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = linear_model.LinearRegression().fit([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 1.0, 10.0])
    joblib.dump(model, tmp_path / "model.joblib")
    settings = {
        "STELLWERK_SCORER_MAX_BATCH_SIZE": "64",
        "AZUREML_MODEL_DIR": str(tmp_path),
        "STELLWERK_SCORER_SCRIPT": "",
    }
    async with scorer("", **settings) as running, (await running.ready()).http() as http:

        async def infer(n: int) -> Any:
            rows = [[n, n + row] for row in range(1 + n % 2)]
            tensor = {"name": "x", "shape": [len(rows), 2], "datatype": "FP64", "data": rows}
            answer = await http.post("/v2/models/digits/infer", json={"inputs": [tensor]})
            return answer.json()["outputs"][0]["data"]

        found = await asyncio.gather(*(infer(n) for n in range(30)))
        for n, values in enumerate(found):
            assert values == pytest.approx([n + 10 * (n + row) for row in range(1 + n % 2)]), n


async def test_large_and_packed_bodies(scorer: StartScorer) -> None:
    import gzip

    script = "import json\ndef init(): pass\ndef run(raw): return len(raw)\n"
    limit = {"STELLWERK_SCORER_MAX_BODY_BYTES": str(10 << 20)}
    async with scorer(script, BARE_PYTHON, **limit) as running, (await running.ready()).http() as http:
        packed = {"content-encoding": "gzip"}
        body = json.dumps({"data": list(range(100_000))}).encode()
        answer = await http.post("/score", content=gzip.compress(body), headers=packed)
        assert answer.json() == len(body)
        bomb = gzip.compress(b" " * (64 << 20))
        cases: list[tuple[bytes, dict[str, str], int, str]] = [
            (bomb, packed, 413, "PAYLOAD_TOO_LARGE"),
            (b"x" * (20 << 20), {}, 413, "PAYLOAD_TOO_LARGE"),
            (b"no gzip", packed, 400, "INVALID_ENCODING"),
            (gzip.compress(b"cut")[:-4], packed, 400, "INVALID_ENCODING"),
        ]
        for content, headers, status, reason in cases:
            answer = await http.post("/score", content=content, headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (status, reason)
        assert (await http.post("/score", content=b"x" * (9 << 20))).json() == 9 << 20
        # Who asks first is told before he sends 200 MB.
        reader, writer = await asyncio.open_connection(*running.http_address.split(":"))
        head = f"POST /score HTTP/1.1\r\nauthorization: Bearer {running.token}\r\nexpect: 100-continue\r\n"
        writer.write(f"{head}content-length: 200000000\r\n\r\n".encode())
        assert (await reader.readline()).split()[1] == b"413"
        writer.close()
