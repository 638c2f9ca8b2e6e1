"""Compares two sets of records value by value, to show what a change of the code moved. For CI.

Every per-image value of the old records must be in the new ones, under the same protocol, and within the metric's
tolerance; where both were computed from the same bytes, within `REPEATED` of it. Inputs must be the same files. The
tables that lie beside the records must be what the records give. Seconds are not compared. Neither are averages: they
hide changes that cancel.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.metrics import EXTRA_METRICS, METRICS
from bench.records.records import Records
from bench.records.schema import ScoreRow
from bench.report.render import stale
from tsd.errors import UserError

# Two to ten times the differences observed between processors with the same code (one 8-bit level at single pixels).
TOLERANCES: dict[str, float] = {
    "psnr": 0.02,
    "ssim": 0.001,
    "lpips": 0.002,
    "dists": 0.002,
    "fid": 0.5,
    "kid": 0.001,
    "niqe": 0.15,  # one level at every thousandth value of a smooth 256x256 image moves it by up to 0.04
    "musiq": 0.2,
    "maniqa": 0.003,
    "clipiqa": 0.005,
    "lr-psnr": 0.02,
    "ms-ssim": 0.001,
    "gmsd": 0.001,
    "fsim": 0.001,
    "vif": 0.002,
}

REPEATED = 0.05
"""The share of its tolerance by which a metric may move where its images are the same bytes: the rest is for pixels."""


@dataclass(frozen=True)
class Difference:
    """One value that moved or disappeared. `change` is None where there is no new value."""

    testset: str
    method: str
    metric: str
    name: str
    change: float | None
    text: str

    def line(self) -> str:
        return f"{self.testset} · {self.method} · {self.metric} · {self.name}: {self.text}"


@dataclass(frozen=True)
class Comparison:
    """The result.

    Attributes:
        compared: number of compared values.
        images, repeated: number of images in both, and of those that have the same bytes.
        largest: the largest absolute change by metric.
    """

    compared: int
    images: int
    repeated: int
    failures: tuple[Difference, ...]
    largest: Mapping[str, float]


def compare(
    old: Records, new: Records, tolerances: Mapping[str, float], *, subset: bool = False, same_bytes: bool = False
) -> Comparison:
    """Compares every recorded score of `old` with `new`.

    Args:
        tolerances: largest allowed absolute change by metric, over the defaults in `TOLERANCES`; such a one holds
            where bytes repeat too.
        subset: `new` measured only some methods, images or metrics, and only those are compared (not values of
            whole sets, which depend on N). If a value of these is gone, that is still a failure.
        same_bytes: an image of other bytes is a failure; for two runs on one machine.

    Raises:
        UserError: a folder has no records, or a metric has no tolerance.
    """
    for records in (old, new):
        if not records.measured():
            raise UserError(f"no records in {records.root}; expected the --out folder of a `bench run`")
    allowed = {**TOLERANCES, **tolerances}
    compared, images, repeated, largest = 0, 0, 0, {}
    failures = [] if subset else _tables(old)
    failures += _tables(new)
    measured = new.measured() if subset else old.measured()
    for testset, method in measured:
        before, after = old.of(testset, method), new.of(testset, method)
        before_images, after_images = before.images(), after.images()
        metrics = before.metrics()
        if subset:
            before_images = {name: row for name, row in before_images.items() if name in after_images}
            metrics = [metric for metric in metrics if metric in after.metrics()]
        for name, row in before_images.items():
            image = after_images.get(name)
            if row.error is None and (image is None or image.error is not None):
                text = "image is gone" if image is None else f"restoration fails now: {image.error}"
                failures.append(Difference(testset, method, "image", name, None, text))
            if image is None or image.sr_sha256 is None or row.sr_sha256 is None:
                continue
            images += 1
            repeated += image.sr_sha256 == row.sr_sha256
            if (image.lr_sha256, image.hr_sha256) != (row.lr_sha256, row.hr_sha256):
                text = "was made from, or belongs to, another file: its input or ground truth has another hash"
                failures.append(Difference(testset, method, "image", name, None, text))
            elif same_bytes and image.sr_sha256 != row.sr_sha256:
                text = f"sha256 {row.sr_sha256[:12]}… → {image.sr_sha256[:12]}…"
                failures.append(Difference(testset, method, "image", name, None, text))
        for metric in metrics:
            if metric not in allowed:
                raise UserError(f"no tolerance for the metric {metric!r}: add --tolerance {metric}=VALUE")
            after_rows = after.scores(metric)
            for name, row in before.scores(metric).items():
                if row.value is None or (subset and name not in before_images):
                    continue
                score = after_rows.get(name)
                text, change = None, None
                if score is None:
                    text = f"was {_value(metric, row.value)}, is gone"
                elif score.value is None:
                    text = f"was {_value(metric, row.value)}, fails now: {score.error}"
                elif score.protocol != row.protocol:
                    text = f"not comparable: was measured as `{row.protocol}`, now as `{score.protocol}`"
                else:
                    compared += 1
                    change = score.value - row.value
                    largest[metric] = max(largest.get(metric, 0.0), abs(change))
                    most = allowed[metric]
                    if metric not in tolerances and _same_files(row, score):
                        most *= REPEATED
                    if abs(change) > most:
                        before_and_after = f"{_value(metric, row.value)} → {_value(metric, score.value)}"
                        text = f"{before_and_after} ({change:+.3g}, allowed ±{most:g})"
                if text is not None:
                    failures.append(Difference(testset, method, metric, name, change, text))
    return Comparison(compared, images, repeated, tuple(failures), largest)


def _value(metric: str, value: float) -> str:
    """A value with two digits more than tables print, since one image is judged and not a mean."""
    spec = (METRICS | EXTRA_METRICS).get(metric)
    return f"{value:.6g}" if spec is None else f"{value:.{spec.decimals + 2}f}"


def _same_files(old: ScoreRow, new: ScoreRow) -> bool:
    return (old.sr_sha256, old.hr_sha256, old.lr_sha256) == (new.sr_sha256, new.hr_sha256, new.lr_sha256)


def _tables(records: Records) -> list[Difference]:
    """One failure for each file of a table beside the records that is stale."""
    text = "is not what its records give; `bench table` renders it anew"
    return [
        Difference("*", "*", "table", path.name, None, f"{path} {text}")
        for plan in records.plans()
        for path in stale(records, plan)
    ]
