"""The paper's tables as data: their rows, columns and test sets, and the files of the figures that the paper printed.

A profile says what is measured: `mini` needs only what the repository ships, `paper` needs the real test sets and
models. A table without profiles cannot be measured by this version; its published figures are in `bench/paper`. A
method without an adapter in the harness stays in the table, as not measured.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tsd.errors import UserError, nearest

PAPER_DIR = Path(__file__).parent
PAPER_METRICS = ("psnr", "ssim", "lpips", "dists", "fid", "niqe", "musiq", "maniqa", "clipiqa")
REAL_SETS = ("drealsr", "realsr", "div2k-val")


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper: the method's name in `METHODS`, its name in the paper, and its steps."""

    method: str
    display: str
    steps: int | None


@dataclass(frozen=True)
class Profile:
    """What a table measures by default.

    Attributes:
        rows: methods from top to bottom.
        allow_missing: whether absent test sets and metrics leave out cells (True) or end the run with a list (False).
        reference: the row that paired differences refer to.
        pairs: (method, against): rows that the table is meant to compare.
    """

    testsets: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    metrics: tuple[str, ...]
    allow_missing: bool
    reference: str = "bicubic"
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TableSpec:
    """One table of the paper.

    Attributes:
        paper: the CSV of its published figures.
        profiles: what `bench run` measures; empty for a table that it does not make.
        verb: the command that measures it instead; empty for none.
    """

    name: str
    title: str
    paper: str
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    verb: str = ""


BICUBIC = PaperRow("bicubic", "Bicubic", None)
TSD_SR = PaperRow("tsd-sr", "TSD-SR", 1)
TSD_SR_MINI = PaperRow("tsd-sr-mini", "TSD-SR, mini base", 1)
TSD_SR_MINI_SMALL = PaperRow("tsd-sr-mini-small-decoder", "TSD-SR, mini base, small decoder", 1)
GANS = (
    PaperRow("bsrgan", "BSRGAN", 1),
    PaperRow("realesrgan", "Real-ESRGAN", 1),
    PaperRow("ldl", "LDL", 1),
    PaperRow("femasr", "FeMASR", 1),
)

NEWER = (
    PaperRow("s3diff", "S3Diff", 1),
    PaperRow("pisa-sr", "PiSA-SR", 1),
    PaperRow("adcsr", "AdcSR", 1),
    PaperRow("invsr", "InvSR", 1),
    PaperRow("hypir", "HYPIR", 1),
    PaperRow("tadsr", "TADSR", 1),
)
"""One-step methods that the paper does not compare with, oldest first: a block below Table 1's own rows."""
NEWER_TABLE = "table1"
PUBLISHED = "-published"
"""What the names of rows end in that are images published by a method's authors."""
INTERPOLATIONS = {"bicubic", "lanczos"}

TABLES: dict[str, TableSpec] = {
    spec.name: spec
    for spec in (
        TableSpec(
            "table1",
            "Table 1: one-step methods",
            "table1.csv",
            {
                "mini": Profile(
                    ("mini",),
                    (
                        BICUBIC,
                        PaperRow("lanczos", "Lanczos", None),
                        PaperRow("teacher-20", "Mini teacher", 20),
                        PaperRow("osediff-mini", "OSEDiff recipe (VSD only), mini base", 1),
                        TSD_SR_MINI,
                        TSD_SR_MINI_SMALL,
                        PaperRow("realesrgan-compact", "Real-ESRGAN (compact)", 1),
                    ),
                    PAPER_METRICS,
                    allow_missing=True,
                    pairs=((TSD_SR_MINI_SMALL.method, TSD_SR_MINI.method),),
                ),
                "paper": Profile(
                    REAL_SETS,
                    (
                        BICUBIC,
                        PaperRow("osediff", "OSEDiff", 1),
                        PaperRow("addsr", "AddSR", 1),
                        PaperRow("sinsr", "SinSR", 1),
                        TSD_SR,
                    ),
                    PAPER_METRICS,
                    allow_missing=False,
                ),
            },
        ),
        TableSpec(
            "table2",
            "Table 2: multi-step methods",
            "table2.csv",
            {
                "mini": Profile(
                    ("mini",),
                    (
                        BICUBIC,
                        PaperRow("teacher-20", "Mini teacher", 20),
                        PaperRow("teacher-5", "Mini teacher, 5 steps", 5),
                        PaperRow("teacher-1", "Mini teacher, 1 step", 1),
                        TSD_SR_MINI,
                    ),
                    PAPER_METRICS,
                    allow_missing=True,
                    pairs=(("tsd-sr-mini", "teacher-20"), ("tsd-sr-mini", "teacher-1")),
                ),
                "paper": Profile(
                    REAL_SETS,
                    (
                        BICUBIC,
                        PaperRow("stablesr", "StableSR", 200),
                        PaperRow("diffbir", "DiffBIR", 50),
                        PaperRow("seesr", "SeeSR", 50),
                        PaperRow("supir", "SUPIR", 50),
                        PaperRow("pasd", "PASD", 20),
                        PaperRow("resshift", "ResShift", 15),
                        PaperRow("addsr-4", "AddSR", 4),
                        TSD_SR,
                    ),
                    PAPER_METRICS,
                    allow_missing=False,
                ),
            },
        ),
        TableSpec("table3", "Table 3: computational complexity", "table3.csv", verb="bench latency"),
        TableSpec("table4", "Table 4: ablation of TSM and DASM", "table4.csv"),
        TableSpec(
            "table5",
            "Table 5: the same base model",
            "table5.csv",
            {
                "mini": Profile(
                    ("mini",),
                    (
                        BICUBIC,
                        PaperRow("osediff-mini-sd2", "OSEDiff recipe (VSD only), mini SD2 base", 1),
                        PaperRow("tsd-sr-mini-sd2", "TSD-SR, mini SD2 base", 1),
                        PaperRow("osediff-mini", "OSEDiff recipe (VSD only), mini base", 1),
                        TSD_SR_MINI,
                    ),
                    PAPER_METRICS,
                    allow_missing=True,
                    pairs=(("tsd-sr-mini-sd2", "osediff-mini-sd2"), ("tsd-sr-mini", "osediff-mini")),
                ),
                "paper": Profile(
                    ("drealsr",),
                    (
                        BICUBIC,
                        PaperRow("addsr", "AddSR (SD2-base)", 1),
                        PaperRow("tsd-sr-sd2", "TSD-SR (SD2-base)", 1),
                        PaperRow("osediff", "OSEDiff (SD2.1-base)", 1),
                        PaperRow("tsd-sr-sd21", "TSD-SR (SD2.1-base)", 1),
                    ),
                    ("lpips", "dists", "niqe", "musiq", "clipiqa"),
                    allow_missing=False,
                    pairs=(("tsd-sr-sd2", "addsr"), ("tsd-sr-sd21", "osediff")),
                ),
            },
        ),
        TableSpec("table6", "Table 6: N and s of DASM", "table6.csv"),
        TableSpec(
            "table7",
            "Table 7: GAN-based methods",
            "table7.csv",
            {
                "mini": Profile(
                    ("mini",),
                    (BICUBIC, *GANS, PaperRow("realesrgan-compact", "Real-ESRGAN (compact)", 1), TSD_SR_MINI),
                    PAPER_METRICS,
                    allow_missing=True,
                ),
                "paper": Profile(
                    REAL_SETS,
                    (BICUBIC, *GANS, TSD_SR),
                    PAPER_METRICS,
                    allow_missing=False,
                ),
            },
        ),
    )
}


def get_profile(table: str, profile: str, *, newer: bool = False) -> tuple[TableSpec, Profile]:
    """The table and its profile.

    Args:
        newer: whether the methods after the paper follow the profile's rows.

    Raises:
        UserError: no such table or profile, or no newer methods for it; the message lists those that exist.
    """
    if table not in TABLES:
        near = nearest(table, TABLES)
        hint = f" Did you mean {near!r}?" if near else ""
        raise UserError(f"unknown table {table!r}.{hint} Known: {', '.join(TABLES)}")
    spec = TABLES[table]
    if profile not in spec.profiles:
        able = [f"--table {name} --profile {known}" for name, other in TABLES.items() for known in other.profiles]
        if spec.verb:
            raise UserError(f"{table} is measured by `{spec.verb} --table {table} --profile {profile}`")
        raise UserError(
            f"{table} cannot be measured in the profile {profile!r} by this version (`bench paper {table}` prints the "
            f"paper's own figures). What can: {'; '.join(able)}"
        )
    if not newer:
        return spec, spec.profiles[profile]
    if (table, profile) != (NEWER_TABLE, "paper"):
        raise UserError(f"newer methods belong to --table {NEWER_TABLE} --profile paper, not to {table} in {profile}")
    extended = replace(spec.profiles[profile], rows=(*spec.profiles[profile].rows, *NEWER))
    return replace(spec, profiles={**spec.profiles, profile: extended}), extended


def is_of_the_paper(table: str, methods: Sequence[str], testsets: Sequence[str]) -> bool:
    """Whether a table has rows and test sets that its namesake in the paper, or in the profile mini, has.

    It has not if none of its test sets is one of theirs, or if every row beside the interpolations is another method.
    """
    spec = TABLES.get(table)
    profiles = spec.profiles.values() if spec else ()
    known = {row.method for profile in profiles for row in (*profile.rows, *NEWER)}
    rows = {method.removesuffix(PUBLISHED) for method in methods} - INTERPOLATIONS
    return any(name in profile.testsets for profile in profiles for name in testsets) and (
        not rows or bool(rows & known)
    )


def pairs_of(table: str, profile: str) -> tuple[tuple[str, str], ...]:
    """The pairs of a table's profile; empty if this version does not know the profile."""
    spec = TABLES.get(table)
    return spec.profiles[profile].pairs if spec and profile in spec.profiles else ()


def paper_figures(file: str) -> list[dict[str, str]]:
    """The rows of one of the paper's tables as printed, as column name -> text."""
    with open(PAPER_DIR / file, newline="") as handle:
        return list(csv.DictReader(handle))


OTHERS = "others.csv"
"""Figures that other papers and logs print for methods and test sets of these tables, each line with its source."""


PRINTED: dict[str, tuple[str, str]] = {
    **{name: (f"the paper's {spec.title}", spec.paper) for name, spec in TABLES.items()},
    "figure8": ("the paper's Figure 8: approval in the user study, in percent", "user_study.csv"),
    "appendix-c": ("the paper's Appendix C: approval in the second user study, in percent", "user_study.csv"),
    "others": ("cells of Tables 1, 2 and 7 in other papers and logs", OTHERS),
}
"""By name: the title of what was printed, and its file. The paper's other figures are pictures without numbers."""
_PLACES = {"figure8": "Fig 8", "appendix-c": "Appendix C"}


def printed_rows(name: str, dataset: str | None = None) -> tuple[str, list[dict[str, str]]]:
    """The title and the rows of a table or figure, as printed: column name -> text.

    Args:
        name: one of `PRINTED`, also written "Table 3" or "3".
        dataset: only rows of this test set, by its name in the paper or in the harness ("realsr").

    Raises:
        UserError: nothing of that name, or no rows of that test set; lists what there is.
    """
    key = name.lower().replace(" ", "")
    key = f"table{key}" if key.isdigit() else key
    if key not in PRINTED:
        near = nearest(key, PRINTED)
        hint = f" Did you mean {near!r}?" if near else ""
        raise UserError(f"the paper's {name} has no figures here.{hint} There are {', '.join(PRINTED)}")
    title, file = PRINTED[key]
    rows = [row for row in paper_figures(file) if key not in _PLACES or row["figure"] == _PLACES[key]]
    if dataset is None:
        return title, rows
    sets = dict.fromkeys(row["dataset"] for row in rows if "dataset" in row)
    chosen = [row for row in rows if row.get("dataset", "").lower() == dataset.lower()]
    if not chosen:
        raise UserError(f"{key} has no rows of {dataset!r}; it has {', '.join(sets) or 'no test sets'}")
    return title, chosen


@dataclass(frozen=True)
class Printed:
    """One printed figure: where it stands, and its text with as many digits as are printed."""

    source: str
    text: str


def printed_figures(dataset: str, method: str, steps: int | None, metric: str) -> list[Printed]:
    """What the paper's tables print for one method, test set and metric, equal figures once.

    Args:
        dataset, method: as they are displayed in tables.
        steps: as the paper counts them; it prints one method in two numbers of steps.
    """
    found: dict[str, Printed] = {}
    for spec in TABLES.values():
        for row in paper_figures(spec.paper) if spec.profiles else ():
            text = row.get(metric, "")
            if text and _is_row(row, dataset, method, steps):
                found.setdefault(text, Printed(f"the paper's {spec.title.partition(':')[0]}", text))
    return list(found.values())


def other_figures(dataset: str, method: str, steps: int | None, metric: str) -> list[Printed]:
    """What other sources print for one method, test set and metric, in the order of `others.csv`."""
    rows = (row for row in paper_figures(OTHERS) if row[metric] and _is_row(row, dataset, method, steps))
    return [Printed(row["source"], row[metric]) for row in rows]


def _is_row(row: Mapping[str, str], dataset: str, method: str, steps: int | None) -> bool:
    same = row.get("dataset") == dataset and row.get("method") == method
    return same and (steps is None or row.get("steps", str(steps)) == str(steps))
