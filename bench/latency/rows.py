"""The rows of a latency table: which methods, in which form, and what keeps one from being measured here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.methods import get_method
from bench.methods.base import MethodSpec
from bench.options import RunOptions
from bench.paper.tables import TABLES, paper_figures
from tsd.errors import UserError

RELEASED = "released"
PROFILES: dict[str, tuple[str, ...]] = {
    "mini": (
        "tsd-sr-mini@released",
        "tsd-sr-mini",
        "tsd-sr-mini-small-decoder",
        "osediff-mini",
        "tsd-sr-mini-sd2@released",
        "tsd-sr-mini-sd2",
        "teacher-20",
        "realesrgan-compact",
        "bicubic",
    ),
    "paper": (
        "stablesr",
        "diffbir",
        "seesr",
        "supir",
        "pasd",
        "resshift",
        "addsr-4",
        "addsr",
        "sinsr",
        "osediff",
        "tsd-sr@released",
        "tsd-sr",
        "pisa-sr",
        "adcsr",
        "realesrgan",
        "femasr",
        "realesrgan-compact",
    ),
}
"""BSRGAN and LDL have the network of Real-ESRGAN; the recipes of the mini bases share theirs, which shows the noise."""
REFERENCES = {"mini": ("tsd-sr-mini@released", "osediff-mini"), "paper": ("tsd-sr@released", "osediff")}
"""The rows that ratios refer to: TSD-SR as it was released, and OSEDiff, the unit of the mobile challenge of 2026."""


@dataclass(frozen=True)
class Row:
    """A method in one form.

    Attributes:
        spec: of the method.
        form: one of the spec's forms, or "" for the usual one.
        random: whether it is built with random weights.
    """

    spec: MethodSpec
    form: str
    random: bool

    @property
    def name(self) -> str:
        """The name in records and paths."""
        return f"{self.spec.name}-{self.form}" if self.form else self.spec.name

    @property
    def display(self) -> str:
        words = [self.spec.display]
        words += [self.spec.forms[self.form]] if self.form else []
        words += ["random weights"] if self.random else []
        return ", ".join(words)

    def options(self, options: RunOptions) -> RunOptions:
        return replace(options, form=self.form, random_weights=self.random)

    def reasons_missing(self, options: RunOptions) -> list[str]:
        """What keeps it from being measured here, one line per cause; looks at file names only."""
        if self.random:
            return []
        return [item.line() for item in self.spec.missing(self.options(options))]


def rows_of(profile: str, methods: Sequence[str] | None, random_weights: bool) -> list[Row]:
    """The rows by name, with those that ratios refer to; in the profile's order, then as they were named.

    Raises:
        UserError: an unknown method or form, or published images, which cannot be timed.
    """
    asked = [_row(name, random_weights) for name in (methods or PROFILES[profile])]
    references = [_row(name, random_weights) for name in REFERENCES[profile]]
    found = {row.name: row for row in [*references, *asked]}
    order = [_row(name, random_weights).name for name in PROFILES[profile]]
    return [found[name] for name in order if name in found] + [row for name, row in found.items() if name not in order]


def reference_names(profile: str) -> tuple[str, str]:
    """The names in records of the rows that ratios refer to."""
    first, second = (_row(name, False).name for name in REFERENCES[profile])
    return first, second


def _row(text: str, random_weights: bool) -> Row:
    name, _, form = text.partition("@") if ":" not in text else (text, "", "")
    spec = get_method(name)
    if form and form not in spec.forms:
        known = ", ".join(f"{name}@{known}" for known in spec.forms) or "none"
        raise UserError(f"{name} has no form {form!r}; its forms: {known}")
    if spec.kind == "published":
        raise UserError(f"{name} is published images: there is nothing to time")
    return Row(spec, form, random_weights and spec.random_weights)


def paper_seconds(row: Row) -> float | None:
    """What the paper's Table 3 printed for the method, at 512 x 512; of TSD-SR it measured the released form."""
    if row.spec.card is None or row.form != (RELEASED if RELEASED in row.spec.forms else ""):
        return None
    for figures in paper_figures(TABLES["table3"].paper):
        if (figures["method"], figures["steps"]) == (row.spec.display, str(row.spec.steps)):
            return float(figures["seconds"])
    return None
