"""What a stage did for one row of a table; restoring and scoring both return it."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class StageReport:
    """How many results of one row were kept and made, and why others could not be made.

    Attributes:
        kept: number of results that existed before.
        made: number of results that the stage added.
        failed: the error of each failed image, by name.
        undefined: for images for which the metric is not defined, the reason by image name.
    """

    kept: int = 0
    made: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)


def combined(reports: Sequence[StageReport]) -> StageReport:
    """The sum of the reports of all processes."""
    failed = sorted(item for report in reports for item in report.failed.items())
    undefined = sorted(item for report in reports for item in report.undefined.items())
    kept, made = sum(report.kept for report in reports), sum(report.made for report in reports)
    return StageReport(kept, made, dict(failed), dict(undefined))
