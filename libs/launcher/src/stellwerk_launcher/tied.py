"""Runs a command that ends when its parent ends, however the parent ends.

Own code, because `subprocess`' `preexec_fn` is unsafe beside threads and util-linux' `setpriv` is not
everywhere: this file is run as a script, asks the kernel for a SIGTERM at the parent's death
(`PR_SET_PDEATHSIG`, kept over exec), and becomes the command.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def tied_to_parent(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` tied to the calling process."""
    # -I -S: neither the environment nor site-packages are looked at, which keeps this at some 10 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    """Becomes the command; ends at once when the parent is gone already."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from error


if __name__ == "__main__":
    main()
