"""How far two distributions over the same bins lie apart."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import distance

Floats = NDArray[np.float64]
# For bins that one side leaves empty; the value that drift monitors commonly take.
_EPSILON = 1e-4
_FEW = 100


def psi(baseline: Floats, current: Floats) -> float:
    """Population stability index of two lists of shares (Siddiqi, Credit Risk Scorecards, 2006, ch. 9)."""
    expected, actual = np.maximum(baseline, _EPSILON), np.maximum(current, _EPSILON)
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def jensen_shannon(baseline: Floats, current: Floats) -> float:
    """The distance (square root of the divergence) to base 2, 0 to 1."""
    found = float(distance.jensenshannon(baseline, current, base=2))
    # Rounding can take the divergence of equal distributions below 0.
    return 0.0 if np.isnan(found) else found


def kolmogorov_smirnov(baseline: Floats, current: Floats) -> tuple[float, float]:
    """Statistic and p-value of two samples of numbers; one that is empty has nothing of the other."""
    if not len(baseline) or not len(current):
        return (0.0, 1.0) if len(baseline) == len(current) else (1.0, 0.0)
    # The exact way takes long for many values, and the other one is wrong for few.
    method = "exact" if max(len(baseline), len(current)) <= _FEW else "asymp"
    result = stats.ks_2samp(baseline, current, method=method)
    return float(result.statistic), float(result.pvalue)


def chi_square(baseline: Floats, current: Floats) -> tuple[float, float]:
    """Cramér's V and p-value of two lists of counts.

    V is that of the two distributions with equally many rows (Cramér, Mathematical Methods of Statistics,
    1946, chapter 21): V of the counts themselves would go to 0 when one side has many more than the other.
    """
    counts = np.vstack([baseline, current])
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2:
        return 0.0, 1.0
    expected, actual = counts / counts.sum(axis=1, keepdims=True)
    strength = float(np.sqrt(np.sum((actual - expected) ** 2 / (actual + expected)) / 2))
    return strength, float(stats.chi2_contingency(counts, correction=False).pvalue)
