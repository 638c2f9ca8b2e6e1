"""The paper's own figures beside a sweep: which row an arm stands for, and which of two rows the paper has ahead."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.ablation.domain import Domain, Measure
from bench.ablation.experiment import Experiment
from bench.paper.tables import PAPER_METRICS, paper_figures
from bench.report.document import PAPER_DISPLAY
from tsd.errors import UserError


@dataclass(frozen=True)
class Order:
    """What the paper's figures say about one row against another.

    Attributes:
        ahead: in how many of `total` figures the first row is ahead of the second.
        relative: (first − second) / second, averaged over the test sets; None unless one column is meant.
        column: that column's name in print; None if all of the table's columns are counted.
    """

    ahead: int
    total: int
    relative: float | None
    column: str | None

    @property
    def first_is_better(self) -> bool | None:
        """None where the paper's own test sets are divided."""
        return None if 2 * self.ahead == self.total else 2 * self.ahead > self.total

    def text(self) -> str:
        """ "ahead in 2 of 2 LPIPS figures, -5.3 % on average" """
        what = f"{self.column} figures" if self.column else "figures"
        change = f", {100 * self.relative:+.1f} % on average" if self.relative is not None else ""
        return f"ahead in {self.ahead} of {self.total} {what}{change}"


class Published:
    """One of the paper's tables, by the names that an experiment's arms give its rows. Empty without a table.

    Raises:
        UserError: an arm names no row of the table, or a measure a column that does not exist or counts the other way.
    """

    def __init__(self, experiment: Experiment, domain: Domain) -> None:
        self.table = experiment.table
        self.figures = paper_figures(f"{self.table}.csv") if self.table else []
        self.columns = [name for name in (self.figures[0] if self.figures else {}) if name in PAPER_METRICS]
        self.column_of = dict(experiment.paper)
        rows = {_row_key(name): name for name in map(row_name, self.figures)}
        self.row_of: dict[str, str] = {}
        for arm in experiment.arms:
            if arm.paper is None:
                continue
            if _row_key(arm.paper) not in rows:
                raise UserError(
                    f"{experiment.name}, [arms.{arm.name}], paper: the paper's {self.table} has no row {arm.paper!r}; "
                    f"expected one of {'; '.join(rows.values())}"
                )
            self.row_of[arm.name] = rows[_row_key(arm.paper)]
        higher = {measure.name: measure.higher_is_better for measure in domain.measures}
        for name, column in self.column_of.items():
            place = f"{experiment.name}, [sweep], paper: the paper's {self.table} has no"
            title, dataset = split_column(column)
            if title not in self.columns:
                raise UserError(
                    f"{place} column {column!r}; expected one of {', '.join(self.columns)}, or with a data set, "
                    f"{self.columns[0]} of {self.datasets()[0]}"
                )
            if dataset is not None and dataset not in self.datasets():
                raise UserError(f"{place} data set {dataset!r}; expected one of {', '.join(self.datasets())}")
            if higher.get(name) != column_higher_is_better(column):
                raise UserError(
                    f"{experiment.name}, [sweep], paper: {name} and {column} do not count in the same direction; "
                    f"expected a column that is better where {name} is"
                )

    def cells(self, arm: str, column: str) -> list[str]:
        """The figures of an arm's row in a column, one for each test set, as printed; empty without a row.

        A column of one data set ("lpips of DRealSR") has one figure.
        """
        title, dataset = split_column(column)
        return [
            row[title]
            for row in self.figures
            if row_name(row) == self.row_of.get(arm) and dataset in (None, row["dataset"])
        ]

    def datasets(self) -> list[str]:
        """The test sets that every arm with a row has, in the order of `cells`."""
        return list(dict.fromkeys(row["dataset"] for row in self.figures))

    def dataset_of(self, measure: str) -> str | None:
        """The one data set whose column the file names for a measure; None if it names none, or a column of all."""
        column = self.column_of.get(measure)
        return None if column is None else split_column(column)[1]

    def order(self, of: str, against: str, measure: Measure) -> Order | None:
        """What the paper says about two arms in the column that the file names for a measure.

        If the file names no columns at all, all of the table count for every measure with a direction. None where the
        paper says nothing: an arm without a row, a measure without a column.
        """
        if of not in self.row_of or against not in self.row_of or measure.higher_is_better is None:
            return None
        column = self.column_of.get(measure.name)
        if self.column_of and column is None:
            return None
        pairs = [
            (name, float(first), float(second))
            for name in ([column] if column else self.columns)
            for first, second in zip(self.cells(of, name), self.cells(against, name), strict=True)
            if first != second
        ]
        if not pairs:
            return None
        ahead = sum((first > second) == column_higher_is_better(name) for name, first, second in pairs)
        changes = [(first - second) / second for _, first, second in pairs]
        return Order(
            ahead,
            len(pairs),
            math.fsum(changes) / len(changes) if column else None,
            column_title(column) if column else None,
        )


def row_name(row: Mapping[str, str]) -> str:
    """The name of a row of the paper's CSV: its variant, or "N=4, s=50"."""
    return row["variant"] if "variant" in row else f"N={row['N']}, s={row['s']}"


def split_column(column: str) -> tuple[str, str | None]:
    """("lpips", "DRealSR") for "lpips of DRealSR"; ("lpips", None) for the column of all data sets, "lpips"."""
    title, _, dataset = column.partition(" of ")
    return title, dataset or None


def column_title(column: str) -> str:
    title, dataset = split_column(column)
    return PAPER_DISPLAY[title].split()[0] + (f" of {dataset}" if dataset else "")


def column_higher_is_better(column: str) -> bool:
    return PAPER_DISPLAY[split_column(column)[0]].endswith("↑")


def _row_key(name: str) -> str:
    return "".join(name.split()).lower()
