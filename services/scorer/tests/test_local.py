"""`python -m stellwerk_scorer --local`, and the settings by Azure's names."""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx
import pytest

from stellwerk_platform.settings import SettingsError
from stellwerk_scorer import config, local

SCRIPT = """
def init():
    pass

def run(raw):
    if raw == "fail":
        raise ValueError("look at me")
    return raw
"""


async def test_a_script_is_served_without_a_stack_and_shows_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCRIPT)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stellwerk_scorer", "--local", "--script", "score.py", "--port", "0"),
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("STELLWERK_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(60):
            while not any("script is ready" in line for line in lines):
                lines.append((await process.stdout.readline()).decode())
            address = next(line.split("http=")[1].split()[0] for line in lines if "listening" in line)
            async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as http:
                assert (await http.post("/score", content="hello")).json() == "hello"
                assert (await http.post("/score", content="fail")).status_code == 500
                assert (await http.get("/")).text == "Healthy"
            while not any("ValueError: look at me" in line for line in lines):
                lines.append((await process.stdout.readline()).decode())
        assert any("score.py" in line and "line 7" in line for line in lines)
        process.send_signal(2)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--script", "score.py"], "say --local"),
        (["--local"], "give --script, or --model-dir"),
        (["--local", "--script", "/no/score.py"], "there is no /no/score.py"),
    ],
)
def test_arguments_that_do_not_go_are_explained(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        local.environment(arguments)
    assert says in capsys.readouterr().err


BASE = {
    "STELLWERK_SCORER_HTTP_LISTEN": "127.0.0.1:0",
    "STELLWERK_SCORER_GRPC_LISTEN": "127.0.0.1:0",
    "STELLWERK_SCORER_PYTHON": "python",
    "STELLWERK_SECRETS_ADDRESS": "127.0.0.1:1",
}


def test_azures_names_and_its_configuration_file(tmp_path: Path) -> None:
    settings = config.Settings.from_environment({**BASE, "WORKER_COUNT": "3", "SCORING_TIMEOUT_MS": "5"})
    assert (settings.scorer_workers, settings.scorer_timeout_ms) == (3, 5)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"SCORING_TIMEOUT_MS": 7, "AML_CORS_ORIGINS": "*", "unknown": 1}))
    for variable in ({"AZUREML_CONFIG_FILE": str(file)}, {"AML_APP_ROOT": str(tmp_path)}):
        settings = config.Settings.from_environment({**BASE, **variable})
        assert (settings.scorer_timeout_ms, settings.scorer_cors_origins) == (7, "*")
    own = {"STELLWERK_SCORER_TIMEOUT_MS": "9", "SCORING_TIMEOUT_MS": "5"}
    assert config.Settings.from_environment({**BASE, **own}).scorer_timeout_ms == 9
    script = {"AML_APP_ROOT": "/app", "AZUREML_ENTRY_SCRIPT": "src/score.py"}
    assert config.Settings.from_environment({**BASE, **script}).scorer_script == "/app/src/score.py"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORKER_COUNT": "0"}, "STELLWERK_SCORER_WORKERS=0 is not between 1 and 64"),
        ({"STELLWERK_SCORER_MAX_BATCH_SIZE": "-1"}, "is not between"),
        ({"STELLWERK_SECRETS_ADDRESS": ""}, "STELLWERK_SECRETS_ADDRESS is not set"),
        ({"STELLWERK_SCORER_LOCAL": "1", "STELLWERK_SCORER_HTTP_LISTEN": "0.0.0.0:1"}, "loopback"),
        ({"AZUREML_CONFIG_FILE": "/dev/null"}, "cannot be read"),
    ],
)
def test_settings_that_do_not_go_are_named(environment: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        config.Settings.from_environment({**BASE, **environment})
