"""What a process does first of all, so that others of the same user cannot read its secrets."""

import ctypes

_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Closes `/proc/<pid>/environ`, memory and core dumps of this process to all but root.

    Debuggers and profilers that attach need root then. Nothing happens where the system is no Linux.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
