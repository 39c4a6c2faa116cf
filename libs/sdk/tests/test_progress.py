"""What is said while much is moved."""

import sys

import pytest

from stellwerk import progress


def test_without_a_terminal_a_line_is_said_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not sys.stderr.isatty()
    with progress.bar("Uploading small", 4 << 20) as advance:
        advance(4 << 20)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.bar("Uploading model.bin", 4 << 20) as advance:
        advance(1 << 20)
        advance(2 << 20)
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        ["Uploading model.bin: 1 of 4 MiB (25%)", "Uploading model.bin: 3 of 4 MiB (75%)"],
    )
