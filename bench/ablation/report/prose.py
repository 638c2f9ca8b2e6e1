"""Sentences written from the numbers: what each comparison shows, and which of the paper's orders hold here."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from bench.ablation.experiment import Experiment
from bench.ablation.report.results import Findings, Result, Standing, label, reasons_untold

STANDINGS: tuple[Standing, ...] = ("holds here", "does not hold here", "opposite here", "cannot be told")
COUNTED = {
    "holds here": ("holds here", "hold here"),
    "does not hold here": ("does not hold here", "do not hold here"),
    "opposite here": ("is opposite here", "are opposite here"),
    "cannot be told": ("cannot be told", "cannot be told"),
}


def sentences(experiment: Experiment, findings: Findings) -> tuple[str, ...]:
    """One line that counts the paper's orders, one for each comparison, and one for each that could not be measured."""
    lines = list(_count(findings.results))
    for _, group in groupby(findings.results, key=lambda result: (result.difference.of, result.difference.against)):
        lines.append(_comparison(experiment, list(group)))
    lines += [f"Cannot be told: {reason}." for reason in reasons_untold(findings.results)]
    return (*lines, *(f"{line}." for line in findings.unmeasured))


def finding(result: Result) -> str:
    """A result in one phrase: "Distance lower: -0.0240 [-0.0281, -0.0199], 12 of 12 seeds, p = 0.0015 after Holm"."""
    measure, test, digits = result.difference.measure, result.paired, result.difference.measure.digits + 1
    unit = f" {measure.unit}" if measure.unit else ""
    parts = [f"{signed(test.mean, digits)}{unit}{interval(test.low, test.high, digits)}", signs(result)]
    if result.verdict != "cannot be told":
        parts.append(f"p = {result.holm_p:.2g} after Holm")
    return f"{measure.label} {result.verdict}: {', '.join(parts)}"


def signs(result: Result) -> str:
    """In how many seeds the difference has the sign of its mean: "11 of 12 seeds"."""
    test = result.paired
    count = test.above if test.mean > 0 else test.below
    return f"{count} of {test.n} seed{'s' if test.n != 1 else ''}"


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}"


def interval(low: float | None, high: float | None, digits: int) -> str:
    """ " [-0.028, -0.020]" with a space before it; empty without an interval."""
    return "" if low is None or high is None else f" [{signed(low, digits)}, {signed(high, digits)}]"


def _count(results: Sequence[Result]) -> Iterator[str]:
    judged = [result.standing for result in results if result.standing is not None]
    if judged:
        counts = [(judged.count(standing), COUNTED[standing]) for standing in STANDINGS]
        shown = [f"{count} {words[0] if count == 1 else words[1]}" for count, words in counts if count]
        orders = "order" if len(judged) == 1 else "orders"
        yield f"Of {len(judged)} {orders} of the paper (comparisons × measures), {', '.join(shown)}."


def _comparison(experiment: Experiment, results: Sequence[Result]) -> str:
    first = results[0].difference
    head = f"{label(experiment, first.of)} against {label(experiment, first.against)}"
    if first.matched_x is not None:
        head += f" at equal {first.matched_x.label}"
    return f"{head}: {'; '.join(map(_with_standing, results))}."


def _with_standing(result: Result) -> str:
    text = finding(result)
    difference = result.difference
    if difference.outside:
        total = len(difference.outside) + len(difference.seeds)
        text += f" (outside the curve's range in {len(difference.outside)} of {total} seeds)"
    if result.order is None:
        return text
    if result.standing is None:
        return f"{text} (the paper's own figures are divided)"
    text += f" (the paper has it {result.order.text()}: {result.standing}"
    if result.paper_difference is not None and result.verdict not in ("lower", "higher"):
        digits = difference.measure.digits + 1
        text += f"; an effect of that size would be {signed(result.paper_difference, digits)} here"
        low, high = result.paired.low, result.paired.high
        if low is not None and high is not None and not low <= result.paper_difference <= high:
            text += ", outside the interval"
        elif result.seeds_needed_paper is not None:
            text += f" and take {result.seeds_needed_paper} seeds to find"
    return f"{text})"
