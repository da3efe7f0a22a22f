import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tsflora.analysis.runs import mean_interval, paired_difference
from tsflora.errors import DataError


def test_one_seed_has_no_interval():
    interval = mean_interval([0.7])
    assert (interval.mean, interval.n) == (0.7, 1)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert math.isnan(interval.half_width)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_equal_values_have_width_zero_exactly(n):
    interval = mean_interval([0.7] * n)
    assert (interval.low, interval.mean, interval.high) == (0.7, 0.7, 0.7)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [float("inf")]])
def test_nothing_or_not_finite_is_refused(values):
    with pytest.raises(DataError, match="finite"):
        mean_interval(values)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.7062), (3, 4.30265), (5, 2.77645)])
def test_interval_uses_the_printed_t_quantile(n, quantile):
    values = np.arange(n, dtype=float)
    half = quantile * values.std(ddof=1) / math.sqrt(n)
    interval = mean_interval(values)
    assert interval.low == pytest.approx(values.mean() - half, rel=1e-4)
    assert interval.high == pytest.approx(values.mean() + half, rel=1e-4)


def test_confidence_is_used():
    # t_{0.95, 2} = 2.91999
    assert mean_interval([1.0, 2.0, 3.0], confidence=0.9).half_width == pytest.approx(2.91999 / math.sqrt(3), rel=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(-3, 3))
def test_interval_moves_with_its_values(values, shift):
    here, there = mean_interval(values), mean_interval([value + shift for value in values])
    assert there.mean == pytest.approx(here.mean + shift, abs=1e-9)
    assert there.half_width == pytest.approx(here.half_width, abs=1e-9, nan_ok=True)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # 2,000 draws of 3 normal values: binomial with p = 0.95, so +-5 standard deviations fail once in 1.7 million.
    draws = np.random.default_rng(0).normal(0.3, 1, (2000, 3))
    intervals = [mean_interval(draw) for draw in draws]
    covered = sum(interval.low <= 0.3 <= interval.high for interval in intervals)
    assert abs(covered - 1900) < 5 * math.sqrt(2000 * 0.95 * 0.05)


def test_no_common_seed_is_refused():
    with pytest.raises(DataError, match="common seed"):
        paired_difference({0: 0.5}, {1: 0.4})


def test_one_common_seed_is_never_significant():
    found = paired_difference({0: 0.9, 1: 0.9}, {0: 0.1, 2: 0.1})
    assert found.interval.mean == pytest.approx(0.8)
    assert found.interval.n == 1
    assert math.isnan(found.p_value)
    assert math.isnan(found.bootstrap_low)
    assert not found.significant


def test_a_method_does_not_differ_from_itself():
    values = {0: 0.7, 1: 0.8, 2: 0.9}
    found = paired_difference(values, values)
    assert (found.interval.low, found.interval.mean, found.interval.high) == (0, 0, 0)
    assert (found.bootstrap_low, found.bootstrap_high) == (0, 0)
    assert not found.significant


def test_the_same_gain_on_every_seed_has_no_spread_to_judge_by():
    found = paired_difference({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})
    assert (found.interval.low, found.interval.high) == (0.25, 0.25)
    assert math.isnan(found.p_value)
    assert not found.significant


def test_pairs_by_seed_and_agrees_with_the_paired_t_test():
    a = {4: 0.71, 1: 0.74, 2: 0.69, 9: 0.1}
    b = {1: 0.70, 2: 0.66, 4: 0.70, 7: 0.9}
    found = paired_difference(a, b)
    expected = stats.ttest_rel([0.74, 0.69, 0.71], [0.70, 0.66, 0.70])
    assert found.interval.n == 3
    assert found.p_value == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.significant == (expected.pvalue < 0.05)


def test_a_small_steady_gain_counts_and_a_large_unsteady_one_does_not():
    base = {0: 0.5, 1: 0.6, 2: 0.7}
    assert paired_difference({0: 0.511, 1: 0.61, 2: 0.709}, base).significant
    assert not paired_difference({0: 0.49, 1: 0.61, 2: 0.79}, base).significant
    assert paired_difference({0: 0.489, 1: 0.59, 2: 0.691}, base).significant


def test_the_bootstrap_is_seeded_and_stays_within_the_differences():
    a, b = {0: 0.72, 1: 0.75, 2: 0.71, 3: 0.7}, {0: 0.7, 1: 0.71, 2: 0.7, 3: 0.71}
    first, second = paired_difference(a, b), paired_difference(a, b)
    assert first == second
    assert -0.01 - 1e-9 <= first.bootstrap_low < first.interval.mean < first.bootstrap_high <= 0.04 + 1e-9
    assert first.bootstrap_high - first.bootstrap_low < first.interval.high - first.interval.low


def test_two_seeds_are_too_few_for_a_bootstrap():
    found = paired_difference({0: 0.7, 1: 0.8}, {0: 0.6, 1: 0.75})
    assert math.isnan(found.bootstrap_low)
    assert math.isfinite(found.p_value)
