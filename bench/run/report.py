"""What a stage did for one row of a table. Restoring and scoring both report in these words."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class StageReport:
    """How many results of one row were there, were made, and why others could not be made.

    Attributes:
        kept: results that were there already.
        made: results that the stage added.
        failed: what went wrong, by image name.
        undefined: why a metric has no value for such an image, by image name.
    """

    kept: int = 0
    made: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)


def combined(reports: Sequence[StageReport]) -> StageReport:
    """What all processes did together."""
    failed = sorted(item for report in reports for item in report.failed.items())
    undefined = sorted(item for report in reports for item in report.undefined.items())
    kept, made = sum(report.kept for report in reports), sum(report.made for report in reports)
    return StageReport(kept, made, dict(failed), dict(undefined))
