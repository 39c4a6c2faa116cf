"""Which files of a folder travel."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stellwerk import git
from stellwerk.errors import StellwerkError
from stellwerk.pack import pack


def paths(root: Path, *, ignore: bool = True) -> list[str]:
    return [file.path for file in pack(root, ignore=ignore)]


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_only_the_root_amlignore_counts_else_the_root_gitignore(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "a.csv", "a.log", "sub/b.csv", "sub/.gitignore", "__pycache__/x.pyc", ".git/HEAD")
    (tmp_path / "sub" / ".gitignore").write_text("b.csv")
    (tmp_path / ".gitignore").write_text("*.log\n")
    assert paths(tmp_path) == [".gitignore", "a.csv", "a.py", "sub/.gitignore", "sub/b.csv"]
    (tmp_path / ".amlignore").write_text("*.csv\n!/a.csv\n")
    wanted = [".amlignore", ".gitignore", "a.csv", "a.log", "a.py", "sub/.gitignore"]
    assert paths(tmp_path) == wanted
    assert "__pycache__/x.pyc" in paths(tmp_path, ignore=False)


_NAMES = st.sampled_from(["a", "b", "ab", "a.txt", "été", "x y", "[z]", "#h", "!n"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_PATTERNS = st.one_of(
    _PATHS,
    st.sampled_from(
        ["*", "*.txt", "a*", "?", "/a", "a/", "/a/", "**/b", "a/**", "a/**/b", "!a", "!*.txt", "!/a/"]
    ),
    st.sampled_from(
        ["# comment", "", "\\#h", "\\!n", "[ab]", "[!a]", "*/b", "/*", "!/*/", "a ", "x y", "b/*"]
    ),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(files=st.sets(_PATHS, min_size=1, max_size=8), patterns=st.lists(_PATTERNS, max_size=4))
def test_patterns_mean_what_git_says(
    files: set[str], patterns: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for name in sorted(files):
        # A file may not be where another one has a folder.
        if not any(other.startswith(f"{name}/") for other in files):
            write(root, name)
    (root / ".gitignore").write_text("\n".join(patterns))
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    listed = subprocess.run(
        [
            "git",
            "-c",
            "core.excludesFile=",
            "ls-files",
            "-z",
            "--others",
            "--exclude-per-directory=.gitignore",
        ],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert paths(root) == sorted(filter(None, listed.split("\0")))


def test_links_inside_stay_links_and_links_outside_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "data/a.txt", "left/b.txt", "left/sub/c.txt")
    (root / "link.txt").symlink_to("data/a.txt")
    (root / "data" / "up").symlink_to("../data")
    (root / "folder").symlink_to("data")
    (root / "left-file").symlink_to("left/b.txt")
    (root / "left-folder").symlink_to("left")
    (root / ".gitignore").write_text("/left/\n")
    assert {file.path: file.link_target for file in pack(root, ignore=True) if file.link_target} == {
        "data/up": "data",
        "folder": "data",
        "link.txt": "data/a.txt",
    }
    # What a link points to and is left out travels in its place.
    assert {"left-file", "left-folder/b.txt", "left-folder/sub/c.txt"} <= set(paths(root))
    (root / "data" / "up").unlink()
    (root / ".gitignore").unlink()
    assert "folder/a.txt" in paths(root, ignore=False), "in data and models links are what they point to"
    write(tmp_path, "secret")
    (root / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(StellwerkError) as caught:
        pack(root, ignore=True)
    assert (caught.value.reason, "out" in caught.value.message) == ("LINK_OUTSIDE", True)
    (root / ".amlignore").write_text("out\n")
    assert "out" not in paths(root)


@pytest.mark.parametrize(
    ("target", "reason"), [("..", "LINK_OUTSIDE"), (".", "LINK_LOOP"), ("no", "LINK_BROKEN")]
)
def test_links_that_lead_nowhere_good(tmp_path: Path, target: str, reason: str) -> None:
    root = tmp_path / "root"
    write(root, "a")
    (root / "link").symlink_to(target)
    with pytest.raises(StellwerkError, match=reason):
        pack(root)


def test_pipes_and_sockets_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StellwerkError, match="SPECIAL_FILE: pipe "):
        pack(tmp_path)
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(StellwerkError, match="SPECIAL_FILE"):
            pack(Path())


def test_what_else_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(StellwerkError, match="PATH_NOT_FOUND"):
        pack(tmp_path / "none")
    write(tmp_path, "file.py")
    with pytest.raises(StellwerkError, match="CODE_NOT_A_FOLDER"):
        pack(tmp_path / "file.py", ignore=True)
    with (
        open(os.fsencode(tmp_path) + b"/\xff", "w"),
        pytest.raises(StellwerkError, match="FILE_NAME_INVALID"),
    ):
        pack(tmp_path)


def test_digest_size_and_mode(tmp_path: Path) -> None:
    write(tmp_path, "run.sh", "empty")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "empty").write_bytes(b"")
    seen: list[int] = []
    empty, script = pack(tmp_path, hashed=seen.append)
    assert empty.sha256 == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (script.executable, script.size_bytes, empty.executable) == (True, 6, False)
    assert sum(seen) == 6
    assert [file.path for file in pack(tmp_path / "run.sh")] == ["run.sh"]


def test_git_facts_without_the_password(tmp_path: Path) -> None:
    assert git.facts(tmp_path) == {}
    write(tmp_path, "a")
    for arguments in (
        ["init", "-q", "-b", "trunk"],
        ["remote", "add", "origin", "https://me:token@example.org/x.git"],
        ["add", "a"],
        ["-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "m"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    facts = git.facts(tmp_path)
    assert len(facts.pop("commit")) == 40
    assert facts == {"repository_uri": "https://example.org/x.git", "branch": "trunk", "dirty": False}
    write(tmp_path, "b")
    assert git.facts(tmp_path)["dirty"] is True
    (tmp_path / "a").write_text("changed\n")
    assert git.write_patch(tmp_path, tmp_path / "uncommitted.patch")
    patch = (tmp_path / "uncommitted.patch").read_text()
    assert "+changed" in patch
    subprocess.run(["git", "checkout", "-q", "a"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", "uncommitted.patch"], cwd=tmp_path, check=True)
    assert (tmp_path / "a").read_text() == "changed\n"
