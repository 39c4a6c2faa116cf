"""Which runs the rule of an experiment lets go."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from stellwerk_platform.errors import FailedPrecondition, InvalidArgument
from stellwerk_protos.runs.v1.retention_pb2 import RetentionRule

_DAYS = 36_500
_LAST = 1_000_000


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    name: str
    create_time: datetime
    end_time: datetime
    archived: bool


def check_rule(rule: RetentionRule) -> None:
    """Raises `InvalidArgument`."""
    if not 0 <= rule.keep_days <= _DAYS or not 0 <= rule.keep_last <= _LAST:
        raise InvalidArgument(
            "INVALID_RETENTION_RULE",
            f"keep_days is {rule.keep_days} and keep_last is {rule.keep_last}.",
            f"Use 0 to {_DAYS:,} days and 0 to {_LAST:,} runs; 0 switches a condition off.",
        )


def is_empty(rule: RetentionRule) -> bool:
    """Whether it keeps everything."""
    return not (rule.keep_days or rule.keep_last or rule.archived_only)


def let_go(rule: RetentionRule, runs: Sequence[Ended], moment: datetime) -> list[str]:
    """Runs of the experiment that every condition lets go, oldest first."""
    if is_empty(rule):
        return []
    newest_first = sorted(runs, key=lambda run: (run.create_time, run.name), reverse=True)
    limit = moment - timedelta(days=rule.keep_days)
    free = [
        run
        for run in newest_first[rule.keep_last :]
        if (not rule.keep_days or run.end_time < limit) and (not rule.archived_only or run.archived)
    ]
    return [run.name for run in reversed(free)]


def not_over(run: str) -> FailedPrecondition:
    """The error for a run that has not ended."""
    return FailedPrecondition(
        "RUN_NOT_OVER", f"{run} has not ended.", "Cancel it and wait for its end, then remove it."
    )


def has_children(run: str, child: str) -> FailedPrecondition:
    """The error for a run whose children would lose their parent."""
    return FailedPrecondition(
        "RUN_HAS_CHILDREN", f"{run} has the child {child}.", "Remove its children with it, or before it."
    )


def held(run: str, holder: str) -> FailedPrecondition:
    """The error for a run that a model version names."""
    return FailedPrecondition(
        "RUN_IN_USE",
        f"{run} is where {holder} came from.",
        "Keep the run; archive it to hide it from lists.",
        {"holder": holder},
    )
