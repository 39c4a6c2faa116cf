"""Log files as scripts and their rotating handlers leave them: each byte once, under a name that stays."""

import os
from pathlib import Path

import pytest

from stellwerk.shipping import LOG_CHUNK_BYTES
from stellwerk_agent.logs import LogFolder


class Followed:
    """A run's folders, and what a store would hold of its logs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        (root / "user_logs").mkdir()
        (self.work / "logs").mkdir(parents=True)
        self.stored: dict[str, bytes] = {}
        self.restart()

    def restart(self) -> None:
        """As after a crash of the agent."""
        self.folder = LogFolder(self.root, self.work, self.root / "state")

    def ship(self, *, acknowledge: bool = True) -> None:
        """Reads everything that there is."""
        while due := self.folder.due(now=True):
            for file in due:
                while batch := file.peek():
                    file.advance(batch)
                    chunk = batch.payload
                    assert chunk.time > 0
                    known = self.stored.setdefault(chunk.log, b"")
                    assert chunk.offset <= len(known), "no gap"
                    self.stored[chunk.log] = known[: chunk.offset] + chunk.data
                    if acknowledge:
                        file.acknowledge(batch.end)
                file.save()
            if not acknowledge:
                return


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path)


def test_files_are_found_as_they_appear_and_grow(followed: Followed) -> None:
    bar = b"\r 10%\r 20%\x1b[1m done\x1b[0m\n\xff\xfe" + b"x" * (2 * LOG_CHUNK_BYTES)
    (followed.root / "user_logs/std_log.txt").write_bytes(bar)
    followed.ship()
    deep = followed.work / "logs/a/b/größe.log"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"one\n")
    (followed.work / "user_logs").mkdir()
    (followed.work / "user_logs/std_log_1.txt").write_bytes(b"rank 1\n")
    followed.ship()
    with deep.open("ab") as file:
        file.write(b"two\n")
    followed.ship()
    assert followed.stored == {
        "user_logs/std_log.txt": bar,
        "user_logs/std_log_1.txt": b"rank 1\n",
        "logs/a/b/größe.log": b"one\ntwo\n",
    }
    assert {path.name for path in followed.work.rglob("*") if path.is_file()} == {
        "größe.log",
        "std_log_1.txt",
    }, "nothing foreign lies in the script's folders"


def test_a_rotated_file_stays_its_log_and_the_new_one_gets_a_suffix(followed: Followed) -> None:
    log = followed.work / "logs/train.log"
    log.write_bytes(b"first\n")
    followed.ship()
    with log.open("ab") as file:
        file.write(b"late\n")
    log.rename(log.with_name("train.log.1"))
    log.write_bytes(b"second\n")
    followed.ship()
    followed.restart()
    with log.open("ab") as file:
        file.write(b"more\n")
    followed.ship()
    assert followed.stored == {"logs/train.log": b"first\nlate\n", "logs/train.log.2": b"second\nmore\n"}


def test_a_truncated_file_starts_a_log_of_its_own(followed: Followed) -> None:
    log = followed.work / "logs/train.log"
    log.write_bytes(b"long text\n")
    followed.ship()
    os.truncate(log, 0)
    with log.open("ab") as file:
        file.write(b"new\n")
    followed.ship()
    assert followed.stored == {"logs/train.log": b"long text\n", "logs/train.log.2": b"new\n"}


def test_an_inode_that_is_given_away_anew_is_another_log(followed: Followed) -> None:
    (followed.work / "logs/a").write_bytes(b"a\n")
    followed.ship()
    # Many file systems give the number of a removed file to the next one.
    (followed.work / "logs/a").unlink()
    (followed.work / "logs/b").write_bytes(b"b, longer than a\n")
    followed.ship()
    assert followed.stored == {"logs/a": b"a\n", "logs/b": b"b, longer than a\n"}


def test_after_a_crash_what_was_not_acknowledged_comes_again(followed: Followed) -> None:
    log = followed.work / "logs/train.log"
    log.write_bytes(b"one\n")
    followed.ship()
    with log.open("ab") as file:
        file.write(b"two\n")
    followed.ship(acknowledge=False)
    followed.restart()
    followed.ship()
    assert followed.stored == {"logs/train.log": b"one\ntwo\n"}


def test_links_and_names_that_cannot_travel_do_no_harm(followed: Followed) -> None:
    (followed.work / "logs/secret").symlink_to("/etc/passwd")
    os.mkfifo(followed.work / "logs/pipe")
    for name in (b"caf\xe9", b"caf\xe8", b"a\\b", b"new\nline"):
        (followed.work / "logs" / os.fsdecode(name)).write_bytes(name)
    followed.ship()
    assert sorted(followed.stored.values()) == sorted([b"caf\xe9", b"caf\xe8", b"a\\b", b"new\nline"])
    assert all("\n" not in name and "\\" not in name for name in followed.stored)


def test_a_script_gone_wild_is_told_that_it_has_too_many_logs(followed: Followed) -> None:
    for number in range(1_000):
        (followed.work / f"logs/{number:04d}").write_text("x")
    followed.ship()
    assert len(followed.stored) == 901
    assert b"'logs/0900'" in followed.stored["system_logs/notices.log"]
