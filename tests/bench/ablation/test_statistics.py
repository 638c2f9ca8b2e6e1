"""The statistics agree with scipy's, and with formulas worked by hand."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from bench.ablation.statistics import (
    EXACT_UP_TO,
    FLIPS,
    _power,
    crossed_interval,
    holm,
    least_p,
    on_curve,
    paired,
    seeds_for_power,
    seeds_to_decide,
    sign_flip,
    too_few_seeds,
)


def differences(n: int, shift: float) -> np.ndarray:
    return np.random.default_rng(n).normal(shift, 1.0, n)


@pytest.mark.parametrize(("n", "shift"), [(2, 0.0), (5, 0.3), (8, 1.0), (12, 0.5), (12, -2.0)])
def test_exact_p_is_that_of_scipys_permutation_test(n: int, shift: float) -> None:
    values = differences(n, shift)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    p, exact = sign_flip(values)
    assert exact
    assert p == pytest.approx(expected.pvalue, abs=1e-12)


def test_p_has_its_least_value_when_all_signs_agree() -> None:
    for n in (1, 2, 6, 12, 16):
        p, exact = sign_flip(np.full(n, 0.1))  # sums of equal numbers in another order differ in the last bits
        assert (p, exact) == (least_p(n), True) == (2 / 2**n, True)


def test_no_difference_at_all_has_p_one() -> None:
    assert sign_flip(np.zeros(6))[0] == 1.0
    assert paired([0.0] * 6).d_z is None


def test_beyond_sixteen_seeds_p_is_estimated_with_a_fixed_seed() -> None:
    values = differences(18, 0.4)
    p, exact = sign_flip(values)
    assert not exact
    assert p == sign_flip(values)[0]
    signs = (np.arange(2**18)[:, None] >> np.arange(18)) & 1
    true = np.mean(np.abs((2.0 * signs - 1) @ values) >= abs(values.sum()) - 1e-9)
    assert p == pytest.approx(true, abs=4 * math.sqrt(true * (1 - true) / 100_000))


def test_the_interval_is_students_and_d_z_the_standardized_mean() -> None:
    values = differences(12, 0.5)
    test = paired(values.tolist())
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (test.low, test.high) == pytest.approx((interval.low, interval.high))
    assert test.mean == pytest.approx(values.mean())
    assert test.d_z == pytest.approx(stats.ttest_1samp(values, 0).statistic / math.sqrt(12))
    assert (test.below, test.above) == (int((values < 0).sum()), int((values > 0).sum()))


def test_a_single_seed_has_a_mean_and_nothing_else() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of numpy, which has no deviation of one value
        test = paired([0.5])
    assert (test.mean, test.low, test.high, test.d_z, test.p) == (0.5, None, None, None, 1.0)


def test_holm_by_hand() -> None:
    # sorted: .005 · 5, .01 · 4 = .04, .03 · 3 = .09, .04 · 2 = .08 → .09, .9 · 1
    assert holm([0.04, 0.005, 0.9, 0.01, 0.03]) == pytest.approx([0.09, 0.025, 0.9, 0.04, 0.09])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_how_many_seeds_can_decide() -> None:
    assert [seeds_to_decide(family) for family in (1, 2, 12)] == [6, 7, 9]
    for family in (1, 5, 40):
        n = seeds_to_decide(family)
        assert family * least_p(n) < 0.05 <= family * least_p(n - 1)
        assert too_few_seeds(n, family) is None
        assert f"; {n} seeds can" in (too_few_seeds(n - 1, family) or "")


def test_beyond_the_exact_seeds_no_p_is_below_one_of_the_flips() -> None:
    assert least_p(EXACT_UP_TO + 1) == 1 / (FLIPS + 1)
    assert sign_flip(np.ones(40)) == (least_p(40), False)


@pytest.mark.parametrize(("d_z", "expected"), [(0.5, 34), (1.0, 10), (0.2, 199), (-0.5, 34)])
def test_seeds_for_power_are_those_of_published_tables(d_z: float, expected: int) -> None:
    """Cohen's tables and G*Power give 34, 10 and 199 pairs for a two-sided paired t test."""
    assert seeds_for_power(d_z) == expected


@pytest.mark.parametrize("d_z", [0.0, 0.1, 0.4, 0.9])
def test_power_is_the_share_of_significant_t_tests(d_z: float) -> None:
    """Without an effect it is the level itself, half of it in either tail; simulated otherwise."""
    values = np.random.default_rng(7).normal(d_z, 1.0, (40_000, 8))
    found = float((stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05).mean())
    assert _power(d_z, 8) == pytest.approx(found, abs=0.007)
    assert _power(0.0, 8) == pytest.approx(0.05)
    assert _power(30.0, 8) == 1.0


def test_seeds_for_power_at_the_ends() -> None:
    assert seeds_for_power(3.5) == seeds_for_power(100.0) == 6
    assert seeds_for_power(-1.0) == seeds_for_power(1.0)
    assert seeds_for_power(0.0) is seeds_for_power(None) is seeds_for_power(1e-4) is None


def test_the_crossed_interval_covers_both_sources_of_spread() -> None:
    rng = np.random.default_rng(0)
    seeds, images = rng.normal(0, 1.0, (12, 1)), rng.normal(0, 2.0, (1, 40))
    by_seed = crossed_interval(np.broadcast_to(seeds, (12, 40)).copy())
    by_image = crossed_interval(np.broadcast_to(images, (12, 40)).copy())
    both = crossed_interval(seeds + images)
    assert by_seed is not None
    assert by_image is not None
    assert both is not None
    for interval, spread in ((by_seed, seeds.std() / math.sqrt(12)), (by_image, images.std() / math.sqrt(40))):
        assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * spread, rel=0.06)
    expected = 2 * 1.96 * math.hypot(seeds.std() / math.sqrt(12), images.std() / math.sqrt(40))
    assert both[1] - both[0] == pytest.approx(expected, rel=0.06)
    assert crossed_interval(np.zeros((1, 40))) is crossed_interval(np.zeros((12, 1))) is None
    assert crossed_interval(np.ones((2, 2))) == (1.0, 1.0)
    assert crossed_interval(seeds + images) == both


def test_a_curve_is_interpolated_along_its_order_and_never_extrapolated() -> None:
    xs, ys = [60.0, 50.0, 40.0, 45.0], [1.0, 2.0, 4.0, 9.0]
    assert on_curve(xs, ys, 55.0) == pytest.approx(1.5)
    assert on_curve(xs, ys, 42.0) == pytest.approx(3.6)  # on the way down, not on the way back
    assert on_curve(xs, ys, 60.0) == 1.0
    assert on_curve(xs, ys, 61.0) is None
    assert on_curve(xs, ys, 39.0) is None
    assert on_curve([1.0], [1.0], 1.0) is None
