"""Statistics of paired runs: intervals, sign-flip tests, Holm's correction, images as a second level, and power.

A paired difference d_i is one seed's value of an arm minus that of another. Everything here takes such differences as
numpy arrays of float64; nothing is rounded.
"""

# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ALPHA = 0.05
POWER = 0.8
EXACT_UP_TO = 16
"""Largest number of seeds for which all 2^n sign flips are gone through."""
FLIPS = 100_000
"""Random sign flips beyond that."""
RESAMPLES = 4_000
MOST_SEEDS = 10_000
"""Where more seeds would be needed than this, the answer is None."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """What the paired differences of a comparison say.

    Attributes:
        n: seeds in which both arms are measured.
        mean, low, high: mean difference and its 95 % interval by Student's t over seeds; the interval is None for a
            single seed.
        d_z: mean over standard deviation of the differences; None where that is zero or unknown.
        below, above: in how many seeds the difference is below and above zero.
        p: of the two-sided sign-flip test of the mean.
        exact: whether p comes from all 2^n flips; otherwise from `FLIPS` random ones with a fixed seed.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    d_z: float | None
    below: int
    above: int
    p: float
    exact: bool


def paired(differences: Sequence[float]) -> Paired:
    """Summarizes the paired differences of one seed or more."""
    values = np.asarray(differences, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    deviation = float(values.std(ddof=1)) if n > 1 else 0.0
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * deviation / math.sqrt(n) if n > 1 else None
    p, exact = sign_flip(values)
    return Paired(
        n=n,
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        d_z=mean / deviation if deviation > 0 else None,
        below=int((values < 0).sum()),
        above=int((values > 0).sum()),
        p=p,
        exact=exact,
    )


def sign_flip(differences: Array) -> tuple[float, bool]:
    """The p of the two-sided sign-flip permutation test of the mean, and whether it is exact.

    Under the hypothesis that the arms are exchangeable within a seed, every pattern of signs is equally likely. p is
    the share of the patterns whose mean is at least as far from zero as the observed one. Its least value is 2/2^n.
    """
    n = len(differences)
    observed = abs(float(differences.sum()))
    reached = observed * (1 - 1e-12) - 1e-300  # sums of the same numbers in another order differ in the last bits
    if n <= EXACT_UP_TO:
        flipped = _all_signs(n) @ differences
        return float((np.abs(flipped) >= reached).mean()), True
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(FLIPS, n))
    hits = int((np.abs(signs @ differences) >= reached).sum())
    return (hits + 1) / (FLIPS + 1), False  # the observed pattern is one of them


def least_p(n: int) -> float:
    """The least p that a two-sided sign-flip test of n seeds can reach."""
    return 2 / 2**n if n <= EXACT_UP_TO else 1 / (FLIPS + 1)


def seeds_to_decide(family: int) -> int:
    """The least number of seeds with which a sign-flip test can stay below 5 % after Holm's correction."""
    return next(n for n in range(1, 64) if family * 2 / 2**n < ALPHA)


def too_few_seeds(n: int, family: int) -> str | None:
    """Why `n` seeds cannot decide any of `family` tests, and how many seeds can; None if they can."""
    enough = seeds_to_decide(family)
    if n >= enough:
        return None
    count = f"{n} seed{'s' if n != 1 else ''}"
    least = least_p(n)
    if least >= ALPHA:
        return f"{count} cannot reach p < .05 (2/2^{n} = {least:.2g}); {enough} seeds can"
    after = f"after Holm over {family} tests ({family} · 2/2^{n} = {family * least:.2g})"
    return f"{count} cannot reach p < .05 {after}; {enough} seeds can"


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each test of a family, in the order given."""
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def seeds_for_power(d_z: float | None) -> int | None:
    """How many paired seeds find an effect of size `d_z` with probability .8 at p < .05, by the paired t test.

    Never fewer than the six that the sign-flip test needs. None for no effect, or where it takes more than 10,000.
    """
    if d_z is None or d_z == 0 or _power(abs(d_z), MOST_SEEDS) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(abs(d_z), middle) >= POWER else (middle, high)
    return max(high, seeds_to_decide(1))


def crossed_interval(differences: Array) -> tuple[float, float] | None:
    """The 95 % interval of the mean over seeds and images, by a bootstrap that resamples both, crossed.

    Percentiles; with few seeds such intervals come out somewhat narrow.

    Args:
        differences: (seeds, images); the same images in every seed.

    Returns:
        None with fewer than two seeds or two images.
    """
    seeds, images = differences.shape
    if seeds < 2 or images < 2:
        return None
    of_seeds, of_images = _weights(seeds, 1), _weights(images, 2)
    means = np.einsum("bi,bi->b", of_seeds @ differences, of_images)
    low, high = np.quantile(means, (ALPHA / 2, 1 - ALPHA / 2))
    return float(low), float(high)


def on_curve(xs: Sequence[float], ys: Sequence[float], x: float) -> float | None:
    """The y at `x` of the curve through the points in the order given; None where no stretch of it reaches x.

    Where several stretches do (sharpening first helps, then hurts), the first counts.
    """
    for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True)):
        if min(x0, x1) <= x <= max(x0, x1):
            return y0 if x0 == x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def _power(d_z: float, n: int) -> float:
    if n < 2:
        return 0.0
    critical = stats.t.ppf(1 - ALPHA / 2, n - 1)
    shift = d_z * math.sqrt(n)
    if shift > 30:  # scipy's noncentral t loses its accuracy far out, where the power is 1
        return 1.0
    other_tail = stats.nct.cdf(-critical, n - 1, shift) if shift < 3 else 0.0  # far out it is nothing, or NaN
    return float(stats.nct.sf(critical, n - 1, shift) + other_tail)


@cache
def _all_signs(n: int) -> Array:
    """(2^n, n) of every pattern of signs."""
    patterns = np.arange(2**n, dtype=np.int64)[:, None] >> np.arange(n)
    return np.where(patterns & 1, 1.0, -1.0)


@cache
def _weights(count: int, stream: int) -> Array:
    """(RESAMPLES, count): the share of each of `count` items in each resample. The same at every call."""
    rng = np.random.default_rng((count, stream))
    return rng.multinomial(count, [1 / count] * count, size=RESAMPLES) / count
