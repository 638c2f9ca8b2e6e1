"""Restores the test sets with a student and scores them, by the ordinary machinery of `bench run`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.metrics import get_metric
from bench.records.schema import WHOLE_SET
from bench.run import Request, measure
from tsd.errors import UserError

ROW = "student"
"""The student's name in the records."""


@dataclass(frozen=True)
class Scores:
    """The scores on one test set: of each image by metric and name, and of the set by metric."""

    images: Mapping[str, Mapping[str, float]]
    of_set: Mapping[str, float]


def score_student(
    method: str, testset: str, metrics: Sequence[str], out: Path, *, seed: int, device: str, data_root: Path | None
) -> Scores:
    """Restores one test set and scores it; what `out` has already is not done again.

    Args:
        method: the student, in the form `tsd-sr:MODEL,LORA[,PROMPTS]`.
        out: folder of images and records, as of `bench run`.

    Raises:
        UserError: something is missing, or an image could not be restored or scored.
    """
    measured = measure(
        Request(
            table="table1", profile="paper", methods=[f"{ROW}={method}"], testsets=[testset], metrics=list(metrics),
            out=out, seed=seed, device=device, data_root=data_root, allow_missing=False, timing=False, figure=False,
        )
    )  # fmt: skip
    if measured.failed:
        raise UserError(f"{testset} could not be scored whole: {'; '.join(measured.failed)}")
    records = measured.records.of(testset, ROW)
    images: dict[str, dict[str, float]] = {}
    of_set: dict[str, float] = {}
    for metric in metrics:
        rows = {name: row.value for name, row in records.scores(metric).items() if row.value is not None}
        if get_metric(metric).level == "set":
            of_set[metric] = rows[WHOLE_SET]
        else:
            images[metric] = rows
            of_set[metric] = sum(rows.values()) / len(rows)
    return Scores(images, of_set)
