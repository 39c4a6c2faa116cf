"""Compares a column of two samples: bins, shares, and the values of the metrics."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stellwerk_inference.monitors.compare import metrics, values

PSI, JENSEN_SHANNON = "DRIFT_METRIC_PSI", "DRIFT_METRIC_JENSEN_SHANNON"
KOLMOGOROV_SMIRNOV, CHI_SQUARE = "DRIFT_METRIC_KOLMOGOROV_SMIRNOV", "DRIFT_METRIC_CHI_SQUARE"
OTHER = "(other)"
_BINS, _CATEGORIES, _FEW_CATEGORIES = 10, 50, 5
_DISTINCT = 10
# With fewer, chance alone takes the PSI of equal distributions past 0.2; see `_most_bins`.
_ROWS_A_BIN = 20


@dataclass(frozen=True)
class Pair:
    """One column of both samples, put into the same bins."""

    labels: Sequence[str]
    baseline_counts: NDArray[np.float64]
    counts: NDArray[np.float64]
    baseline_missing: int
    missing: int
    categorical: bool
    # The numbers themselves, of a column that has only numbers.
    baseline_numbers: NDArray[np.float64] | None
    numbers: NDArray[np.float64] | None

    @classmethod
    def of(cls, baseline: Sequence[Any], current: Sequence[Any]) -> "Pair":
        """The pair of two lists of values, of which neither is empty."""
        before, all_numbers = values.numbers(baseline)
        present = before[~np.isnan(before)]
        if not all_numbers:
            return _by_category(baseline, current)
        now, _ = values.numbers(current)
        now = now[~np.isnan(now)]
        if _is_categorical(present):
            return _by_category(baseline, current, present, now)
        edges = _edges(present, _most_bins(len(baseline), len(current), _BINS))
        return cls(
            labels=_ranges(edges),
            baseline_counts=_counts(present, edges),
            counts=_counts(now, edges),
            baseline_missing=len(baseline) - len(present),
            missing=len(current) - len(now),
            categorical=False,
            baseline_numbers=present,
            numbers=now,
        )

    @property
    def shares(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of both samples, by bin; what is missing is a bin of its own where anything is."""
        before, now = self.all_counts
        return before / before.sum(), now / now.sum()

    @property
    def all_counts(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of both samples, by bin, with what is missing."""
        if not self.baseline_missing and not self.missing:
            return self.baseline_counts, self.counts
        return (
            np.append(self.baseline_counts, self.baseline_missing),
            np.append(self.counts, self.missing),
        )


def fits(metric: str, pair: Pair) -> bool:
    """Whether the metric can compare such a column."""
    if metric == KOLMOGOROV_SMIRNOV:
        return pair.numbers is not None
    return metric != CHI_SQUARE or pair.categorical


def value(metric: str, pair: Pair) -> tuple[float, float | None]:
    """The value of a metric that fits, and its p-value if it has one."""
    if metric == KOLMOGOROV_SMIRNOV:
        assert pair.baseline_numbers is not None, "it fits"
        assert pair.numbers is not None, "it fits"
        return metrics.kolmogorov_smirnov(pair.baseline_numbers, pair.numbers)
    if metric == CHI_SQUARE:
        return metrics.chi_square(*pair.all_counts)
    measure: Callable[..., float] = metrics.psi if metric == PSI else metrics.jensen_shannon
    return measure(*pair.shares), None


def _is_categorical(present: NDArray[np.float64]) -> bool:
    """Few different numbers, which come again."""
    distinct = len(np.unique(present))
    return distinct <= _DISTINCT and (distinct <= 1 or 2 * distinct <= len(present))


def _by_category(
    baseline: Sequence[Any],
    current: Sequence[Any],
    baseline_numbers: NDArray[np.float64] | None = None,
    numbers: NDArray[np.float64] | None = None,
) -> Pair:
    before, now = _tally(baseline), _tally(current)
    # One of the bins is for all others. Few categories are all told apart, whatever the rows.
    most = max(_FEW_CATEGORIES, _most_bins(len(baseline), len(current), _CATEGORIES + 1) - 1)
    # By name where they are as many, so that the same data gives the same bins.
    ordered = sorted(before.items(), key=lambda item: (-item[1], item[0]))
    labels = [name for name, _ in ordered[:most]]
    return Pair(
        labels=[*labels, OTHER],
        baseline_counts=_by_label(before, labels),
        counts=_by_label(now, labels),
        baseline_missing=len(baseline) - before.total(),
        missing=len(current) - now.total(),
        categorical=True,
        baseline_numbers=baseline_numbers,
        numbers=numbers,
    )


def _tally(column: Sequence[Any]) -> Counter[str]:
    return Counter(values.category(item) for item in column if not values.is_missing(item))


def _by_label(tally: Counter[str], labels: Sequence[str]) -> NDArray[np.float64]:
    known = [float(tally[label]) for label in labels]
    return np.array([*known, tally.total() - sum(known)])


def _most_bins(baseline_rows: int, rows: int, most: int) -> int:
    """How many bins so many rows can fill.

    Of equal distributions, PSI times n m / (n + m) is distributed like chi-squared with a degree of freedom
    less than there are bins (Yurdakul, Statistical Properties of Population Stability Index, 2018).
    """
    return max(2, min(most, baseline_rows * rows // (baseline_rows + rows) // _ROWS_A_BIN))


def _edges(present: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """The upper ends of all bins but the last, at quantiles of the baseline."""
    edges, times = np.unique(np.quantile(present, np.linspace(0, 1, bins + 1)[1:-1]), return_counts=True)
    # A number at which the values pile up has a bin of its own, so that moves to both sides are seen.
    piles = edges[(times > 1) & (edges > present.min())]
    return np.unique([*edges, *np.nextafter(piles, -np.inf)])


def _counts(present: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    # A bin holds its upper end.
    return np.bincount(np.searchsorted(edges, present, side="left"), minlength=len(edges) + 1).astype(float)


def _ranges(edges: NDArray[np.float64]) -> list[str]:
    texts = [f"{edge:.4g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in pairwise(texts)]
    return [f"up to {texts[0]}", *between, f"over {texts[-1]}"]
