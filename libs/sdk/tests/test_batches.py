"""Batch jobs through the SDK and the command line: what is asked for, what is shown, how it ends."""

import io
import json

import pytest
from click.testing import CliRunner, Result

from stellwerk import Client, StellwerkError
from stellwerk.cli import batch_follow
from stellwerk.cli.main import main
from stellwerk_protos.compute.v1 import workloads_pb2

from .conftest import KEY, Platform


def call(platform: Platform, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, *platform.options(), "-w", "demo"])


def test_only_what_is_given_goes_before_the_settings_of_the_deployment(platform: Platform) -> None:
    options = ("--max-retries", "0", "--output-action", "by-file", "--error-threshold", "-1")
    made = call(
        *(platform, "batch", "submit", "e", "pages:3", "--name", "j", "--no-wait", "--tag", "a=b", *options),
        *("--path", "2026/", "--output-dataset", "found"),
    )
    assert made.exit_code == 0, made.output
    assert call(platform, "batch", "submit", "e", "pages", "--no-wait").exit_code == 0
    first, second = platform.batches.created
    assert first.input == "workspaces/demo/datasets/pages/versions/3"
    assert (first.input_path, first.output_dataset) == ("2026/", "workspaces/demo/datasets/found")
    assert first.settings == workloads_pb2.BatchSettings(
        max_retries=0, error_threshold=-1, output_action=workloads_pb2.BATCH_OUTPUT_ACTION_BY_FILE
    )
    assert not second.HasField("settings")
    assert second.input.endswith("/pages/versions/latest")
    assert not second.output_dataset


@pytest.mark.parametrize("name", ["good", "torn"])
def test_a_job_is_shown_until_it_is_over(platform: Platform, name: str) -> None:
    shown = call(platform, "batch", "submit", "e", "pages", "--name", name)
    assert shown.exit_code == 0, shown.output
    assert shown.stderr.count("Running") == 1
    assert "2/2 mini-batches, 20/20 files" in shown.stdout
    assert "stellwerk batch download e" in shown.stdout


def test_a_job_that_failed_fails_the_command_with_its_reason(platform: Platform) -> None:
    shown = call(platform, "batch", "watch", "e", "bad")
    assert shown.exit_code == 1
    assert "NOTHING_SCORED: All failed." in shown.stdout
    assert "Look." in shown.stdout
    as_json = call(platform, "batch", "watch", "e", "bad", "-o", "json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["state"]) == (1, "BATCH_JOB_STATE_FAILED")


@pytest.mark.parametrize(("failed", "only"), [(0, ""), (1, " --state failed")])
def test_the_hint_shows_mini_batches_that_returned_too_little(
    platform: Platform, capsys: pytest.CaptureFixture[str], failed: int, only: str
) -> None:
    with Client(grpc_address=platform.address, api_key=KEY) as client:
        job = client.workspace("demo").batches.get("e", "good")
    job.progress.failed_file_count, job.progress.failed_mini_batch_count = 5, failed
    batch_follow.summary(job)
    assert f"stellwerk batch mini-batches e good{only}\n" in capsys.readouterr().out


def test_a_bar_counts_the_mini_batches(platform: Platform) -> None:
    stream = io.StringIO()
    with Client(grpc_address=platform.address, api_key=KEY) as client:
        job = client.workspace("demo").batches.get("e", "good")
        with batch_follow.Bar(stream) as bar:
            for now in job.watch():
                bar.show(now)
    assert "Completed" in stream.getvalue()


def test_a_job_without_results_says_what_to_do(platform: Platform) -> None:
    refused = call(platform, "batch", "download", "e", "good")
    assert refused.exit_code == 1
    assert "error[NO_RESULTS]: Job good is Running" in refused.stderr
    assert "stellwerk batch watch e good" in refused.stderr


def test_words_that_mean_nothing_are_refused(platform: Platform) -> None:
    with Client(grpc_address=platform.address, api_key=KEY) as client:
        batches = client.workspace("demo").batches
        with pytest.raises(StellwerkError, match="INVALID_OUTPUT_ACTION"):
            batches.submit("e", "pages", output_action="everything")
        with pytest.raises(StellwerkError, match="INVALID_BATCH_OPTION"):
            batches.submit("e", "pages", mini_batches=3)  # type: ignore[call-arg]
        with pytest.raises(StellwerkError, match="INVALID_STATE"):
            batches.get("e", "good").mini_batches(state="lost")
