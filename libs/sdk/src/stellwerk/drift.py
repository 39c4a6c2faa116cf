"""Drift in words: `psi`, `age:ks=0.1` and the messages that they stand for."""

from collections.abc import Iterable, Mapping

from stellwerk.errors import invalid
from stellwerk_protos.inference.v1 import monitors_pb2

_METRICS = {
    "psi": monitors_pb2.DRIFT_METRIC_PSI,
    "jensen-shannon": monitors_pb2.DRIFT_METRIC_JENSEN_SHANNON,
    "ks": monitors_pb2.DRIFT_METRIC_KOLMOGOROV_SMIRNOV,
    "chi-square": monitors_pb2.DRIFT_METRIC_CHI_SQUARE,
}
_ALSO = {
    "js": "jensen-shannon",
    "kolmogorov-smirnov": "ks",
    "chi2": "chi-square",
    "chi-squared": "chi-square",
}


def metric_word(metric: int) -> str:
    """psi, jensen-shannon, ks or chi-square; "?" for one that is newer than this package."""
    return next((word for word, known in _METRICS.items() if known == metric), "?")


def thresholds(given: Mapping[str, float]) -> list[monitors_pb2.DriftThreshold]:
    """From `{"psi": 0.2, "age:ks": 0.1}`: a metric, or a column's; raises `StellwerkError`.

    What stands before the last colon is the column.
    """
    return [_threshold(key, value) for key, value in given.items()]


def _threshold(key: str, value: float) -> monitors_pb2.DriftThreshold:
    column, colon, word = key.rpartition(":")
    word = word.strip().lower().replace("_", "-")
    metric = _METRICS.get(_ALSO.get(word, word))
    if metric is None or (colon and not column):
        raise invalid(
            "INVALID_THRESHOLD",
            f"{key!r} names no metric.",
            f"Use {', '.join(_METRICS)}, with COLUMN: before it for one column, as in age:ks.",
        )
    return monitors_pb2.DriftThreshold(metric=metric, column=column, threshold=value)


def described(given: Iterable[monitors_pb2.DriftThreshold]) -> str:
    """`psi over 0.2, age: ks over 0.1`"""
    return ", ".join(
        f"{item.column + ': ' if item.column else ''}{metric_word(item.metric)} over {item.threshold:g}"
        for item in given
    )
