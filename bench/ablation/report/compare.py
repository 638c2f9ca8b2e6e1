"""Compares the records of two sweeps value by value, to show what a change of the code moved. For CI.

Every score of the old records, of sets and of single images, and every point of their learning curves must be in the
new ones. Costs, logs and versions of the code are not compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.ablation.domain import Measure, open_domain
from bench.ablation.records import Row, SweepRecords, read_records
from tsd.errors import UserError

Place = tuple[str, int]
"""Name of an arm or reference, and seed."""


@dataclass(frozen=True)
class Moved:
    """One value that moved or disappeared. `place` is such as "full · seed 0 · mse · step 20"."""

    place: str
    text: str

    def line(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True)
class SweepComparison:
    """The result: number of compared values, failures, and by measure the largest absolute change and that allowed."""

    compared: int
    failures: tuple[Moved, ...]
    largest: Mapping[str, float]
    allowed: Mapping[str, float]


def compare_sweeps(old: Path, new: Path, tolerances: Mapping[str, float], *, subset: bool = False) -> SweepComparison:
    """Compares the records in two folders of `bench sweep`.

    Args:
        tolerances: largest allowed absolute change by measure, over half a unit of the last digit in tables.
        subset: `new` has only some arms or seeds, and only those are compared.

    Raises:
        UserError: a folder has no records, they are of two domains, or a tolerance is for no measure of theirs.
    """
    before, after = read_records(old), read_records(new)
    if before.domain != after.domain:
        raise UserError(f"{old} is of the domain {before.domain}, {new} of {after.domain}; expected the same")
    measures = open_domain(before.domain).measures
    names = [measure.name for measure in measures]
    for name in tolerances:
        if name not in names:
            raise UserError(f"--tolerance {name}: no such measure; the domain {before.domain} has {', '.join(names)}")
    allowed = {**last_digits(measures), **tolerances}
    olds, news = _by_place(before), _by_place(after)
    compared, largest = 0, dict.fromkeys(names, 0.0)
    failures: list[Moved] = []
    for (name, seed), row in olds.items():
        place, now = f"{name} · seed {seed}", news.get((name, seed))
        if now is None:
            if not subset:
                failures.append(Moved(place, "is gone"))
            continue
        if dict(now.overrides) != dict(row.overrides):
            failures.append(Moved(place, f"had the settings {dict(row.overrides)}, now has {dict(now.overrides)}"))
            continue
        found = dict(_values(now, names))
        for (measure, where), value in _values(row, names):
            there = found.get((measure, where))
            if there is None:
                failures.append(Moved(f"{place} · {measure} · {where}", f"was {value:.6g}, is gone"))
                continue
            compared += 1
            change = there - value
            largest[measure] = max(largest[measure], abs(change))
            if abs(change) > allowed[measure]:
                text = f"{value:.6g} → {there:.6g} ({change:+.3g}, allowed ±{allowed[measure]:g})"
                failures.append(Moved(f"{place} · {measure} · {where}", text))
    if not compared and not failures:
        raise UserError(f"{new} has no arm and seed of {old}; expected some")
    return SweepComparison(compared, tuple(failures), largest, allowed)


def last_digits(measures: Sequence[Measure]) -> dict[str, float]:
    """Half a unit of the last digit that tables print, by measure: records closer than that are called equal.

    fp32 on other vector units differs in the last bits, and training adds these up; see docs/ablations.md.
    """
    return {measure.name: 0.5 * 10.0**-measure.digits for measure in measures}


def _by_place(records: SweepRecords) -> dict[Place, Row]:
    return {(row.name, row.seed): row for row in records.rows}


def _values(row: Row, names: Sequence[str]) -> Iterator[tuple[tuple[str, str], float]]:
    """((measure, "set", "image 0007" or "step 40"), value) for everything recorded of a row."""
    for name in names:
        if name in row.scores:
            yield (name, "set"), row.scores[name]
        for image, value in row.images.get(name, {}).items():
            yield (name, f"image {image}"), value
        for point in row.curve:
            if name in point:
                yield (name, f"step {point['step']:g}"), point[name]
