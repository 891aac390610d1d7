"""Is a difference between two systems more than luck? Tests over the same users, two-sided.

The paired tests treat users as the sample and say nothing about training randomness: read them beside the
mean and standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from catalex.types import Doubles

RESAMPLES = 1000
"""Bootstrap resamples of the users."""


@dataclass(frozen=True)
class Outcome:
    """What a paired test found: the statistic and its two-sided p value."""

    statistic: float
    p: float


def paired_t_test(first: Doubles, second: Doubles) -> Outcome:
    """Paired t-test of per-user values ``(B,)`` of the same users in the same order.

    ``t = mean(d) / (sd(d) / sqrt(n))`` with d = first - second, n - 1 degrees of freedom, sd with n - 1.
    Equal values everywhere give t = 0, p = 1; a constant non-zero difference gives an infinite t and p = 0.
    """
    assert first.shape == second.shape
    differences = first - second
    n = len(differences)
    mean = float(differences.mean()) if n else 0.0
    if n < 2 or not differences.any():
        return Outcome(0.0, 1.0)
    error = float(differences.std(ddof=1) / np.sqrt(n))
    if error <= 1e-15 * abs(mean):
        return Outcome(float(np.copysign(np.inf, mean)), 0.0)
    t = mean / error
    return Outcome(t, float(2.0 * stats.t.sf(abs(t), n - 1)))


def mcnemar_test(first: Doubles, second: Doubles) -> Outcome:
    """Exact McNemar test for per-user values that are 0 or 1 (Recall): a binomial test on those who differ.

    The statistic is the share of the differing users that `first` wins.
    """
    wins = int(((first == 1) & (second == 0)).sum())
    losses = int(((first == 0) & (second == 1)).sum())
    if wins + losses == 0:
        return Outcome(0.5, 1.0)
    return Outcome(wins / (wins + losses), float(stats.binomtest(wins, wins + losses).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several comparisons, in the order given.

    The i-th smallest of m values (i = 0..m-1) is multiplied by m - i; later ones are never smaller; capped at
    1.
    """
    order = np.argsort(np.asarray(p_values), kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for step, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[position]))
        corrected[position] = largest
    return corrected


@dataclass(frozen=True)
class Interval:
    """A percentile interval of a mean."""

    low: float
    high: float


def bootstrap_interval(
    differences: Doubles, *, seed: int, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean difference ``(B,)`` under resampling of the users with replacement."""
    if not len(differences):
        return Interval(0.0, 0.0)
    generator = np.random.default_rng(seed)
    n = len(differences)
    means = np.array([differences[generator.integers(0, n, n)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
