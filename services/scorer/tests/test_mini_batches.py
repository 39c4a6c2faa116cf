"""Mini-batches of a batch deployment: what the agent gets from the real server, whatever the script does.

The script of most tests returns what its first file says, so that each file is a case.
"""

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import httpx
import numpy as np
import pytest

from services.scorer.tests.environments import python_with
from services.scorer.tests.support import BARE_PYTHON, StartScorer
from stellwerk_scorer.job import Job
from stellwerk_scorer.worker import frames, rows
from stellwerk_scorer.worker_process import WorkerProcess

TELLS = """
    import os, time
    from pathlib import Path

    def init():
        print("begins", os.getpid())

    def deaf():
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass

    def waits_for(path):
        print("waits", flush=True)
        while not os.path.exists(path):
            time.sleep(0.01)
        return [1]

    loop = []

    def run(mini_batch):
        assert all(os.path.isabs(path) for path in mini_batch)
        return eval(Path(mini_batch[0]).read_text())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where mini-batches lie."""
    return tmp_path / "batch"


@pytest.fixture
def batch(folder: Path) -> dict[str, str]:
    """The setting that makes a scorer one of a batch deployment."""
    return {"STELLWERK_SCORER_BATCH_FOLDER": str(folder)}


def request(folder: Path, first: str, *, files: int = 2, **more: Any) -> dict[str, Any]:
    """A mini-batch of files in a folder of its own, the first of which has the text."""
    name = uuid.uuid4().hex
    paths = [f"part/{number}.txt" for number in range(files)]
    for path in paths:
        place = folder / name / "files" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(first if path == paths[0] else "")
    settings = {"action": "APPEND_ROW", "output_file_name": "out.csv", "timeout_ms": 60_000}
    return {"folder": name, "files": paths, **settings, **more}


async def results(
    folder: Path, http: httpx.AsyncClient, asked: dict[str, Any]
) -> tuple[list[int], list[str]]:
    """The counts of succeeded files and of rows, and the content of each file of results."""
    answer = await http.post("/mini-batch", json=asked)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    texts = [(folder / asked["folder"] / "results" / path).read_text() for path in told["files"]]
    return [told["succeeded_file_count"], told["row_count"]], texts


ROWS = [
    ("['a', 'b']", "prediction\na\nb\n", [2, 2]),
    ("[1.5, float('nan')]", 'prediction\n1.5\n""\n', [2, 2]),
    ("(None, 'only the second')", "prediction\nonly the second\n", [1, 1]),
    ("[[1, 2.5], [3, True]]", "0,1\n1,2.5\n3,True\n", [2, 2]),
    ("[{'x': 1}, {'y': 'a,\\n\"b'}]", 'x,y\n1,\n,"a,\n""b"\n', [2, 2]),
    ("[{'x': [1, {'z': None}]}]", 'x\n"[1, {""z"": null}]"\n', [1, 1]),
    # Three rows of two files: a table may have several for each.
    ("['a', 'b', 'c']", "prediction\na\nb\nc\n", [2, 3]),
]


async def test_rows_become_a_table(scorer: StartScorer, folder: Path, batch: dict[str, str]) -> None:
    async with scorer(TELLS, BARE_PYTHON, **batch) as running, (await running.ready()).http() as http:
        for returned, content, counts in ROWS:
            assert await results(folder, http, request(folder, returned)) == (counts, [content])
        assert await results(folder, http, request(folder, "[]")) == ([0, 0], [])
        assert await results(folder, http, request(folder, "[1, 2]", action="SUMMARY_ONLY")) == ([2, 2], [])
        lines = request(
            folder, "[{'a': float('nan'), 'b': ['ü', -float('inf')]}, 2]", output_file_name="o.jsonl"
        )
        told = '{"a": "NaN", "b": ["ü", "-Infinity"]}\n{"prediction": 2}\n'
        assert await results(folder, http, lines) == ([2, 2], [told])


async def test_each_file_has_a_result_of_its_own(
    scorer: StartScorer, folder: Path, batch: dict[str, str]
) -> None:
    async with scorer(TELLS, BARE_PYTHON, **batch) as running, (await running.ready()).http() as http:
        asked = request(folder, "[{'class': 'cat'}, None, [1, 2]]", files=3, action="BY_FILE")
        answer = (await http.post("/mini-batch", json=asked)).json()
        assert answer == {
            "succeeded_file_count": 2,
            "row_count": 2,
            "files": ["part/0.txt.json", "part/2.txt.json"],
        }
        place = folder / asked["folder"] / "results" / "part"
        assert (place / "0.txt.json").read_text() == '{"class": "cat"}'
        assert (place / "2.txt.json").read_text() == "[1, 2]"
        failed = await http.post("/mini-batch", json=request(folder, "[1]", action="BY_FILE"))
        assert (failed.status_code, failed.json()["reason"]) == (500, "RESULT_COUNT_WRONG")
        assert "1 elements for 2 files" in failed.json()["message"]


FAILURES = [
    ("1 / 0", "SCRIPT_ERROR", "ZeroDivisionError: division by zero"),
    ("exit('enough')", "SCRIPT_ERROR", "SystemExit: enough"),
    ("Path('/nowhere').read_text()", "SCRIPT_ERROR", "/nowhere"),
    ("None", "RESULT_INVALID", "NoneType"),
    ("(item for item in mini_batch)", "RESULT_INVALID", "generator"),
    ("'text'", "RESULT_INVALID", "str"),
    ("{'a': 1}", "RESULT_INVALID", "dict"),
    ("[b'bytes']", "RESULT_NOT_WRITABLE", "bytes"),
    ("['\\ud800']", "RESULT_NOT_WRITABLE", "surrogates"),
    ("loop.append(loop) or [loop]", "RESULT_NOT_WRITABLE", "recursion"),
]


async def test_what_goes_wrong_has_a_reason(scorer: StartScorer, folder: Path, batch: dict[str, str]) -> None:
    async with scorer(TELLS, BARE_PYTHON, **batch) as running, (await running.ready()).http() as http:
        for returned, reason, told in FAILURES:
            answer = await http.post("/mini-batch", json=request(folder, returned))
            assert (answer.status_code, answer.json()["reason"]) == (500, reason), returned
            assert told in answer.json()["message"]
        await running.line("ZeroDivisionError: division by zero")
        asked = request(folder, "[1]")
        place = folder / asked["folder"] / "results"
        place.mkdir()
        (place / "out.csv").symlink_to("/dev/full")
        full = await http.post("/mini-batch", json=asked)
        assert (full.status_code, full.json()["reason"]) == (500, "NODE_DISK_FULL")
        # All of that cost no worker.
        assert len([line for line in running.lines if line.startswith("begins")]) == 1


async def test_a_worker_that_dies_or_hangs_is_replaced(
    scorer: StartScorer, folder: Path, batch: dict[str, str]
) -> None:
    async with scorer(TELLS, BARE_PYTHON, **batch) as running, (await running.ready()).http() as http:
        cases = [
            ("os._exit(3)", 502, "WORKER_DIED", "exit code 3"),
            ("os.kill(os.getpid(), 9)", 502, "WORKER_DIED", "signal 9"),
            ("deaf()", 500, "SCORING_TIMEOUT", "was ended"),
            ("time.sleep(60)", 500, "SCORING_TIMEOUT", "did not end in 0.3 s"),
        ]
        for count, (returned, status, reason, told) in enumerate(cases, 1):
            limit = 300 if reason == "SCORING_TIMEOUT" else 60_000
            answer = await http.post("/mini-batch", json=request(folder, returned, timeout_ms=limit))
            assert (answer.status_code, answer.json()["reason"]) == (status, reason)
            assert told in answer.json()["message"]
            assert (await http.get("/v2/health/live")).json() == {"live": True}
            if reason == "WORKER_DIED" or returned == "deaf()":
                await running.line("begins", count=count + 1)
                await running.line(f"ready (worker {count + 1})")
        assert await results(folder, http, request(folder, "[1]")) == ([1, 1], ["prediction\n1\n"])


async def test_nobody_waits_behind_a_mini_batch_that_was_dropped(
    scorer: StartScorer, folder: Path, batch: dict[str, str]
) -> None:
    async with scorer(TELLS, BARE_PYTHON, **batch) as running, (await running.ready()).http() as http:
        asked = request(folder, "print('hangs', flush=True) or time.sleep(60)", timeout_ms=60_000)
        dropped = asyncio.create_task(http.post("/mini-batch", json=asked))
        await running.line("hangs")
        dropped.cancel()
        await asyncio.wait([dropped])
        await running.line("ready (worker 2)")
        assert await results(folder, http, request(folder, "[1]")) == ([1, 1], ["prediction\n1\n"])


async def test_workers_share_the_load(
    scorer: StartScorer, folder: Path, batch: dict[str, str], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with (
        scorer(TELLS, BARE_PYTHON, STELLWERK_SCORER_WORKERS="2", **batch) as running,
        (await running.ready()).http() as http,
    ):
        await running.line("ready (worker 2)")
        waiting = request(folder, f"waits_for({str(gate)!r})")
        both = [asyncio.create_task(results(folder, http, waiting)) for _ in range(2)]
        await running.line("waits", count=2)
        third = asyncio.create_task(results(folder, http, request(folder, "[1]")))
        assert (await http.get("/v2/health/ready")).status_code == 200
        gate.touch()
        assert [(await one)[0] for one in (*both, third)] == [[1, 1]] * 3


async def test_a_mini_batch_that_waited_has_all_of_its_time() -> None:
    """By the rule itself: only a worker that is busy for long could show it."""
    loop = asyncio.get_running_loop()
    worker = WorkerProcess(lambda _worker: None, lambda _job: None)
    worker._transport = transport = create_autospec(asyncio.Transport, instance=True)
    almost_late = loop.time() + 1
    worker.send([Job(frames.SCORE, b"", b"", almost_late, lambda _outcome: None, run_seconds=600)])
    (frame,) = transport.write.call_args.args
    _, milliseconds, *_ = frames.HEADER.unpack_from(frame)
    assert milliseconds > 599_000


async def test_it_answers_nothing_else(scorer: StartScorer, folder: Path, batch: dict[str, str]) -> None:
    async with scorer(TELLS, BARE_PYTHON, **batch) as running, (await running.ready()).http() as http:
        good = request(folder, "[1]")
        assert (await http.get("/")).text == "Healthy"
        for path in ("/score", "/swagger.json", "/v2/models/digits/infer"):
            answer = await http.post(path, json=good)
            assert (answer.status_code, answer.json()["reason"]) == (404, "ENDPOINT_IS_BATCH")
        assert (await http.get("/mini-batch")).status_code == 405
        bad: Sequence[dict[str, Any]] = (
            {"folder": "../elsewhere"},
            {"folder": "/etc"},
            {"files": ["../../../../etc/passwd"]},
            {"files": ["/etc/passwd"]},
            {"files": []},
            {"files": ["a"] * 1001},
            {"output_file_name": "../out.csv"},
            {"action": "DELETE"},
            {"timeout_ms": 0},
            {"timeout_ms": "1"},
        )
        for change in bad:
            answer = await http.post("/mini-batch", json={**good, **change})
            assert (answer.status_code, answer.json()["reason"]) == (400, "INVALID_REQUEST"), change
        assert (await http.post("/mini-batch", content="{")).json()["reason"] == "INVALID_JSON"
        http.headers.pop("authorization")
        assert (await http.post("/mini-batch", json=good)).status_code == 401


@pytest.mark.parametrize(
    "script",
    [
        "def init(): pass\ndef run(mini_batch, request_headers): return []",
        "def init(): pass\ndef run(mini_batch, context): return []",
    ],
)
async def test_a_run_that_wants_more_than_files_is_refused(
    scorer: StartScorer, batch: dict[str, str], script: str
) -> None:
    async with scorer(script, BARE_PYTHON, **batch) as running:
        await running.line("RUN_SIGNATURE_INVALID")
        assert await running.process.wait() == 3


async def test_a_data_frame_gives_its_columns(
    scorer: StartScorer, folder: Path, batch: dict[str, str]
) -> None:
    python = await python_with("inference-schema[numpy-support,pandas-support]==1.8", "numpy>=2", "pandas>=2")
    script = TELLS.replace("import os, time", "import os, time, pandas")
    frame = (
        "pandas.DataFrame({'n': [1, 2], 'x': [.5, None], 'at': [pandas.Timestamp('2026-01-02'), pandas.NaT]})"
    )
    async with scorer(script, python, **batch) as running, (await running.ready()).http() as http:
        table = "n,x,at\n1,0.5,2026-01-02T00:00:00\n2,,\n"
        assert await results(folder, http, request(folder, frame)) == ([2, 2], [table])
        lines = '{"n": 1, "x": 0.5, "at": "2026-01-02T00:00:00"}\n{"n": 2, "x": "NaN", "at": null}\n'
        asked = request(folder, frame, output_file_name="out.jsonl")
        assert await results(folder, http, asked) == ([2, 2], [lines])
        assert await results(folder, http, request(folder, f"{frame}['n']")) == ([2, 2], ["n\n1\n2\n"])
        assert await results(folder, http, request(folder, f"{frame}[:0]")) == ([0, 0], [])


def test_arrays_are_rows(tmp_path: Path) -> None:
    for value, content in (
        (np.array([1, 2], "int32"), "prediction\n1\n2\n"),
        (np.array([[0.25, np.nan], [1.0, np.inf]]), "0,1\n0.25,\n1.0,inf\n"),
        ([np.float32(0.5), np.bool_(True)], "prediction\n0.5\nTrue\n"),
        ([{"scores": np.array([1, 2])}], 'scores\n"[1, 2]"\n'),
    ):
        rows.write_table(str(tmp_path), "out.csv", *rows.elements(value))
        assert (tmp_path / "out.csv").read_text() == content
    with pytest.raises(rows.BadResult, match="ndarray"):
        rows.elements(np.array(1.0))
