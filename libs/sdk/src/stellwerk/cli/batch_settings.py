"""The options that say how a dataset is scored: of `deployment create|update` and of `batch submit`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stellwerk.batch_options import BatchOptions

_ACTIONS = click.Choice(["append-row", "by-file", "summary-only"])
# Flag, what it is called in BatchOptions, type, metavar, help, default.
_Option = tuple[str, str, "click.ParamType[Any]", str | None, str, str]
_CONCURRENCY: _Option = (
    "--concurrency",
    "max_concurrency_per_replica",
    click.IntRange(1, 64),
    "N",
    "Mini-batches that a replica works on at a time.",
    "1",
)
_OPTIONS: tuple[_Option, ...] = (
    ("--mini-batch-size", "mini_batch_size", click.IntRange(1, 1_000), "N", "Files in one call.", "10"),
    ("--max-retries", "max_retries", click.IntRange(0, 10), "N", "Of a mini-batch.", "3"),
    (
        *("--mini-batch-timeout", "timeout_seconds", click.IntRange(1, 86_400), "SECONDS"),
        *("For one call.", "600"),
    ),
    (
        *("--error-threshold", "error_threshold", click.IntRange(-1), "N"),
        *("Failed files that a job may have; -1: any number.", "-1"),
    ),
    (
        *("--output-action", "output_action", _ACTIONS, None),
        *("One file with all rows, a file for each of the input, or only counts.", "append-row"),
    ),
    (
        *("--output-file", "output_file_name", click.STRING, "NAME"),
        *("The one file, .csv or .jsonl.", "predictions.csv"),
    ),
)


def of_job(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that a job may have of its own."""
    return _add(command, _OPTIONS, with_defaults=False)


def of_deployment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those, and what only the deployment decides."""
    return _add(command, (*_OPTIONS, _CONCURRENCY), with_defaults=True)


def _add(
    command: Callable[..., Any], options: tuple[_Option, ...], *, with_defaults: bool
) -> Callable[..., Any]:
    for flag, name, kind, metavar, text, default in reversed(options):
        shown = f"{text}  [default: {default}]" if with_defaults else text
        command = click.option(flag, name, type=kind, metavar=metavar, help=shown)(command)
    return command


def take(given: dict[str, Any]) -> "BatchOptions":
    """Takes the options out of `given`; those that were not given are left out."""
    options: Any = {}
    for _, name, *_ in (*_OPTIONS, _CONCURRENCY):
        value = given.pop(name, None)
        if value is not None:
            options[name] = value
    return options  # type: ignore[no-any-return]  # its keys come from a table


def only_counts(settings: Any) -> bool:
    """Whether nothing is registered."""
    from stellwerk.batch_options import OUTPUT_ACTIONS

    return bool(settings.output_action == OUTPUT_ACTIONS["summary-only"])


def describe(settings: Any) -> str:
    """Settings in words."""
    retries = settings.max_retries if settings.HasField("max_retries") else 3
    threshold = settings.error_threshold if settings.HasField("error_threshold") else -1
    rows = f"all rows in {settings.output_file_name or 'predictions.csv'}"
    parts = [
        f"mini-batch size {settings.mini_batch_size or 10}",
        f"concurrency {settings.max_concurrency_per_replica or 1}",
        f"max. retries {retries}",
        f"time-out {settings.timeout_seconds or 600} s",
        f"error threshold {threshold}" if threshold >= 0 else "",
        {2: "a result for each file", 3: "only counts"}.get(settings.output_action, rows),
    ]
    return ", ".join(part for part in parts if part)
