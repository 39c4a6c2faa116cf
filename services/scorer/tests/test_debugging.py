"""A debugger in the worker: a real client of debugpy's protocol stops the script at a line."""

import asyncio
import json
from pathlib import Path
from typing import Any

from services.scorer.tests.environments import python_with
from services.scorer.tests.support import BARE_PYTHON, StartScorer
from stellwerk_launcher import ports

SCRIPT = "def init():\n    pass\n\ndef run(raw):\n    answer = raw * 2\n    return answer\n"
LOCAL = {"STELLWERK_SCORER_LOCAL": "1"}


class Debugger:
    """As much of the Debug Adapter Protocol as one breakpoint needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._number = 0

    async def ask(self, command: str, **arguments: Any) -> None:
        self._number += 1
        message = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        self._writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await self._writer.drain()

    async def until(self, kind: str, name: str) -> dict[str, Any]:
        """The next message that is an event or a response of this name."""
        while True:
            head = await self._reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split()[0])
            message: dict[str, Any] = json.loads(await self._reader.readexactly(size))
            if message["type"] == kind and name in (message.get("event"), message.get("command")):
                return message

    def close(self) -> None:
        self._writer.close()


async def test_a_debugger_stops_the_script_at_a_line(scorer: StartScorer, tmp_path: Path) -> None:
    python = await python_with("debugpy")
    port = ports.choose(["debugger"], {})["debugger"]
    settings = {**LOCAL, "STELLWERK_SCORER_DEBUG_PORT": str(port)}
    async with scorer(SCRIPT, python, **settings) as running, running.http() as http:
        await running.line("waits for a debugger")
        assert (await http.get("/v2/health/ready")).status_code == 503
        debugger = Debugger(*await asyncio.open_connection("127.0.0.1", port))
        await debugger.ask("initialize", adapterID="test")
        await debugger.until("response", "initialize")
        await debugger.ask("attach", justMyCode=False)
        await debugger.until("event", "initialized")
        script = {"path": str(tmp_path / "score.py")}
        await debugger.ask("setBreakpoints", source=script, breakpoints=[{"line": 6}])
        await debugger.ask("configurationDone")
        await running.ready()
        answer = asyncio.create_task(http.post("/score", content="ab"))
        stopped = await debugger.until("event", "stopped")
        assert stopped["body"]["reason"] == "breakpoint"
        assert not answer.done()
        await debugger.ask("continue", threadId=stopped["body"]["threadId"])
        assert (await answer).json() == "abab"
        debugger.close()


async def test_an_environment_without_debugger_is_told_what_it_lacks(scorer: StartScorer) -> None:
    async with scorer(SCRIPT, BARE_PYTHON, **LOCAL, STELLWERK_SCORER_DEBUG_PORT="1") as running:
        assert await running.process.wait() == 3
        await running.line("stellwerk-scorer: DEBUGGER_MISSING: ")
        assert "add debugpy" in running.log


async def test_who_gives_up_before_a_debugger_comes_sees_no_error(scorer: StartScorer) -> None:
    python = await python_with("debugpy")
    port = ports.choose(["debugger"], {})["debugger"]
    async with scorer(SCRIPT, python, **LOCAL, STELLWERK_SCORER_DEBUG_PORT=str(port)) as running:
        await running.line("waits for a debugger")
        running.process.terminate()
        assert await running.process.wait() == 0
        await running.line("the worker ended")
    assert "never retrieved" not in running.log
    assert "out of memory" not in running.log
