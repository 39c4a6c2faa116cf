"""The settings of batch deployments and jobs: bounds, defaults, and one over the other. Pure rules."""

import re

from stellwerk_platform import names
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.compute.v1.workloads_pb2 import (
    BATCH_OUTPUT_ACTION_APPEND_ROW,
    BATCH_OUTPUT_ACTION_UNSPECIFIED,
    BatchOutputAction,
    BatchSettings,
)
from stellwerk_protos.inference.v1 import endpoints_pb2

_BOUNDS = {
    "mini_batch_size": (0, 1_000),
    "max_concurrency_per_replica": (0, 64),
    "max_retries": (0, 10),
    "timeout_seconds": (0, 86_400),
    "error_threshold": (-1, 2**31 - 1),
}
_MINI_BATCH_SIZE, _CONCURRENCY, _RETRIES, _TIMEOUT_SECONDS = 10, 1, 3, 600
# However many files fail.
NO_THRESHOLD = -1
_OUTPUT_FILE = "predictions.csv"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,199}\.(csv|jsonl)")
# A mini-batch that is cut short goes to another replica, so nobody has to wait for its end.
GRACE_SECONDS = 35


def check(settings: BatchSettings) -> None:
    """Raises `InvalidArgument`."""
    for field, (least, most) in _BOUNDS.items():
        value = getattr(settings, field)
        if not least <= value <= most:
            raise InvalidArgument(
                "INVALID_BATCH_SETTINGS", f"{field} cannot be {value:,}.", f"Use {least} to {most:,}."
            )
    if settings.output_action not in BatchOutputAction.values():
        raise InvalidArgument(
            "INVALID_BATCH_SETTINGS",
            f"There is no output action {settings.output_action}.",
            "Use APPEND_ROW, BY_FILE or SUMMARY_ONLY.",
        )
    if settings.output_file_name and not _FILE_NAME.fullmatch(settings.output_file_name):
        raise InvalidArgument(
            "INVALID_BATCH_SETTINGS",
            f"{settings.output_file_name[:80]!r} cannot be the name of the file with the results.",
            "Use letters, digits, '_', '-', '.' and spaces, with .csv or .jsonl at the end.",
        )


def filled(settings: BatchSettings) -> BatchSettings:
    """With the defaults; raises `InvalidArgument`."""
    check(settings)
    return BatchSettings(
        mini_batch_size=settings.mini_batch_size or _MINI_BATCH_SIZE,
        max_concurrency_per_replica=settings.max_concurrency_per_replica or _CONCURRENCY,
        max_retries=settings.max_retries if settings.HasField("max_retries") else _RETRIES,
        timeout_seconds=settings.timeout_seconds or _TIMEOUT_SECONDS,
        error_threshold=(settings.error_threshold if settings.HasField("error_threshold") else NO_THRESHOLD),
        output_action=settings.output_action or BATCH_OUTPUT_ACTION_APPEND_ROW,
        output_file_name=settings.output_file_name or _OUTPUT_FILE,
    )


def of_job(deployment: BatchSettings, wanted: BatchSettings) -> BatchSettings:
    """Those of a deployment with what a job says over them; raises `InvalidArgument`."""
    concurrency = deployment.max_concurrency_per_replica
    if wanted.max_concurrency_per_replica not in (0, concurrency):
        raise InvalidArgument(
            "INVALID_BATCH_SETTINGS",
            f"The replicas work on {concurrency} mini-batches at a time; a job cannot change that.",
            "Update the deployment, or leave max_concurrency_per_replica out.",
        )
    check(wanted)
    merged = BatchSettings()
    merged.CopyFrom(deployment)
    merged.MergeFrom(wanted)
    return filled(merged)


def check_kind(
    request: endpoints_pb2.CreateDeploymentRequest, kind: endpoints_pb2.EndpointKind.ValueType
) -> None:
    """Raises `InvalidArgument` for settings of the other kind of endpoint; on a batch one it has some."""
    if kind != endpoints_pb2.ENDPOINT_KIND_BATCH:
        if request.HasField("batch_settings"):
            raise InvalidArgument(
                "ENDPOINT_NOT_BATCH",
                f"{names.id_of(request.parent)} answers requests: its deployments have no batch settings.",
                "Leave them out, or create a batch endpoint (`stellwerk endpoint create NAME --batch`).",
            )
        return
    if not request.scoring_script:
        raise InvalidArgument(
            "SCRIPT_MISSING",
            "A model is not served without a scoring script on a batch endpoint.",
            "Give a script with run(mini_batch), which gets the paths of files.",
        )
    request.batch_settings.SetInParent()
    check(request.batch_settings)
    for field in ("request_settings", "data_collection", "sample"):
        if request.HasField(field) if field != "sample" else request.sample:  # type: ignore[arg-type]
            raise InvalidArgument(
                "ENDPOINT_IS_BATCH",
                f"{names.id_of(request.parent)} is a batch endpoint: its deployments answer no requests, "
                f"so {field} says nothing.",
                "Leave it out.",
            )


def is_append(settings: BatchSettings) -> bool:
    """Whether the rows of all mini-batches become one file."""
    return settings.output_action in (BATCH_OUTPUT_ACTION_APPEND_ROW, BATCH_OUTPUT_ACTION_UNSPECIFIED)
