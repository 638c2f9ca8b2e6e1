"""The statistics, against closed forms, a published example and a known preference."""

from collections.abc import Callable
from pathlib import Path

import choix
import numpy as np
import pytest

from bench.study.analyse import PRIOR, analyse, bradley_terry, krippendorff_alpha
from bench.study.design import Plan
from bench.study.simulate import known_shares, simulate
from bench.study.study import ALL, Study
from bench.study.votes import Answer, Ballot, Rules, open_box
from tsd.errors import UserError

PREFERENCE = (4.0, 3.0, 2.0, 1.0)
Ballots = Callable[..., list[Ballot]]


@pytest.fixture
def ballots(tmp_path: Path) -> Ballots:
    def simulated(study: Study, preference=PREFERENCE) -> list[Ballot]:
        simulate(study, preference, tmp_path / "votes", seed=7)
        return open_box([tmp_path / "votes"], study, Rules()).ballots

    return simulated


def test_the_scale_is_the_most_likely_one() -> None:
    wins = np.array([[0, 8, 9], [2, 0, 7], [1, 3, 0]], dtype=float)
    theta = bradley_terry(wins)
    counts = wins + PRIOR * (1 - np.eye(3))
    expected = 1 / (1 + np.exp(theta[None] - theta[:, None]))
    gradient = (counts - (counts + counts.T) * expected).sum(1)
    assert np.abs(gradient).max() < 1e-4
    assert abs(theta.sum()) < 1e-9
    two = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]))
    assert two[0] - two[1] == pytest.approx(np.log((30 + PRIOR) / (10 + PRIOR)), abs=1e-5)


def test_alpha_is_that_of_the_published_example() -> None:
    """Krippendorff (2011), example C reduced to nominal values: three observers, fifteen units."""
    observers = [
        [None, None, None, None, None, 3, 4, 1, 2, 1, 1, 3, 3, None, 3],
        [1, None, 2, 1, 3, 3, 4, 3, None, None, None, None, None, None, None],
        [None, None, 2, 1, 3, 4, 4, None, 2, 1, 1, 3, 3, None, 4],
    ]
    units = [[value for value in unit if value is not None] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.691358, abs=1e-6)
    assert krippendorff_alpha([[1, 1], [2, 2]]) == 1
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None


@pytest.mark.parametrize("mode", ["pairs", "best"])
def test_a_known_preference_is_recovered(new_study: Callable[..., Study], ballots: Ballots, mode) -> None:
    study = new_study(Plan(mode, raters=40))
    findings = analyse(study, ballots(study), resamples=100)
    shares = findings.shares[ALL]
    assert shares is not None
    for share, known in zip(shares, known_shares("4 3 2 1"), strict=True):
        assert share.holds(known)
        assert share.low < share.value < share.high  # type: ignore[operator]
    assert sum(share.value for share in shares) == pytest.approx(1)
    by_category = [findings.shares[category][0].value for category in study.categories]  # type: ignore[index]
    assert shares[0].value == pytest.approx(np.mean(by_category))
    assert sum(map(sum, findings.chosen)) == findings.votes[ALL] == sum(findings.decided)
    fits, opposed = findings.metrics
    assert fits.agreement.value + opposed.agreement.value == pytest.approx(1)
    assert fits.agreement.value > 0.6
    assert fits.rho == pytest.approx(-opposed.rho)  # type: ignore[operator]
    assert fits.rho > 0.4  # type: ignore[operator]


def test_best_of_all_agrees_with_choix(new_study: Callable[..., Study], ballots: Ballots) -> None:
    study = new_study(Plan("best", raters=40))
    found = ballots(study)
    answers = [a for ballot in found for a in ballot.of_kind("vote") if a.chosen is not None]
    data = [(a.trial.shown[a.chosen], [m for at, m in enumerate(a.trial.shown) if at != a.chosen]) for a in answers]
    expected = choix.ilsr_top1(4, data)
    scale = [estimate.value for estimate in analyse(study, found, resamples=0).scale]
    assert scale == pytest.approx(expected - expected.mean(), abs=0.01)


def test_intervals_know_that_votes_cluster(new_study: Callable[..., Study]) -> None:
    """Half of the raters always prefer the first of two methods, half never: votes are many, raters are few."""
    study = new_study(Plan(raters=20, trials=6, repeats=0), methods=2)
    found = [
        Ballot(Path(), rater, str(rater), "", [Answer(t, t.shown.index(rater % 2), 3.0) for t in trials], len(trials))
        for rater, trials in ((rater, [t for t in study.trials_of(rater) if t.kind == "vote"]) for rater in range(20))
    ]
    share = analyse(study, found, resamples=200).wins[ALL][0]  # type: ignore[index]
    naive = 2 * 1.96 * np.sqrt(0.25 / 120)
    assert share.value == 0.5
    assert share.high - share.low > 1.8 * naive  # type: ignore[operator]


def test_coins_agree_as_chance_does(new_study: Callable[..., Study], ballots: Ballots) -> None:
    study = new_study(Plan(raters=40))
    findings = analyse(study, ballots(study, (1.0, 1.0, 1.0, 1.0)), resamples=0)
    assert findings.alpha == pytest.approx(0, abs=0.05)
    assert findings.left == pytest.approx(0.5, abs=0.05)
    assert findings.scale[0].low is None


@pytest.mark.parametrize(("mode", "word"), [("pairs", "more"), ("best", "most")])
def test_the_question_is_the_one_that_was_asked(new_study: Callable[..., Study], mode, word: str) -> None:
    assert new_study(Plan(mode, raters=10)).question == f"Which picture is {word} similar to the reference?"


def test_nobody_decided(new_study: Callable[..., Study]) -> None:
    study = new_study(Plan(raters=2))
    unsure = [Ballot(Path(), 0, "t", "", [Answer(trial, None, 1.0) for trial in study.trials_of(0)], 1)]
    with pytest.raises(UserError, match="no vote to analyse"):
        analyse(study, unsure)
