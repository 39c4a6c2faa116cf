"""`stellwerk deployment try --local`: the scoring server in the foreground, without a stack."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

STELLWERK = Path(sys.executable).with_name("stellwerk")
SCRIPT = """
    import os
    from pathlib import Path

    def init():
        global word
        word = Path(os.environ["AZUREML_MODEL_DIR"], "model.txt").read_text() + os.environ["MARK"]

    def run(data):
        print("asked for", data)
        if "bad" in data:
            raise ValueError("this is bad")
        return word
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One environment for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "score.py").write_text(dedent(SCRIPT))
    (tmp_path / "model.txt").write_text("hello")
    return tmp_path


@contextmanager
def trying(code: Path, cache: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("STELLWERK_")}
    model = str(code / "model.txt")
    process = subprocess.Popen(
        [
            *(str(STELLWERK), "deployment", "try", "--local", str(code), "--port", "0"),
            *("--model", model, "--variable", "MARK=!", *arguments),
        ],
        env={**own, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ask(code: Path, cache: Path, request: str) -> tuple[int, str, str]:
    (code / "request.json").write_text(request)
    with trying(code, cache, "--request", str(code / "request.json")) as process:
        out, err = process.communicate()
        return process.returncode, out, err


def test_a_request_is_scored_with_model_and_variables(code: Path, cache: Path) -> None:
    status, out, err = ask(code, cache, "[1]")
    assert (status, out) == (0, '"hello!"\n')
    assert "asked for [1]" in err


def test_the_traceback_of_the_script_is_shown(code: Path, cache: Path) -> None:
    status, out, err = ask(code, cache, '"bad"')
    assert status == 1
    assert "SCRIPT_ERROR" in out
    assert "ValueError: this is bad" in err
    assert "score.py" in err


def test_the_files_of_a_folder_are_scored_as_a_mini_batch(code: Path, cache: Path) -> None:
    script = """
    from pathlib import Path

    def init():
        pass

    def run(mini_batch):
        pages = [Path(path) for path in mini_batch]
        return [{"name": page.name, "size": 1 / len(page.read_text())} for page in pages]
    """
    (code / "score.py").write_text(dedent(script))
    (code / "pages" / "old").mkdir(parents=True)
    (code / "pages" / "b").write_text("12")
    (code / "pages" / "old" / "a").write_text("1")
    (code / "empty").touch()
    with trying(code, cache, "--mini-batch", str(code / "pages")) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (0, "name,size\nb,0.5\na,1.0\n"), err
    assert "2 of 2 files were scored." in err
    with trying(code, cache, "--mini-batch", str(code / "empty")) as process:
        out, err = process.communicate()
    assert process.returncode == 1
    assert "ZeroDivisionError" in out
    assert "score.py" in err


def test_a_script_that_cannot_be_loaded_ends_it(code: Path, cache: Path) -> None:
    (code / "score.py").write_text("def run(data): return 1")
    status, out, err = ask(code, cache, "[1]")
    assert (status, out) == (1, "")
    assert "INIT_MISSING" in err


def test_ctrl_c_ends_it(code: Path, cache: Path) -> None:
    with trying(code, cache) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "is ready" in line:
                break
        # The terminal sends it to all.
        os.killpg(process.pid, signal.SIGINT)
        process.communicate()
        assert process.returncode == 0
