"""What votes say: a Bradley-Terry scale, shares and win rates by category, agreement of raters, agreement of metrics.

The *scale* is that of Bradley and Terry: method i is preferred to j with the probability σ(θ_i - θ_j), and θ has the
mean zero. The *share* of a method is exp θ_i / Σ exp θ, the probability that it is chosen out of all methods, as the
paper's participants chose. Where raters chose out of all, it is simply the share of their votes; where they compared
pairs, it follows from the model. "Not sure" is no vote; its frequency is reported. Shares over all categories are the
plain mean of those of each, as in the paper.

Votes of one rater resemble each other, and so do votes on one image. The 95 % intervals come from a bootstrap that
draws raters and, within each category, images anew, both at once; it is rather too wide than too narrow.
"""

# choix and scipy ship no complete types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import math
from collections.abc import Sequence
from dataclasses import dataclass

import choix
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.study.study import ALL, Study
from bench.study.votes import Answer, Ballot
from tsd.console.progress import Progress
from tsd.errors import UserError

RESAMPLES = 1000
PRIOR = 0.1
"""Votes added to either side of every comparison, so that a method that won or lost all has a place on the scale."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, None where there are not two raters."""

    value: float
    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


@dataclass(frozen=True)
class MetricFit:
    """How a metric agrees with the votes.

    Attributes:
        agreement: the share of votes for the picture that the metric prefers, ties as half; a coin gives a half.
        rho: Spearman's correlation between differences of the metric and of the votes, over pairs of methods on
            images; None for fewer than three.
        votes: votes on images for which all methods shown have a value.
    """

    display: str
    higher_is_better: bool
    agreement: Estimate
    rho: float | None
    votes: int


@dataclass(frozen=True)
class Findings:
    """All numbers of a study. Lists are in the order of the methods; dictionaries are by category, and `ALL`.

    Attributes:
        scale: θ of each method, over all votes.
        shares, wins: of each method; None for a category without votes.
        votes, unsure: numbers of decided and undecided answers.
        chosen: [image][method], how often a method was chosen on an image; `decided`: votes on the image.
        alpha: Krippendorff's, over raters, of the chosen method; None without two votes on a question. Of pairs each
            question counts both ways round, so that the agreement of chance is zero.
        consistency: (repeats answered as before, decided repeats).
        left: the share of decided pairs in which the left picture was chosen; None where more than two are shown.
    """

    scale: list[Estimate]
    shares: dict[str, list[Estimate] | None]
    wins: dict[str, list[Estimate] | None]
    votes: dict[str, int]
    unsure: dict[str, int]
    chosen: list[list[int]]
    decided: list[int]
    alpha: float | None
    consistency: tuple[int, int]
    left: float | None
    metrics: list[MetricFit]


@dataclass(frozen=True)
class _Votes:
    """Decided votes as arrays of one entry each: rater, image, chosen method, and the other (itself with `best`)."""

    rater: NDArray[np.int64]
    image: NDArray[np.int64]
    winner: NDArray[np.int64]
    loser: NDArray[np.int64]


def analyse(study: Study, ballots: Sequence[Ballot], resamples: int = RESAMPLES) -> Findings:
    """The findings of ballots, all of which count.

    Args:
        resamples: of the bootstrap; 0 leaves the intervals out.

    Raises:
        UserError: nobody decided anything.
    """
    best = study.mode == "best"
    votes = _votes(ballots, best)
    if not len(votes.rater):
        raise UserError(f"the {len(ballots)} raters that count decided on nothing: there is no vote to analyse")
    kinds = np.array([study.categories.index(image.category) for image in study.images])
    preferred = [_preferred(study, metric, ballots) for metric in range(len(study.metrics))]
    point = _estimates(votes, kinds, study, np.ones(len(votes.rater)), None)
    drawn = _bootstrap(votes, kinds, study, len(ballots), preferred, resamples, point) if len(ballots) > 1 else []

    count, categories = len(study.methods), [*study.categories, ALL]
    answers = [answer for ballot in ballots for answer in ballot.of_kind("vote")]
    decided = [answer for answer in answers if answer.chosen is not None]
    numbers = _by_category(study, decided)
    rows = point.reshape(-1, count)
    resampled = np.array([estimates for estimates, _ in drawn]).reshape(-1, *rows.shape)

    def estimates(row: int) -> list[Estimate]:
        return [_with_interval(float(rows[row, at]), resampled[:, row, at]) for at in range(count)]

    def by_category(first: int) -> dict[str, list[Estimate] | None]:
        return {name: estimates(first + at) if numbers[name] else None for at, name in enumerate(categories)}

    chosen = [[0] * count for _ in study.images]
    for answer in decided:
        chosen[answer.trial.image][answer.trial.shown[answer.chosen or 0]] += 1
    repeats = [ballot.consistency for ballot in ballots]
    return Findings(
        scale=estimates(0),
        shares=by_category(1),
        wins=by_category(1 + len(categories)),
        votes=numbers,
        unsure=_by_category(study, [answer for answer in answers if answer.chosen is None]),
        chosen=chosen,
        decided=[sum(of_image) for of_image in chosen],
        alpha=krippendorff_alpha(_units(answers, best)),
        consistency=(sum(same for same, _ in repeats), sum(total for _, total in repeats)),
        left=None if best or not decided else sum(answer.chosen == 0 for answer in decided) / len(decided),
        metrics=[_metric_fit(study, number, preferred[number], answers, drawn) for number in range(len(preferred))],
    )


def bradley_terry(wins: Array, start: Array | None = None) -> Array:
    """θ of each method, mean zero, from the (K, K) numbers of wins of a row over a column."""
    counts = wins + PRIOR
    np.fill_diagonal(counts, 0)
    return choix.ilsr_pairwise_dense(counts, initial_params=start, max_iter=10_000, tol=1e-6)


def krippendorff_alpha(units: Sequence[Sequence[int]]) -> float | None:
    """Krippendorff's alpha of nominal values (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").

    Args:
        units: the values that raters gave to each unit; units with fewer than two do not count.

    Returns:
        1 for perfect agreement, 0 for that of chance; None if fewer than two different values occur.
    """
    values = sorted({value for unit in units if len(unit) > 1 for value in unit})
    if len(values) < 2:
        return None
    counts = np.array([[list(unit).count(value) for value in values] for unit in units if len(unit) > 1], dtype=float)
    sizes = counts.sum(1)
    totals = counts.sum(0)
    n = totals.sum()
    observed = float(((sizes**2 - (counts**2).sum(1)) / (sizes - 1)).sum()) / n
    expected = float(n**2 - (totals**2).sum()) / (n * (n - 1))
    return 1 - observed / expected


def _votes(ballots: Sequence[Ballot], best: bool) -> _Votes:
    rows: list[tuple[int, int, int, int]] = []
    for number, ballot in enumerate(ballots):
        for answer in ballot.of_kind("vote"):
            if answer.chosen is not None:
                shown = answer.trial.shown
                winner = shown[answer.chosen]
                rows.append((number, answer.trial.image, winner, winner if best else shown[1 - answer.chosen]))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return _Votes(*columns)


def _by_category(study: Study, answers: Sequence[Answer]) -> dict[str, int]:
    found = dict.fromkeys(study.categories, 0)
    for answer in answers:
        found[study.images[answer.trial.image].category] += 1
    return found | {ALL: len(answers)}


def _estimates(votes: _Votes, kinds: NDArray[np.int64], study: Study, weights: Array, start: Array | None) -> Array:
    """Scale, shares and win rates in one row: K values each for the scale, for every category, and for `ALL`."""
    count, categories = len(study.methods), len(study.categories)
    place = (kinds[votes.image] * count + votes.winner) * count + votes.loser
    wins = np.bincount(place, weights, categories * count * count).reshape(categories, count, count)
    best = study.mode == "best"
    starts: list[Array | None] = [None] * (categories + 1)
    if start is not None:
        near = start.reshape(-1, count)[: categories + 1]
        starts = [near[0], *(None if np.isnan(shares).any() else np.log(shares) for shares in near[1:])]
    scale = _scale(wins.sum(0), best, starts[0])
    shares, rates = np.full((2, categories, count), np.nan)
    for category in range(categories):
        if wins[category].sum():
            shares[category] = _softmax(_scale(wins[category], best, starts[category + 1]))
            rates[category] = _rates(wins[category], best)
    known = ~np.isnan(shares[:, :1]).ravel()
    of_all = [part[known].mean(0, keepdims=True) if known.any() else part[:1] for part in (shares, rates)]
    return np.concatenate([scale, *shares, *of_all[0], *rates, *of_all[1]])


def _scale(wins: Array, best: bool, start: Array | None) -> Array:
    if not best:
        return bradley_terry(wins, start)
    chosen = np.log(np.diag(wins) + PRIOR)  # out of all methods every time: the likelihood is largest at the shares
    return chosen - chosen.mean()


def _softmax(scale: Array) -> Array:
    powers = np.exp(scale - scale.max())
    return powers / powers.sum()


def _rates(wins: Array, best: bool) -> Array:
    won = wins.sum(1)
    compared = np.full(len(won), wins.sum()) if best else won + wins.sum(0)
    return np.divide(won, compared, out=np.full(len(won), np.nan), where=compared > 0)


def _bootstrap(
    votes: _Votes,
    kinds: NDArray[np.int64],
    study: Study,
    raters: int,
    preferred: Sequence[Array],
    resamples: int,
    point: Array,
) -> list[tuple[Array, list[float]]]:
    """For each resample the estimates, and the agreement of each metric."""
    rng = np.random.default_rng(study.seed)
    drawn: list[tuple[Array, list[float]]] = []
    work = Progress(range(resamples), "bootstrap", unit="resample", delay=1, leave=False)
    for _ in work:
        of_rater = rng.multinomial(raters, np.full(raters, 1 / raters))
        of_image = np.zeros(len(study.images))
        for kind in range(len(study.categories)):
            members = np.flatnonzero(kinds == kind)
            of_image[members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)))
        weights = of_rater[votes.rater] * of_image[votes.image]
        agreements = [_mean(values, weights) for values in preferred]
        drawn.append((_estimates(votes, kinds, study, weights.astype(np.float64), point), agreements))
    return drawn


def _mean(values: Array, weights: NDArray[np.float64] | NDArray[np.int64]) -> float:
    known = ~np.isnan(values)
    total = float(weights[known].sum())
    return float((values[known] * weights[known]).sum()) / total if total else math.nan


def _with_interval(value: float, drawn: Array) -> Estimate:
    known = drawn[~np.isnan(drawn)]
    if len(known) < 2:
        return Estimate(value)
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _preferred(study: Study, metric: int, ballots: Sequence[Ballot]) -> Array:
    """For every decided vote how far the metric prefers the chosen picture: 1, 0, between for ties; NaN if unknown."""
    found: list[float] = []
    for ballot in ballots:
        for answer in ballot.of_kind("vote"):
            if answer.chosen is None:
                continue
            values = [study.metrics[metric].values[method][answer.trial.image] for method in answer.trial.shown]
            if None in values:
                found.append(math.nan)
                continue
            sign = 1 if study.metrics[metric].higher_is_better else -1
            mine = values[answer.chosen] or 0.0
            gaps = [sign * (mine - (other or 0.0)) for at, other in enumerate(values) if at != answer.chosen]
            found.append(sum((gap > 0) + (gap == 0) / 2 for gap in gaps) / len(gaps))
    return np.array(found, dtype=np.float64)


def _metric_fit(
    study: Study,
    number: int,
    preferred: Array,
    answers: Sequence[Answer],
    drawn: Sequence[tuple[Array, list[float]]],
) -> MetricFit:
    metric = study.metrics[number]
    agreement = _mean(preferred, np.ones(len(preferred)))
    return MetricFit(
        display=metric.display,
        higher_is_better=metric.higher_is_better,
        agreement=_with_interval(agreement, np.array([one[1][number] for one in drawn])),
        rho=_rho(study, number, answers),
        votes=int((~np.isnan(preferred)).sum()),
    )


def _rho(study: Study, number: int, answers: Sequence[Answer]) -> float | None:
    """Spearman's correlation over pairs of methods on images, each in both directions, so that order means nothing."""
    metric = study.metrics[number]
    balance: dict[tuple[int, int, int], list[int]] = {}
    for answer in answers:
        if answer.chosen is not None:
            winner = answer.trial.shown[answer.chosen]
            for other in answer.trial.shown:
                if other != winner:
                    key = (answer.trial.image, min(winner, other), max(winner, other))
                    balance.setdefault(key, []).append(1 if winner < other else -1)
    xs: list[float] = []
    ys: list[float] = []
    for (image, first, second), signs in balance.items():
        one, two = metric.values[first][image], metric.values[second][image]
        if one is not None and two is not None:
            xs.append((one - two) * (1 if metric.higher_is_better else -1))
            ys.append(sum(signs) / len(signs))
    if len(xs) < 3:
        return None
    x, y = np.array(xs), np.array(ys)
    if not x.any() or not y.any():
        return None
    ranks = [stats.rankdata(np.concatenate([values, -values])) for values in (x, y)]
    rho = float(np.corrcoef(*ranks)[0, 1])
    return None if math.isnan(rho) else rho


def _units(answers: Sequence[Answer], best: bool) -> list[list[int]]:
    """What raters chose, by question: the method, or of a pair which of both, once in either order."""
    units: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for answer in answers:
        if answer.chosen is not None:
            key = (answer.trial.image, tuple(sorted(answer.trial.shown)))
            units.setdefault(key, []).append(key[1].index(answer.trial.shown[answer.chosen]))
    return [*units.values(), *([] if best else [[1 - value for value in unit] for unit in units.values()])]
