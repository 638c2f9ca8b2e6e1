"""The design is balanced, seeded, and asks what it says it asks."""

from collections import Counter
from dataclasses import replace

import pytest

from bench.study.design import BAD, GOOD, Plan, draw
from tsd.errors import UserError


@pytest.mark.parametrize(
    ("mode", "methods", "images", "trials"),
    [("pairs", 4, 10, None), ("pairs", 3, 7, 11), ("pairs", 2, 5, 5), ("best", 4, 25, None), ("best", 3, 8, 5)],
)
def test_units_and_positions_are_balanced(mode, methods: int, images: int, trials: int | None) -> None:
    design = draw(methods, images, Plan(mode, raters=23, trials=trials))
    units: Counter[tuple[int, frozenset[int]]] = Counter()
    places: dict[tuple[int, frozenset[int]], Counter[int]] = {}
    for asked in design:
        votes = [trial for trial in asked if trial.kind == "vote"]
        keys = [(trial.image, frozenset(trial.shown)) for trial in votes]
        assert len(set(keys)) == len(keys)
        seen = Counter(trial.image for trial in votes)
        assert max(seen.values()) - min(seen[image] for image in range(images)) <= 1
        for trial, key in zip(votes, keys, strict=True):
            units[key] += 1
            places.setdefault(key, Counter())[trial.shown.index(min(key[1]))] += 1
    pairs = methods * (methods - 1) // 2 if mode == "pairs" else 1
    assert len(units) == images * pairs
    assert max(units.values()) - min(units.values()) <= 1
    width = 2 if mode == "pairs" else methods
    for counts in places.values():
        assert max(counts.values()) - min(counts[place] for place in range(width)) <= 1


@pytest.mark.parametrize("mode", ["pairs", "best"])
def test_repeats_and_traps(mode) -> None:
    for asked in draw(4, 10, Plan(mode, raters=9, trials=10, repeats=0.3, traps=5)):
        kinds = Counter(trial.kind for trial in asked)
        assert kinds == {"vote": 10, "repeat": 3, "trap": 5}
        assert asked[0].kind == "vote"
        for place, trial in enumerate(asked):
            if trial.kind == "repeat":
                first = next(
                    at
                    for at, other in enumerate(asked)
                    if other.shown[::-1] == trial.shown and other.image == trial.image
                )
                assert first < place - 1
            if trial.kind == "trap":
                assert Counter(trial.shown) == {GOOD: 1, BAD: (2 if mode == "pairs" else 4) - 1}
            else:
                assert min(trial.shown) >= 0


def test_the_seed_decides() -> None:
    plan = Plan(raters=5)
    assert draw(3, 6, plan) == draw(3, 6, plan)
    assert draw(3, 6, plan) != draw(3, 6, replace(plan, seed=1))
    orders = [[(trial.image, trial.shown) for trial in asked] for asked in draw(3, 6, plan)]
    assert len({str(order) for order in orders}) == 5


@pytest.mark.parametrize(
    ("methods", "images", "plan", "message"),
    [
        (1, 5, Plan(), "at least two methods"),
        (4, 5, Plan(trials=31), "1 to 30"),
        (10, 5, Plan("best"), "at most nine"),
        (2, 5, Plan(raters=0), "needs images and raters"),
        (2, 5, Plan(repeats=1.5), "--duplicates"),
    ],
)
def test_what_cannot_be_asked(methods: int, images: int, plan: Plan, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(methods, images, plan)
