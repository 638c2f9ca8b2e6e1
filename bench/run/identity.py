"""Decides whether records may be continued: only with the same method, weights, settings and inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.records.differences import differences
from bench.records.records import MethodRecords
from bench.records.schema import Restoration, StaleRecords
from tsd.errors import UserError

if TYPE_CHECKING:
    from bench.testsets.manifest import TestSet


def agreed_provenance(provenances: Sequence[dict[str, Any] | None], method: str) -> dict[str, Any] | None:
    """The provenance of a method, which must be the same in every process that could load it.

    Args:
        provenances: by rank; None where the method could not be loaded. If none could, the result is None.

    Raises:
        UserError: two of them differ, for example because another machine has other weights.
    """
    known = [(rank, provenance) for rank, provenance in enumerate(provenances) if provenance is not None]
    for rank, provenance in known[1:]:
        first, expected = known[0]
        changes = differences(expected, provenance, words=(f"process {first} has", f"process {rank}"))
        if changes:
            raise UserError(f"{method} is not the same in every process of this run:\n  " + "\n  ".join(changes[:8]))
    return known[0][1] if known else None


def continue_or_refuse(
    records: MethodRecords, testset: "TestSet", run: Restoration, log: Callable[[str], None]
) -> Restoration:
    """Returns `run` with the environments of the recorded run that it continues.

    Records of another identity are moved aside if none of their images is on disk (a fresh clone), else refused.

    Raises:
        StaleRecords: as in `refuse_stale`.
    """
    old = records.run()
    if old is None:
        return run
    changes = refuse_stale(records, testset, run)
    if not changes or all(row.error is not None for row in records.images().values()):
        return replace(run, environments=old.environments)
    aside = records.set_aside()
    log(
        f"{run.method} on {run.testset}: the records were made otherwise ({changes[0]}) and none of their images "
        f"is on disk: moved to {aside}, restored again"
    )
    return run


def refuse_stale(records: MethodRecords, testset: "TestSet", run: Restoration) -> list[str]:
    """Returns the differences between the recorded run and `run`, one line each.

    Raises:
        StaleRecords: there are differences, and recorded images on disk that would be mixed with new ones.
    """
    old = records.run()
    if old is None:
        return []
    rows = records.images()
    changes = differences(old.identity(), run.identity())
    for image in testset.images:
        row = rows.get(image.name)
        if row and (row.lr_sha256, row.hr_sha256) != (image.lr_sha256, image.hr_sha256):
            changes.append(f"the test image {image.name} is another file")
    results = [row for row in rows.values() if row.error is None]
    if changes and any(records.image_path(row.name).exists() for row in results):
        listed = "".join(f"\n  {change}" for change in changes[:8])
        more = f"\n  and {len(changes) - 8} more" if len(changes) > 8 else ""
        raise StaleRecords(
            f"{run.method} on {run.testset}: the {len(results)} images recorded in {records.out} were made otherwise "
            f"than they would be now:{listed}{more}\nResults of two kinds are never mixed. Add `--redo {run.method}` "
            "to measure it again (the old records are moved to superseded/), or choose another --out."
        )
    return changes
