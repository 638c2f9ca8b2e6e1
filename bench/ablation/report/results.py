"""What the records say: each comparison in each measure, with its verdict; and whether the paper's orders hold here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bench.ablation.domain import Domain, Measure
from bench.ablation.experiment import Experiment, measures_of
from bench.ablation.records import Row, SweepRecords
from bench.ablation.report.published import Order, Published
from bench.ablation.statistics import (
    ALPHA,
    Paired,
    crossed_interval,
    holm,
    on_curve,
    paired,
    seeds_for_power,
    too_few_seeds,
)

Verdict = Literal["lower", "higher", "no significant difference", "cannot be told"]
Standing = Literal["holds here", "does not hold here", "opposite here", "cannot be told"]


@dataclass(frozen=True)
class Difference:
    """A comparison in one measure, before the family is known.

    Attributes:
        of, against: names of arms; for a comparison at equal x, `against` is the prefix of the references.
        seeds: those in which both sides are measured, with `differences` in the same order.
        images: 95 % interval over seeds and images, crossed; None for measures of the set.
        level: mean of the other side.
        matched_x: the measure that is held equal, for comparisons with a curve; None for pairs of arms.
        outside: seeds in which the curve does not reach the arm.
    """

    of: str
    against: str
    measure: Measure
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    level: float
    images: tuple[float, float] | None = None
    matched_x: Measure | None = None
    outside: tuple[int, ...] = ()


@dataclass(frozen=True)
class Result:
    """A comparison in one measure, judged.

    Attributes:
        holm_p: p after Holm's correction over the `family` tests of the report.
        verdict: whether `of` is lower or higher than `against`.
        seeds_needed: for probability .8 at the observed d_z.
        order: what the paper says about the two, if it does.
        paper_difference: the paper's relative effect in units of the measure here; None without a column.
        seeds_needed_paper: for probability .8 at that effect and the spread observed here.
        standing: whether the paper's order holds; None without one.
    """

    difference: Difference
    paired: Paired
    holm_p: float
    family: int
    verdict: Verdict
    seeds_needed: int | None
    order: Order | None = None
    paper_difference: float | None = None
    seeds_needed_paper: int | None = None
    standing: Standing | None = None

    def why_untold(self) -> str | None:
        """Why the difference cannot be told, and how many seeds can tell; None if it can."""
        return too_few_seeds(self.paired.n, self.family)

    def better(self) -> bool | None:
        """Whether `of` is significantly better (True) or worse (False); None if neither."""
        if self.verdict not in ("lower", "higher") or self.difference.measure.higher_is_better is None:
            return None
        return (self.verdict == "higher") == self.difference.measure.higher_is_better


@dataclass(frozen=True)
class Findings:
    """All results in the order of the file, and the comparisons that no seed can answer, each with its reason."""

    results: tuple[Result, ...]
    unmeasured: tuple[str, ...]


def reasons_untold(results: Sequence[Result]) -> tuple[str, ...]:
    """Each reason why differences cannot be told, once."""
    return tuple(dict.fromkeys(reason for result in results if (reason := result.why_untold()) is not None))


def find(experiment: Experiment, domain: Domain, records: SweepRecords, published: Published) -> Findings:
    """Every comparison that the file asks for; Holm's family are those that can be measured."""
    found: list[Difference] = []
    unmeasured: list[str] = []
    for difference in [*_pairs(experiment, domain, records), *_at_equal_x(experiment, domain, records)]:
        if difference.seeds:
            found.append(difference)
        else:
            where = " within the curve's range" if difference.outside else ""
            text = f"{label(experiment, difference.of)} against {label(experiment, difference.against)}, "
            unmeasured.append(f"{text}{difference.measure.label}: no seed in which both are measured{where}")
    tests = [paired(difference.differences) for difference in found]
    adjusted = holm([test.p for test in tests])
    results = [
        _judge(difference, test, p, len(found), published)
        for difference, test, p in zip(found, tests, adjusted, strict=True)
    ]
    return Findings(tuple(results), tuple(dict.fromkeys(unmeasured)))


def label(experiment: Experiment, name: str) -> str:
    """How an arm is called in print; a family of references by its prefix."""
    return next((arm.label for arm in experiment.arms if arm.name == name), name)


def _pairs(experiment: Experiment, domain: Domain, records: SweepRecords) -> Iterator[Difference]:
    for comparison in experiment.comparisons:
        first, second = records.of_arm(comparison.of), records.of_arm(comparison.against)
        seeds = sorted(first.keys() & second.keys())
        for measure in measures_of(comparison.metrics or experiment.metrics, domain):
            values = [(first[seed].scores[measure.name], second[seed].scores[measure.name]) for seed in seeds]
            yield Difference(
                comparison.of,
                comparison.against,
                measure,
                tuple(seeds),
                tuple(a - b for a, b in values),
                float(np.mean([b for _, b in values])) if values else 0.0,
                _over_images([(first[seed], second[seed]) for seed in seeds], measure),
            )


def _at_equal_x(experiment: Experiment, domain: Domain, records: SweepRecords) -> Iterator[Difference]:
    matched = experiment.matched
    if matched is None:
        return
    family = [name for name in records.references() if name.startswith(matched.references)]
    curves = [records.of_reference(name) for name in family]
    (x,) = measures_of([matched.x], domain)
    for arm in experiment.matched_arms():
        cells = records.of_arm(arm)
        seeds = sorted(seed for seed in cells if any(seed in curve for curve in curves))
        for measure in measures_of(matched.metrics, domain):
            inside: dict[int, tuple[float, float]] = {}
            for seed in seeds:
                points = [curve[seed].scores for curve in curves if seed in curve]
                xs, ys = ([point[name] for point in points] for name in (x.name, measure.name))
                there = on_curve(xs, ys, cells[seed].scores[x.name])
                if there is not None:
                    inside[seed] = (cells[seed].scores[measure.name], there)
            yield Difference(
                arm,
                matched.references,
                measure,
                tuple(inside),
                tuple(a - b for a, b in inside.values()),
                float(np.mean([b for _, b in inside.values()])) if inside else 0.0,
                matched_x=x,
                outside=tuple(seed for seed in seeds if seed not in inside),
            )


def _over_images(pairs: Sequence[tuple[Row, Row]], measure: Measure) -> tuple[float, float] | None:
    """The crossed interval over the images that every cell has."""
    if not measure.per_image or len(pairs) < 2:
        return None
    sides = [(a.images.get(measure.name, {}), b.images.get(measure.name, {})) for a, b in pairs]
    names = [name for name in sides[0][0] if all(name in a and name in b for a, b in sides)]
    if len(names) < 2:
        return None
    return crossed_interval(np.array([[a[name] - b[name] for name in names] for a, b in sides], dtype=np.float64))


def _judge(difference: Difference, test: Paired, holm_p: float, family: int, published: Published) -> Result:
    if too_few_seeds(test.n, family) is not None:
        verdict: Verdict = "cannot be told"
    elif holm_p < ALPHA:
        verdict = "lower" if test.mean < 0 else "higher"
    else:
        verdict = "no significant difference"
    measure = difference.measure
    order = None if difference.matched_x else published.order(difference.of, difference.against, measure)
    expected = order.relative * abs(difference.level) if order and order.relative is not None else None
    spread = abs(test.mean / test.d_z) if test.d_z else 0.0
    result = Result(
        difference,
        test,
        holm_p,
        family,
        verdict,
        seeds_for_power(test.d_z),
        order,
        expected,
        seeds_for_power(expected / spread) if expected is not None and spread > 0 else None,
    )
    return replace(result, standing=_standing(result))


def _standing(result: Result) -> Standing | None:
    """Whether the paper's order holds.

    Without a significant difference it does not hold if the interval includes zero and excludes an effect of the
    paper's relative size. An interval with both in it decides nothing, and neither does one that excludes zero only
    until Holm's correction.
    """
    order = result.order
    if order is None or order.first_is_better is None:
        return None
    if result.verdict == "cannot be told":
        return "cannot be told"
    better = result.better()
    if better is not None:
        return "holds here" if better == order.first_is_better else "opposite here"
    test, expected = result.paired, result.paper_difference
    if test.low is None or test.high is None or test.low > 0 or test.high < 0:
        return "cannot be told"
    return "cannot be told" if expected is not None and test.low <= expected <= test.high else "does not hold here"
