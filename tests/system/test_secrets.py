"""A run reads a secret that its configuration names; its value is nowhere but in Vault and the process."""

import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from stellwerk import StellwerkError, Workspace
from tests.system.support import Cli, contents

WORKSPACE = "vaulted"
SCRIPT = """
import sys, time
import stellwerk

run = stellwerk.current_run()
value = run.secret("db-password")
print("the password is", value)
print("in two parts: ", end="", flush=True)
sys.stdout.write(value[:9]); sys.stdout.flush()
time.sleep(0.5)
sys.stdout.write(value[9:] + "\\n"); sys.stdout.flush()
with open("logs/own.log", "w") as log:
    print({"password": value}, file=log)
try:
    run.secret("other")
except stellwerk.StellwerkError as error:
    print("refused:", error.reason)
raise SystemExit(f"cannot connect with {value}")
"""


def test_a_run_reads_its_secret_and_the_log_hides_it(
    cli: Cli, workspace: Workspace, tmp_path: Path, stack: dict[str, Any]
) -> None:
    value = f"needle-{uuid.uuid4().hex}"
    (tmp_path / "value").write_text(value)
    cli.ok("secret", "set", "db-password", "--file", str(tmp_path / "value"))
    cli.ok("secret", "set", "other", "--file", str(tmp_path / "value"))
    folder = tmp_path / "code"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs/.keep").touch()
    (folder / "script.py").write_text(SCRIPT)
    ended = workspace.runs.submit("python script.py", code=folder, secrets=["db-password"]).wait()
    text = "".join(ended.log())
    hidden = "*" * len(value)
    assert f"the password is {hidden}\n" in text
    assert f"in two parts: {hidden}\n" in text
    assert "refused: SECRET_NOT_NAMED" in text
    assert hidden in "".join(ended.log(log="logs/own.log"))
    # How it ended is an event.
    assert f"cannot connect with {hidden}" in ended.message.reason.message
    assert value not in str(ended.message)
    assert _files_with(value, Path(stack["data_dir"]), besides=("work",)) == []


def _files_with(value: str, folder: Path, besides: tuple[str, ...]) -> list[Path]:
    needle = re.compile(value.encode())
    return [
        path
        for path, content in contents(folder)
        if not set(besides) & set(path.parts) and needle.search(content)
    ]


def test_a_secret_that_does_not_exist_is_told_at_the_submit(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    with pytest.raises(StellwerkError) as refused:
        workspace.runs.submit("true", code=tmp_path, secrets=["never-set"])
    assert refused.value.reason == "SECRET_NOT_FOUND"


def test_versions_are_listed_and_a_stale_writer_is_refused(cli: Cli, workspace: Workspace) -> None:
    workspace.secrets.set("token", "one")
    workspace.secrets.set("token", "two", expected_version=1)
    assert workspace.secrets.get("token") == "two"
    assert workspace.secrets.get("token", version=1) == "one"
    assert [item["name"][-1] for item in cli.json("secret", "versions", "token")] == ["2", "1"]
    with pytest.raises(StellwerkError) as stale:
        workspace.secrets.set("token", "three", expected_version=1)
    assert stale.value.reason == "SECRET_VERSION_CHANGED"
    cli.ok("secret", "delete", "token")
    assert "token" not in cli.ok("secret", "list")
    cli.ok("secret", "undelete", "token")
    assert cli.ok("secret", "get", "token") == "two"
