"""Named places where a test can have the process die, as `kill -9` would.

`STELLWERK_FAILPOINT=name` or `name:3` kills the process when the place is reached
for the first or third time. Nothing happens without the variable.
"""

import os
import signal

_NAME, _, _COUNT = os.environ.get("STELLWERK_FAILPOINT", "").partition(":")
_remaining = int(_COUNT or 1)


def hit(name: str) -> None:
    """Dies here if the test asked for it."""
    global _remaining
    if name != _NAME:
        return
    _remaining -= 1
    if _remaining == 0:
        os.kill(os.getpid(), signal.SIGKILL)
