"""What a replica says reaches the agent's log, in bounds."""

import asyncio
import logging
from pathlib import Path

import pytest

from stellwerk_agent import replica_log
from stellwerk_agent.replica_log import ReplicaLog

NAME = "workspaces/demo/endpoints/digits/deployments/v1.0/replicas/a"


async def forwarded(log: ReplicaLog) -> None:
    task = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == NAME]


async def test_lines_come_under_the_name_of_the_replica(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "std").write_text("Traceback\n  boom \x1b[31m\n" + "x" * 5_000 + "\nlast")
    await forwarded(ReplicaLog(NAME, [tmp_path / "none", tmp_path / "std"], from_end=False))
    assert lines(caplog) == ["Traceback", "  boom ?[31m", "x" * 1_000 + " …", "last"]


async def test_after_a_restart_nothing_is_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "std").write_text("old\n")
    log = ReplicaLog(NAME, [tmp_path / "std"], from_end=True)
    with (tmp_path / "std").open("a") as file:
        file.write("new\n")
    await forwarded(log)
    assert lines(caplog) == ["new"]


async def test_a_replica_that_writes_too_much_is_cut_short_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_log, "_BURST_LINES", 3)
    caplog.set_level(logging.INFO)
    (tmp_path / "std").write_text("a\n" * 10)
    await forwarded(ReplicaLog(NAME, [tmp_path / "std"], from_end=False))
    assert lines(caplog) == ["a", "a", "a", "7 lines were left out: it writes too many"]
