"""The life of a service process: what ends in the background ends the process."""

import asyncio

import pytest

from stellwerk_platform.app import App


async def _fails() -> None:
    raise ValueError("broken")


async def _returns() -> None:
    await asyncio.sleep(0)


async def test_a_background_task_that_fails_ends_the_process() -> None:
    app = App("test")
    app.background(_fails())
    async with asyncio.timeout(60):
        with pytest.raises(ValueError, match="broken"):
            await app.wait()


async def test_a_background_task_that_ends_silently_ends_the_process_too() -> None:
    app = App("test")
    left: list[str] = []
    app.close(lambda: left.append("left"))
    app.background(_returns())
    async with asyncio.timeout(60):
        with pytest.raises(RuntimeError, match="_returns"):
            await app.wait()
    assert left == ["left"]
