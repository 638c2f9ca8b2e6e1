"""The result of a verification, as it is attached to a run."""

import datetime
from collections.abc import Sequence

from bench import provenance
from bench.records.schema import Verification, VerifiedMetric


def verification(metrics: Sequence[VerifiedMetric], device: str) -> Verification:
    """The verdicts with the day, the machine and the versions they were found with."""
    return Verification(
        date=datetime.date.today().isoformat(),
        environment=provenance.environment(device, "fp32"),
        versions=provenance.versions(provenance.SCORE_LIBRARIES),
        metrics=list(metrics),
    )
