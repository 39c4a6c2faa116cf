"""No value of a secret leaves the node in a log, however the text is cut into pieces."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from services.agent.tests.test_logs import Followed
from stellwerk_agent.logs import LogFolder
from stellwerk_agent.redaction import SHORTEST_BYTES, Redactor

_SECRET = b"s3cr3t-s3cr3t-value"
# A small alphabet makes values overlap with each other and with themselves.
_BYTES = st.text("abé\n", max_size=60).map(str.encode)


def _pieces(redactor: Redactor, data: bytes, cuts: list[int]) -> bytes:
    """What is shown of `data` when it becomes known piece by piece."""
    shown = b""
    for end in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        if end > len(shown):
            shown += redactor.release(data[len(shown) : end])
    return shown + redactor.release(data[len(shown) :], is_end=True)


@given(
    text=_BYTES,
    secrets=st.lists(
        _BYTES.filter(lambda value: len(value.strip()) >= SHORTEST_BYTES), min_size=1, max_size=3
    ),
    cuts=st.lists(st.integers(0, 80)),
)
def test_cutting_a_text_shows_no_more_of_it(text: bytes, secrets: list[bytes], cuts: list[int]) -> None:
    redactor = Redactor()
    redactor.add(secrets)
    data = b"".join([text, secrets[0], text, *secrets])
    shown = _pieces(redactor, data, cuts)
    assert shown == redactor.release(data, is_end=True)
    assert len(shown) == len(data), "positions stay"
    assert all(secret.strip() not in shown for secret in secrets)


def test_a_text_without_secrets_stays_as_it_is() -> None:
    redactor = Redactor()
    assert redactor.release(b"\xff anything") == b"\xff anything"
    redactor.add([_SECRET, b"abc"])
    assert redactor.release(b"abc and s3cr3t-", is_end=False) == b"abc and "
    assert redactor.release(b"abc, s3", is_end=True) == b"abc, s3"


def test_values_are_hidden_in_json_and_line_by_line() -> None:
    redactor = Redactor()
    redactor.add([b'a "quoted" value', b"-----BEGIN-----\nMIIEvQIBADAN\n-----END-----\n"])
    shown = redactor.text('{"x": "a \\"quoted\\" value"}\n  MIIEvQIBADAN\n')
    assert "quoted" not in shown
    assert "MIIE" not in shown


def test_what_a_killed_process_left_of_a_value_is_hidden() -> None:
    redactor = Redactor()
    redactor.add([_SECRET])
    assert redactor.release(b"key=" + _SECRET[:-1], is_end=True) == b"key=" + b"*" * (len(_SECRET) - 1)


def test_a_log_hides_a_value_that_is_written_in_two_parts(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    redactor = Redactor()
    redactor.add([_SECRET])
    followed.folder = LogFolder(followed.root, followed.work, followed.root / "state", redactor)
    path = followed.root / "user_logs/std_log.txt"
    path.write_bytes(b"token: " + _SECRET[:7])
    _ship_once(followed)
    assert followed.stored["user_logs/std_log.txt"] == b"token: "
    with path.open("ab") as file:
        file.write(_SECRET[7:] + b" end " + _SECRET[:3])
    _ship_once(followed)
    followed.folder.finish()
    followed.ship()
    expected = b"token: " + b"*" * len(_SECRET) + b" end " + _SECRET[:3]
    assert followed.stored["user_logs/std_log.txt"] == expected
    # A file that is renamed is known again although its first bytes were hidden.
    path.rename(path.with_name("old.txt"))
    followed.ship()
    assert followed.stored == {"user_logs/std_log.txt": expected}


def _ship_once(followed: Followed) -> None:
    for file in followed.folder.due(now=True):
        if batch := file.peek():
            file.advance(batch)
            followed.stored[file.log] = followed.stored.get(file.log, b"") + batch.payload.data
            file.acknowledge(batch.end)
