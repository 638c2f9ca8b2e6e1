"""Which pictures each rater sees, in which order and on which side: a seeded, balanced design.

A *unit* is what is voted on: a pair of methods on one image, or with `best` all methods on one image. All units stand
on one circle, on which images and pairs alternate; each rater takes the next arc of it. So units get equally many votes
(up to one), and a rater never meets a unit twice but as a hidden repeat. Of the votes on a unit, each method stands in
every position equally often (up to one). The order of a rater's trials is random.

Two kinds of trials are not counted as votes. A *repeat* shows a unit of the same rater again, with the sides reversed.
A *trap* has one right answer: a good picture beside the same picture in coarse blocks.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from tsd.errors import UserError

Mode = Literal["pairs", "best"]
Kind = Literal["vote", "repeat", "trap"]
GOOD, BAD = -1, -2
"""What a trap shows in place of methods."""
MOST_TRIALS = 60
"""Votes of a rater unless asked otherwise: about ten minutes."""


@dataclass(frozen=True)
class Trial:
    """One question to a rater. `shown` are places of methods from left to right, of a trap `GOOD` and `BAD`."""

    image: int
    shown: tuple[int, ...]
    kind: Kind


@dataclass(frozen=True)
class Plan:
    """What is asked of the raters.

    Attributes:
        trials: votes of each rater; None for all units, at most `MOST_TRIALS`.
        repeats: the share of a rater's votes that is asked again.
        traps: traps for each rater.
    """

    mode: Mode = "pairs"
    raters: int = 50
    trials: int | None = None
    repeats: float = 0.1
    traps: int = 4
    seed: int = 42


def draw(methods: int, images: int, plan: Plan) -> list[list[Trial]]:
    """The trials of every rater, in the order in which they are asked.

    Raises:
        UserError: fewer than two methods, more trials than units, or a number that makes no sense.
    """
    _check(methods, images, plan)
    chance = random.Random(f"study {plan.seed}")
    units = _circle(methods, images, plan.mode, chance)
    count = plan.trials if plan.trials is not None else min(len(units), MOST_TRIALS)
    if not 1 <= count <= len(units):
        what = f"{images} images of {methods} methods give {len(units)} different questions"
        raise UserError(f"--trials {count}: {what}, so that a rater can get 1 to {len(units)}")
    first = {unit: chance.randrange(len(unit[1])) for unit in units}
    seen = dict.fromkeys(units, 0)
    design: list[list[Trial]] = []
    for rater in range(plan.raters):
        votes: list[Trial] = []
        for step in range(count):
            unit = units[(rater * count + step) % len(units)]
            image, compared = unit
            turn = (first[unit] + seen[unit]) % len(compared)
            seen[unit] += 1
            votes.append(Trial(image, compared[turn:] + compared[:turn], "vote"))
        chance.shuffle(votes)
        design.append(_with_checks(votes, methods, images, plan, chance))
    return design


def _check(methods: int, images: int, plan: Plan) -> None:
    if methods < 2:
        raise UserError(f"a study compares at least two methods, found {methods}")
    if methods > 9 and plan.mode == "best":
        raise UserError(f"--mode best shows all methods at once, at most nine; found {methods}")
    if images < 1 or plan.raters < 1:
        raise UserError(f"a study needs images and raters, found {images} and {plan.raters}")
    if not 0 <= plan.repeats <= 1 or plan.traps < 0:
        raise UserError(f"--duplicates {plan.repeats} and --traps {plan.traps}: expected 0 to 1, and 0 or more")


def _circle(methods: int, images: int, mode: Mode, chance: random.Random) -> list[tuple[int, tuple[int, ...]]]:
    """All units as (image, methods): neighbours have other images, and pairs of methods come by turns."""
    order = list(range(images))
    chance.shuffle(order)
    if mode == "best":
        everyone = list(range(methods))
        chance.shuffle(everyone)
        return [(image, tuple(everyone)) for image in order]
    pairs = list(combinations(range(methods), 2))
    chance.shuffle(pairs)
    return [
        (image, pairs[(place + lap) % len(pairs)]) for lap in range(len(pairs)) for place, image in enumerate(order)
    ]


def _with_checks(votes: Sequence[Trial], methods: int, images: int, plan: Plan, chance: random.Random) -> list[Trial]:
    """Adds repeats of early votes to the second half, a few questions later at least, and traps after the first."""
    trials = list(votes)
    half = (len(votes) + 1) // 2
    for trial in chance.sample(votes[:half], min(half, round(plan.repeats * len(votes)))):
        place = chance.randint(min(half + 3, len(trials)), len(trials))
        trials.insert(place, Trial(trial.image, trial.shown[::-1], "repeat"))
    width = 2 if plan.mode == "pairs" else methods
    for _ in range(plan.traps):
        shown = [BAD] * width
        shown[chance.randrange(width)] = GOOD
        trials.insert(chance.randint(1, len(trials)), Trial(chance.randrange(images), tuple(shown), "trap"))
    return trials
