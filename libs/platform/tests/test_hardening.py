"""What another process of the same user can read of a service."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stellwerk_platform import hardening

NOBODY = 65_534
SOURCE = Path(hardening.__file__).read_text()
READ = "import sys; open(f'/proc/{sys.argv[1]}/environ').read(); print('read')"


def _command(code: str, *arguments: str) -> list[str]:
    """As root the test goes on as somebody else: root may read everything."""
    interpreter = shutil.which("python3", path="/usr/bin:/usr/local/bin") if os.getuid() == 0 else None
    return [interpreter or sys.executable, "-I", "-S", "-c", code, *arguments]


@pytest.mark.parametrize("call", ["", "keep_memory_private()"])
def test_another_process_of_the_user_cannot_read_the_environment(call: str) -> None:
    user = NOBODY if os.getuid() == 0 else None
    if user is not None and not Path(_command("")[0]).resolve().is_relative_to("/usr"):
        pytest.skip("root, and no interpreter that another user may start")
    waiting = f"{SOURCE}\n{call}\nimport sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        _command(waiting), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user, cwd="/"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        other = subprocess.run(
            _command(READ, str(process.pid)),
            capture_output=True,
            text=True,
            user=user,
            cwd="/",
            check=False,
        )
        assert (other.stdout == "read\n") == (call == ""), other.stderr
        assert ("PermissionError" in other.stderr) == (call != "")
        process.communicate("")
