"""Child runs that a script made on this node and did not end itself: delivered after the command.

A script ships what its children log. What it was killed over lies in folders beside its own
write-ahead files (`stellwerk.interactive_folder`); it travels with the token of the script's run.
"""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from stellwerk import interactive_folder
from stellwerk._async.core import AsyncCore
from stellwerk.errors import StellwerkError
from stellwerk.settings import Settings
from stellwerk_agent.calls import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.folder import AllocationFolder

log = logging.getLogger(__name__)
_MAY_PASS = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "UNAUTHENTICATED"}
)


async def deliver(folder: AllocationFolder, grpc_address: str) -> str:
    """Delivers and ends what is left, and says how many there were; "" for none.

    Waits for a platform that is away. Raises `StepFailed` for what it will never take.
    """
    places = _left(folder)
    if not places:
        return ""
    settings = Settings(
        grpc_address=grpc_address,
        gateway_url="",
        workspace="",
        api_key="-",
        origins={},
        token_file=folder.token,
    )
    core = AsyncCore(settings)
    try:
        for place in places:
            await _ship(core, place)
    finally:
        await core.close()
    return f"{len(places)} child runs ended by the agent"


def _left(folder: AllocationFolder) -> Sequence[Path]:
    children = folder.metrics / interactive_folder.CHILDREN
    return [path.parent for path in sorted(children.glob("*/run.json"))]


async def _ship(core: AsyncCore, place: Path) -> None:
    delay = FIRST_DELAY_SECONDS
    while True:
        try:
            run = await interactive_folder.ship(core, place)
        except StellwerkError as error:
            if error.code == "NOT_FOUND":
                log.warning("The run of %s is gone: %s", place, error)
                return
            if error.code not in _MAY_PASS:
                raise StepFailed(
                    "OUTPUT_COLLECTION_FAILED",
                    f"What the child run {place.name} logged is refused: {error.reason}: {error.message}",
                    error.cure or "See the agent's log.",
                ) from error
            log.warning("The child run in %s waits: %s", place, error)
        else:
            log.info("%s was ended: %s", run.name, run.reason.code)
            return
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_DELAY_SECONDS)
