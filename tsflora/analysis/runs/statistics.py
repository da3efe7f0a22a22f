"""Intervals over seeds. A study has 3-5 seeds, so the normal quantile would be far too narrow; Student's t is used.

With n seeds the standard error itself is estimated from n values. For normal run-to-run noise the exact factor is the
t quantile with n - 1 degrees of freedom: 4.30 at n = 3 and 2.78 at n = 5, where the normal quantile would say 1.96.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tsflora.errors import DataError
from tsflora.seeding import numpy_generator

_BOOTSTRAP_MIN_SEEDS = 3
_BOOTSTRAP_RESAMPLES = 9_999


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of the values; `low` and `high` are NaN for a single value."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half the interval's width; NaN for a single value."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over the seeds both have, with two intervals; the t-interval alone decides `significant`."""

    interval: Interval
    bootstrap_low: float
    bootstrap_high: float
    p_value: float
    """Two-sided p of the paired t-test, not corrected for the number of methods; NaN for one seed, or equal ones."""

    @property
    def significant(self) -> bool:
        """Whether the t-interval leaves out 0; never true for a single seed, nor without any spread to judge by."""
        return self.interval.half_width > 0 and not self.interval.low <= 0 <= self.interval.high


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean over seeds with its Student t interval, mean ± t_{(1+confidence)/2, n-1} · s / sqrt(n).

    One value has no spread to estimate, so its interval is NaN rather than a pretended one. Equal values give an
    interval of width 0: seeds that agree to the last test image, not proof that the next one would.

    Raises:
        DataError: no values, or one that is not finite.
    """
    sample = np.asarray(list(values), dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise DataError(f"an interval needs finite values, at least one; given: {sample.tolist()}")
    if sample.size == 1:
        return Interval(float(sample[0]), float("nan"), float("nan"), 1)
    error = _standard_error(sample)
    mean = float(sample.mean()) if error > 0 else float(sample[0])  # the mean of equal floats can miss them by a bit
    half_width = float(stats.t.ppf((1 + confidence) / 2, sample.size - 1)) * error
    return Interval(mean, mean - half_width, mean + half_width, sample.size)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> PairedDifference:
    """Difference a - b of two methods, paired by seed over their common seeds (`{seed: value}`).

    Methods share shards, participants and sample order at one seed, so the difference within a seed drops the noise
    that the seed itself brings. The percentile bootstrap (at least 3 seeds, else NaN) stands beside the t-interval
    to show whether one seed carries the mean; on 3-5 values it is too narrow to decide anything, so it does not.

    Raises:
        DataError: no common seed, or a value that is not finite.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise DataError(f"a paired difference needs a common seed; given: {sorted(a)} and {sorted(b)}")
    differences = np.array([a[seed] - b[seed] for seed in seeds], dtype=np.float64)
    interval = mean_interval(differences, confidence)
    if len(seeds) == 1:
        return PairedDifference(interval, float("nan"), float("nan"), float("nan"))
    error = _standard_error(differences)
    if error == 0:
        return PairedDifference(interval, interval.low, interval.high, float("nan"))
    p_value = 2 * float(stats.t.sf(abs(interval.mean) / error, len(seeds) - 1))
    if len(seeds) < _BOOTSTRAP_MIN_SEEDS:
        return PairedDifference(interval, float("nan"), float("nan"), p_value)
    resampled = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=confidence,
        n_resamples=_BOOTSTRAP_RESAMPLES,
        method="percentile",
        random_state=numpy_generator("bootstrap", *seeds),
    ).confidence_interval
    return PairedDifference(interval, float(resampled.low), float(resampled.high), p_value)


def _standard_error(sample: np.ndarray) -> float:
    """Standard error of the mean of at least two values; exactly 0 for equal ones, where rounding may say otherwise."""
    return float(stats.sem(sample)) if np.ptp(sample) > 0 else 0.0
