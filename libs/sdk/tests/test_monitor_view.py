"""Drift as people read it at the terminal."""

import json

import click
import pytest

from stellwerk import StellwerkError, drift
from stellwerk.cli import monitor_view
from stellwerk.cli.base import Session
from stellwerk.settings import Flags
from stellwerk_protos.inference.v1 import monitors_pb2 as pb


def column(name: str, value: float, **more: object) -> pb.ColumnDrift:
    return pb.ColumnDrift(
        column=name,
        metric=pb.DRIFT_METRIC_PSI,
        value=value,
        threshold=0.2,
        drifted=value > 0.2,
        **more,  # type: ignore[arg-type]
    )


def check() -> pb.MonitorCheck:
    shares = {"bins": ["red", "other"], "baseline_shares": [0.5, 0.5], "shares": [0.9, 0.1]}
    drifted = column("colour", 0.4, categorical=True, missing_share=0.25, **shares)
    calm = [column(f"pixel{number}", 0.1) for number in range(30)]
    return pb.MonitorCheck(
        name="workspaces/demo/monitors/m/checks/3",
        state=pb.MONITOR_CHECK_STATE_COMPLETED,
        found=pb.MONITOR_STATE_DRIFTED,
        row_count=1200,
        baseline_row_count=5000,
        unreadable_count=2,
        columns=[drifted, *calm],
    )


def session(*, as_json: bool = False) -> Session:
    return Session(Flags(), as_json, click.Context(click.Command("monitor")))


def test_what_has_drifted_comes_first_and_the_rest_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    monitor_view.show_check(session(), check())
    out, err = capsys.readouterr()
    assert "1,200 collected, 5,000 of the baseline" in out
    assert "2 events hold no rows" in out
    rows = out.partition("COLUMN")[2].splitlines()[1:]
    assert rows[0].split() == [
        *("colour", "psi", "0.4000", "0.2", "██████████|██████████", "0.0%", "->", "25.0%", "drifted")
    ]
    assert rows[1].split()[:5] == ["pixel0", "psi", "0.1000", "0.2", "█████"]
    assert (len(rows), "11 more have not drifted" in err) == (20, True)
    monitor_view.show_check(session(), check(), every=True)
    assert "pixel29" in capsys.readouterr().out


def test_one_column_is_shown_bin_by_bin(capsys: pytest.CaptureFixture[str]) -> None:
    monitor_view.show_column(session(), check(), "colour")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["red", "50.0%", "█" * 15, "90.0%", "█" * 27]
    monitor_view.show_column(session(as_json=True), check(), "colour")
    assert json.loads(capsys.readouterr().out)[0]["shares"] == [0.9, 0.1]
    with pytest.raises(StellwerkError, match=r"COLUMN_NOT_COMPARED.*colour, pixel0"):
        monitor_view.show_column(session(), check(), "hue")


def test_thresholds_are_written_as_they_are_read() -> None:
    made = drift.thresholds({"psi": 0.2, "a:b:ks": 0.1, "sex:chi2": 0.3})
    assert [(item.column, drift.metric_word(item.metric)) for item in made] == [
        ("", "psi"),
        ("a:b", "ks"),
        ("sex", "chi-square"),
    ]
    assert drift.described(made) == "psi over 0.2, a:b: ks over 0.1, sex: chi-square over 0.3"
    for wrong in ("", "age", "age:", ":ks"):
        with pytest.raises(StellwerkError, match="INVALID_THRESHOLD"):
            drift.thresholds({wrong: 0.1})
