"""The command line: usage, errors, exit codes, and what is on stdout."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import click
import pytest
from click.testing import CliRunner, Result

from stellwerk import jobs
from stellwerk.cli import deployment, stack
from stellwerk.cli.events import _tree
from stellwerk.cli.main import main
from stellwerk.errors import StellwerkError
from stellwerk_protos.inference.v1 import endpoints_pb2
from stellwerk_protos.telemetry.v1 import telemetry_pb2

from .conftest import Platform

_MONITOR = ["monitor", "create", "m", "--endpoint", "e", "--baseline", "b:1", "-w", "demo"]


def call(*arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(main, list(arguments), input=typed)


def _commands(group: click.Group, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        nested = isinstance(command, click.Group)
        found += _commands(command, (*prefix, name)) if nested else [(*prefix, name)]  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("words", _commands(main), ids=" ".join)
def test_every_command_helps_with_an_example(words: tuple[str, ...]) -> None:
    result = call(*words, "--help")
    assert result.exit_code == 0
    example = result.stdout.partition("Example:\n")[2]
    assert f"stellwerk {' '.join(words)}" in example
    assert ("--output" in result.stdout) == (words not in (("logs",), ("completion",)))
    here = words[0] in ("up", "down", "status", "logs", "credentials", "completion")
    login = words[0] in ("login", "logout")
    assert ("--workspace" in result.stdout, "--grpc-address" in result.stdout) == (
        not here and not login,
        not here,
    )
    assert "--debug" in result.stdout


@pytest.mark.parametrize("words", sorted({words[:-1] for words in _commands(main)}), ids=" ".join)
def test_no_line_of_help_is_cut_off(words: tuple[str, ...]) -> None:
    assert "..." not in call(*words, "--help").stdout.replace("[ARGS]...", "").replace("ARGS...", "")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["workspace", "show", "none"], 3, "WORKSPACE_NOT_FOUND"),
        (["workspace", "show", "crash"], 1, "UPSTREAM_INTERNAL"),
        (["workspace", "frobnicate"], 2, "USAGE"),
        (["workspace", "show"], 2, "USAGE"),
        (["dataset", "list"], 2, "WORKSPACE_MISSING"),
        (["dataset", "create", "d", "no-such-file", "-w", "demo"], 3, "PATH_NOT_FOUND"),
        (["run", "submit", "no-such-folder", "-w", "demo"], 3, "PATH_NOT_FOUND"),
        (["dataset", "create", "d", "", "-w", "demo"], 2, "INVALID_PATH"),
        (["model", "register", "m", "--path", "", "-w", "demo"], 2, "INVALID_PATH"),
        (["run", "submit", "", "-w", "demo"], 2, "INVALID_PATH"),
        (["deployment", "create", "d", "--endpoint", "e", "--model", "m:1", "--code", ""], 2, "INVALID_PATH"),
        (["run", "submit", "--input", "digits", "-w", "demo"], 2, "USAGE"),
        (["endpoint", "score", "e", "-w", "demo"], 2, "USAGE"),
        (["endpoint", "traffic", "e", "blue=many", "-w", "demo"], 2, "USAGE"),
        (["endpoint", "traffic", "e", "-w", "demo"], 2, "USAGE"),
        (["endpoint", "traffic", "e", "blue=100", "--none", "-w", "demo"], 2, "USAGE"),
        (["endpoint", "traffic", "e", "--mirror", "blue=x", "-w", "demo"], 2, "USAGE"),
        (["endpoint", "traffic", "e", "--mirror", "blue=1", "--no-mirror", "-w", "demo"], 2, "USAGE"),
        (["events", "list", "--resource", "digits-1", "-w", "demo"], 2, "INVALID_NAME"),
        (["events", "watch", "--resource", "runs/", "-w", "demo"], 2, "INVALID_NAME"),
        (["workspace", "list", "--output", "xml"], 2, "USAGE"),
        ([*_MONITOR, "--threshold", "psi"], 2, "USAGE"),
        ([*_MONITOR, "--threshold", "psi=high"], 2, "USAGE"),
        ([*_MONITOR, "--threshold", "age:psy=0.2"], 2, "INVALID_THRESHOLD"),
        ([*_MONITOR, "--window", "1y"], 2, "USAGE"),
        (["monitor", "update", "m", "-w", "demo"], 2, "USAGE"),
        (["monitor", "check", "m", "--no-wait", "--fail-on-drift", "-w", "demo"], 2, "USAGE"),
    ],
)
def test_errors_are_two_lines_on_stderr(
    platform: Platform, arguments: list[str], code: int, reason: str
) -> None:
    result = call(*arguments, *platform.options())
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(f"error[{reason}]: ")
    assert "Traceback" not in result.stderr


def test_what_exists_is_not_created_again(platform: Platform) -> None:
    assert call("workspace", "create", "demo", *platform.options()).exit_code == 0
    result = call("workspace", "create", "demo", *platform.options())
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error[NAME_TAKEN]" in result.stderr
    assert "  cure: Use another one.\n  trace: " in result.stderr


def test_a_wrong_key_and_no_key(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("swk_wrong")
    address = ["--grpc-address", platform.address]
    wrong = call("workspace", "list", *address, "--api-key-file", str(tmp_path / "wrong"))
    assert (wrong.exit_code, "error[KEY_INVALID]" in wrong.stderr) == (4, True)
    none = call("workspace", "list", *address)
    assert (none.exit_code, "error[KEY_MISSING]" in none.stderr) == (4, True)


def test_a_server_that_is_not_there(platform: Platform) -> None:
    options = ["--grpc-address", "127.0.0.1:1", "--api-key-file", str(platform.key_file)]
    for command in (["run", "watch", "r", "-w", "demo"], ["workspace", "create", "x"]):
        result = call(*command, *options)
        assert (result.exit_code, "error[SERVER_UNAVAILABLE]" in result.stderr) == (5, True)
    assert call("workspace", "list").exit_code == 5


def test_a_stack_that_is_down(tmp_path: Path) -> None:
    assert call("status", "--data-dir", str(tmp_path)).exit_code == 5
    result = call("logs", "runs", "--data-dir", str(tmp_path))
    assert (result.exit_code, "error[LOG_NOT_FOUND]" in result.stderr) == (3, True)


class _Launcher:
    """The launcher on which nothing runs."""

    def up(self, _data_dir: Path, *, progress: IO[str] | None, on_ready: Callable[[], None], **_: Any) -> int:
        print("starting", file=progress)
        on_ready()
        return 0

    def down(self, _data_dir: Path, progress: IO[str] | None) -> dict[str, list[str]]:
        print("workspaces/demo/runs/long is running: ending it", file=progress)
        return {"stopped": ["nats"], "ended": ["workspaces/demo/runs/long"]}

    def status(self, _data_dir: Path) -> dict[str, Any]:
        return {"state": "ready", "nats_url": "nats://inspector:hid-den@127.0.0.1:1", "processes": []}


def test_the_stack_speaks_json_on_stdout_and_to_people_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "launcher", _Launcher)
    up = call("up", "-o", "json")
    assert (json.loads(up.stdout)["state"], up.stderr) == ("ready", "starting\n")
    down = call("down", "-o", "json")
    assert json.loads(down.stdout)["stopped"] == ["nats"]
    assert down.stderr == "workspaces/demo/runs/long is running: ending it\n"
    assert (call("up").stdout, call("up").stderr) == ("starting\n", "")
    assert call("down").stdout == "workspaces/demo/runs/long is running: ending it\n"


def test_the_table_of_the_status_hides_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "launcher", _Launcher)
    table = call("status").stdout
    assert "nats://inspector:****@127.0.0.1:1" in table
    assert "hid-den" not in table
    assert "hid-den" in call("status", "-o", "json").stdout


def test_cures_repeat_the_folder_that_was_named(tmp_path: Path) -> None:
    folder = tmp_path / "a stack"
    for command in ("status", "events list -w demo"):
        result = call(*command.split(), "--data-dir", str(folder))
        assert (result.exit_code, f"--data-dir '{folder}'" in result.stderr) == (5, True)


def test_debug_shows_the_traceback(platform: Platform) -> None:
    assert "Traceback" in call("workspace", "show", "none", "--debug", *platform.options()).stderr


def test_json_is_one_document_of_proto_json(platform: Platform) -> None:
    result = call("workspace", "show", "demo", "-o", "json", *platform.options())
    assert json.loads(result.stdout)["tags"] == {"a": "ü"}
    assert json.loads(result.stdout)["revision"] == "1"
    result = call("workspace", "list", "-o", "json", "--limit", "3", *platform.options())
    assert [item["name"] for item in json.loads(result.stdout)] == [f"workspaces/w{n}" for n in range(4)]
    table = call("workspace", "list", *platform.options()).stdout.splitlines()
    assert table[0].split() == ["NAME", "CREATED", "DESCRIPTION"]


def test_a_run_is_shown_until_it_is_over(platform: Platform) -> None:
    result = call("run", "watch", "torn", "-w", "demo", *platform.options())
    assert result.exit_code == 0
    for line in ("first ü\n", "second\n", "third\n", "step 2  loss=0.3333", "torn: Completed"):
        assert line in result.stdout
    assert result.stdout.count("first") == 1


def test_a_run_that_failed_fails_the_command_with_its_reason(platform: Platform) -> None:
    result = call("run", "watch", "bad", "-w", "demo", "-o", "json", *platform.options())
    assert result.exit_code == 1
    assert json.loads(result.stdout)["state"] == "RUN_STATE_FAILED"
    assert "COMMAND_FAILED: exit code 3" in result.stderr
    assert "See the log." in result.stderr


def test_a_folder_that_is_taken_for_an_output_is_cured(platform: Platform) -> None:
    result = call("run", "download", "digits-1", "my results/", "-w", "demo", *platform.options())
    assert (result.exit_code, "error[ARTIFACT_NOT_FOUND]" in result.stderr) == (3, True)
    assert "stellwerk run download digits-1 --to 'my results/'" in result.stderr


def test_configuration_is_remembered_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("config", "set", "workspace", "demo").exit_code == 0
    assert call("config", "set", "api_key", "swk_x").exit_code == 2
    refused = call("config", "set", "workspace", "Bad Name")
    assert (refused.exit_code, "error[INVALID_NAME]" in refused.stderr) == (2, True)
    below = Path.cwd() / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    assert call("config", "set", "grpc_address", "a:1").exit_code == 0
    shown = json.loads(call("config", "show", "-o", "json", "-w", "other").stdout)
    assert (shown["workspace"], shown["origins"]["workspace"]) == ("other", "flag")
    assert shown["grpc_address"] == "a:1"
    assert not (below / ".stellwerk").exists()


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom stellwerk.cli.main import main\n"
        "heavy = {'grpc', 'google.protobuf', 'httpx', 'rich', 'yaml', 'opentelemetry', 'pathspec'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found == "[]\n"


def test_a_reader_that_goes_away_is_no_error(platform: Platform) -> None:
    command = f"{shlex.quote(sys.executable)} -m stellwerk.cli.main --help | true"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_jobs_are_read_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("pandas  # tables\n# nothing\n\n")
    (tmp_path / "job.yml").write_text(
        "$schema: x\ntype: command\ncommand: python a.py ${{inputs.in-put}} ${{ inputs.rate }}\ncode: src\n"
        "environment: {name: e, requirements: requirements.txt, packages: [numpy]}\n"
        "experiment_name: exp\ntags: {a: 1}\n"
        "inputs:\n  in-put: {type: uri_folder, path: 'azureml:digits:1'}\n  rate: a b\n"
    )
    read = jobs.load(tmp_path / "job.yml")
    assert read.command == "python a.py \"$STELLWERK_INPUT_IN_PUT\" 'a b'"
    assert (read.code, read.environment, read.packages) == (tmp_path / "src", "e", ["pandas", "numpy"])
    assert (read.inputs, read.tags, read.experiment) == ({"in-put": "digits:1"}, {"a": "1"}, "exp")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a", "JOB_FILE_INVALID"),
        ("a: [", "JOB_FILE_INVALID"),
        ("command: [a]", "JOB_FILE_INVALID"),
        ("distribution: {type: mpi}", "JOB_KEY_UNSUPPORTED"),
        ("type: sweep", "JOB_KEY_UNSUPPORTED"),
        ("inputs: {x: {type: uri_file, path: 'd:1'}}", "JOB_KEY_UNSUPPORTED"),
        ("command: ${{inputs.none}}", "JOB_INPUT_UNKNOWN"),
    ],
)
def test_a_job_that_means_nothing_here_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "job.yml").write_text(text)
    with pytest.raises(StellwerkError, match=reason):
        jobs.load(tmp_path / "job.yml")


def test_shells_get_their_completions() -> None:
    environment = {"_STELLWERK_COMPLETE": "bash_complete", "COMP_WORDS": "stellwerk ru", "COMP_CWORD": "1"}
    result = subprocess.run(
        [Path(sys.executable).parent / "stellwerk"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("plain,run\n", "")


def test_a_trace_is_a_tree_with_orphans_as_roots() -> None:
    def span(identity: str, parent: str, start_ms: int, duration_ms: int) -> telemetry_pb2.Span:
        made = telemetry_pb2.Span(span_id=identity, parent_span_id=parent, name=identity, service="s")
        made.start_time.FromMilliseconds(1_700_000_000_000 + start_ms)
        made.duration_us = duration_ms * 1000
        return made

    lines = _tree([span("a", "", 0, 100), span("b", "a", 50, 50), span("c", "lost", 90, 0)])
    assert [line.split("|")[0].rstrip() for line in lines] == [
        "s  a         100.0 ms",
        "  s  b        50.0 ms",
        "s  c           0.0 ms",
    ]
    assert lines[1].split("|")[1] == " " * 15 + "█" * 15


def test_the_installed_command_answers() -> None:
    executable = Path(sys.executable).parent / "stellwerk"
    result = subprocess.run(
        [executable, "workspace", "list"], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert (result.returncode, result.stdout) == (5, "")


@pytest.mark.parametrize(
    "words",
    [
        ("secret", "delete", "db-password", "--purge"),
        ("model", "delete", "digits:1"),
        ("events", "credentials", "revoke", "dashboard"),
    ],
)
def test_where_nobody_can_be_asked_a_script_is_told_to_say_yes(words: tuple[str, ...]) -> None:
    result = call(*words)
    assert (result.exit_code, "CONFIRMATION_MISSING" in result.stderr, "--yes" in result.stderr) == (
        2,
        True,
        True,
    )


def test_who_says_no_is_told_that_nothing_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("stellwerk.cli.confirm.sys", terminal)
    result = call("model", "delete", "digits:1", typed="n\n")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, "Nothing was changed.")


def test_who_interrupts_the_start_of_a_deployment_is_told_that_it_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Deployments:
        def watch(self, endpoint: str, name: str) -> Iterator[endpoints_pb2.Deployment]:
            yield endpoints_pb2.Deployment(replica_count=1)
            raise KeyboardInterrupt

    created = endpoints_pb2.Deployment(name="workspaces/demo/endpoints/digits/deployments/blue")
    with pytest.raises(KeyboardInterrupt):
        deployment._wait(Deployments(), "digits", created)
    assert "Detached; blue goes on" in capsys.readouterr().err
