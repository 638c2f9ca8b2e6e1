"""Reads all records of one method on one test set for a table."""

from typing import Any

from bench.records.records import Records
from bench.records.schema import EXTERNAL, PlanMethod, PlanMetric, PlanSet, check_environments, valid_scores


class Measured:
    """All records of one method on one test set, read once.

    Raises:
        RecordError: a record cannot be read, or an environment behind an image lacks what tables print.
    """

    def __init__(self, records: Records, testset: PlanSet, method: PlanMethod, metrics: list[PlanMetric]) -> None:
        self.testset = testset
        self.method = method
        method_records = records.of(testset.name, method.name)
        rows = method_records.images()
        self.images = {name: rows[name] for name in testset.names if name in rows}
        self.scores = {metric.name: method_records.scores(metric.name) for metric in metrics}
        run = method_records.run()
        used = {row.environment for row in self.images.values()}
        self.environments = {key: run.environments[key] for key in run.environments if key in used} if run else {}
        check_environments(self.environments, method_records.folder / "run.json")
        self.provenance = run.provenance if run else {}
        self.protocols = {metric.name: metric.protocol for metric in metrics}

    def scoring_versions(self) -> list[dict[str, Any]]:
        """The library versions behind each score that counts by its protocol."""
        return [
            {"versions": row.versions}
            for name, rows in self.scores.items()
            for row in rows.values()
            if row.value is not None and row.protocol == self.protocols[name]
        ]

    def values(self, metric: PlanMetric) -> dict[str, float]:
        """Valid per-image values, by image, in the order of the test set."""
        valid = valid_scores(self.scores[metric.name], self.images, metric.protocol)
        return {name: valid[name].value for name in self.testset.names if name in valid}  # type: ignore[misc]

    def remarks(self) -> tuple[str, ...]:
        """What a reader of the row should know, as the method's provenance says; empty without images.

        A row that was recorded before, and whose method cannot run where the table was made, says so.
        """
        if self.reasons_unrestored():
            return ()
        elsewhere = ("recorded elsewhere: it cannot run here",) if self.method.missing.get(self.testset.name) else ()
        return (*self.provenance.get("remarks", ()), *elsewhere)

    def reason_untimed(self) -> str | None:
        """Why there are no seconds per image, in words that follow the method's name; None if there are.

        A process over a whole folder has none for its first image.
        """
        without = [row for row in self.images.values() if row.seconds is None]
        if len(without) < len(self.images):
            return None
        if any(EXTERNAL in self.environments.get(row.environment, ()) for row in without):
            return "runs as a process of its own, which did not time its images"
        return "published images, the time is not measured here"

    def reasons_unrestored(self) -> tuple[str, ...]:
        """Why some images are not restored; empty if all are."""
        total = len(self.testset.names)
        failed = [row for row in self.images.values() if row.error is not None]
        absent = total - len(self.images)
        if failed:
            return (f"{self.method.display} {failures(failed, total)}",)
        if absent and self.method.missing.get(self.testset.name):
            return tuple(self.method.missing[self.testset.name])
        if absent:
            return (f"{self.method.display}: {total - absent} of {total} images restored; `bench run` does the rest",)
        return ()


def failures(failed: list[Any], total: int) -> str:
    first = failed[0]
    return f"failed on {len(failed)} of {total} images, first on {first.name}: {first.error}"
