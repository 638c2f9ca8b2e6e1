"""Stage 2, its skipping, its staleness and its errors."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bench.methods import METHODS
from bench.metrics import METRICS
from bench.metrics.base import CannotScoreError, MetricSpec
from bench.options import RunOptions
from bench.records.records import Records
from bench.records.schema import WHOLE_SET
from bench.run.restore import restore_set
from bench.run.score import score_set
from bench.testsets.manifest import TestSet
from tsd.errors import UserError


class Scorer:
    """A metric of one line that remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.loaded = 0
        self.fail: Exception | None = None
        self.value = 1.0

    def image(self, sr: Path, hr: Path | None) -> float:
        self.calls.append((sr.stem, hr.stem if hr else None))
        if self.fail and sr.stem == "photo1":
            raise self.fail
        return self.value

    def whole(self, sr: Mapping[str, Path], hr: Mapping[str, Path]) -> float:
        assert list(sr) == list(hr)
        assert all(path.exists() for path in [*sr.values(), *hr.values()])
        self.calls.append(("set", None))
        return self.value

    def spec(self, level: str = "image", needs_reference: bool = True, note: str = "one line") -> MetricSpec:
        def load(spec: MetricSpec, device: str):
            self.loaded += 1
            return self.image if level == "image" else self.whole

        return replace(
            METRICS["psnr"],
            name="own",
            level=level,
            needs_reference=needs_reference,
            loader=load,
            weights=(),
            note=note,
        )


@pytest.fixture
def records(tmp_path: Path, tiny: TestSet) -> Records:
    """Three images restored by bicubic and Lanczos."""
    records = Records(tmp_path / "out")
    for method in ("bicubic", "lanczos"):
        restore_set(records, tiny, METHODS[method], RunOptions())
    return records


def test_psnr_and_ssim_are_those_of_the_files(records: Records, tiny: TestSet) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    reports = score_set(records, tiny, ["bicubic", "lanczos"], METRICS["psnr"], "cpu")
    assert {method: report.made for method, report in reports.items()} == {"bicubic": 3, "lanczos": 3}
    import numpy as np

    def luma(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return 16 + np.asarray(image, dtype=np.float64) @ [65.481, 128.553, 24.966] / 255

    for image in tiny.images:
        row = records.of("mini", "lanczos").scores("psnr")[image.name]
        sr, hr = luma(records.of("mini", "lanczos").image_path(image.name)), luma(image.hr)  # type: ignore[arg-type]
        assert row.value == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-4)
        assert row.hr_sha256 == image.hr_sha256
        assert row.sr_sha256 == records.of("mini", "lanczos").images()[image.name].sr_sha256
        assert row.protocol == METRICS["psnr"].protocol
        assert row.versions["pyiqa"]


def test_what_is_scored_is_not_scored_again_and_the_metric_is_not_even_loaded(records: Records, tiny: TestSet) -> None:
    scorer = Scorer()
    score_set(records, tiny, ["bicubic", "lanczos"], scorer.spec(), "cpu")
    assert scorer.calls == [(name, name) for name in ("photo0", "photo1", "photo2")] * 2
    assert scorer.loaded == 1
    reports = score_set(records, tiny, ["bicubic", "lanczos"], scorer.spec(), "cpu")
    assert reports["bicubic"].kept == 3
    assert (len(scorer.calls), scorer.loaded) == (6, 1)


def test_another_protocol_makes_a_score_stale(records: Records, tiny: TestSet) -> None:
    scorer = Scorer()
    score_set(records, tiny, ["bicubic"], scorer.spec(), "cpu")
    assert score_set(records, tiny, ["bicubic"], scorer.spec(note="cropped"), "cpu")["bicubic"].made == 3


def test_an_image_made_anew_makes_its_own_score_stale(records: Records, tiny: TestSet) -> None:
    scorer, whole = Scorer(), Scorer()
    score_set(records, tiny, ["bicubic"], scorer.spec(), "cpu")
    score_set(records, tiny, ["bicubic"], replace(whole.spec("set"), name="set"), "cpu")
    row = records.of("mini", "bicubic").images()["photo1"]
    source = records.of("mini", "lanczos").image_path("photo1").read_bytes()
    records.of("mini", "bicubic").image_path("photo1").write_bytes(source)
    other = records.of("mini", "lanczos").images()["photo1"].sr_sha256
    records.of("mini", "bicubic").add_image(replace(row, sr_sha256=other))
    scorer.calls.clear()
    assert score_set(records, tiny, ["bicubic"], scorer.spec(), "cpu")["bicubic"].made == 1
    assert scorer.calls == [("photo1", "photo1")]
    assert score_set(records, tiny, ["bicubic"], replace(whole.spec("set"), name="set"), "cpu")["bicubic"].made == 1


def test_a_metric_without_reference_sees_none(records: Records, tiny: TestSet) -> None:
    scorer = Scorer()
    score_set(records, tiny, ["bicubic"], scorer.spec(needs_reference=False), "cpu")
    assert {hr for _, hr in scorer.calls} == {None}


def test_a_set_is_scored_once_as_a_whole(records: Records, tiny: TestSet) -> None:
    scorer = Scorer()
    scorer.value = 12.5
    assert score_set(records, tiny, ["bicubic"], scorer.spec("set"), "cpu")["bicubic"].made == 1
    assert score_set(records, tiny, ["bicubic"], scorer.spec("set"), "cpu")["bicubic"].kept == 1
    assert scorer.calls == [("set", None)]
    rows = records.of("mini", "bicubic").scores("own")
    assert (list(rows), rows[WHOLE_SET].value, rows[WHOLE_SET].n) == ([WHOLE_SET], 12.5, 3)


def test_a_set_with_an_image_missing_is_not_scored(records: Records, tiny: TestSet) -> None:
    scorer = Scorer()
    row = records.of("mini", "bicubic").images()["photo1"]
    failed = replace(row, sr_sha256=None, width=None, height=None, seconds=None, error="failed")
    records.of("mini", "bicubic").add_image(failed)
    report = score_set(records, tiny, ["bicubic"], scorer.spec("set"), "cpu")["bicubic"]
    assert (report.made, report.kept, scorer.calls) == (0, 0, [])
    assert score_set(records, tiny, ["bicubic"], replace(scorer.spec(), name="own2"), "cpu")["bicubic"].made == 2


@pytest.mark.parametrize(
    ("error", "group"), [(RuntimeError("broken"), "failed"), (CannotScoreError("too small"), "undefined")]
)
def test_an_image_without_a_value_is_an_error_row_and_is_tried_again(
    records: Records, tiny: TestSet, error: Exception, group: str
) -> None:
    scorer = Scorer()
    scorer.fail = error
    report = score_set(records, tiny, ["bicubic"], scorer.spec(), "cpu")["bicubic"]
    assert report.made == 2
    assert list(getattr(report, group)) == ["photo1"]
    row = records.of("mini", "bicubic").scores("own")["photo1"]
    assert row.value is None
    assert str(error) in str(row.error)
    scorer.fail = None
    assert score_set(records, tiny, ["bicubic"], scorer.spec(), "cpu")["bicubic"].made == 1


def test_a_value_that_is_not_finite_is_an_error_row(records: Records, tiny: TestSet) -> None:
    scorer = Scorer()
    scorer.value = float("inf")
    report = score_set(records, tiny, ["bicubic"], scorer.spec(), "cpu")["bicubic"]
    assert report.failed["photo0"] == "ValueError: the metric returned inf"
    text = (records.of("mini", "bicubic").folder / "scores.own.jsonl").read_text()
    assert {json.loads(line)["value"] for line in text.splitlines()} == {None}


def test_an_image_changed_behind_the_records_is_refused(records: Records, tiny: TestSet) -> None:
    records.of("mini", "bicubic").image_path("photo2").write_bytes(b"other")
    with pytest.raises(UserError, match=r"photo2\.png is not the recorded image"):
        score_set(records, tiny, ["bicubic"], Scorer().spec(), "cpu")


def test_rows_that_a_killed_process_left_never_replace_newer_ones(records: Records, tiny: TestSet) -> None:
    """A row of another rank's file counts as the later of two; one of an earlier run is merged before it could."""
    metric = Scorer()
    metric.fail = RuntimeError("out of memory")
    score_set(Records(records.out, rank=2), tiny, ["bicubic"], metric.spec(), "cpu")
    left = records.of("mini", "bicubic").folder / "scores.own.jsonl"
    left.rename(left.with_name("scores.own.rank2.jsonl"))
    metric.fail = None
    report = score_set(records, tiny, ["bicubic"], metric.spec(), "cpu")["bicubic"]
    assert (report.kept, report.made) == (2, 1)
    assert {row.error for row in records.of("mini", "bicubic").scores("own").values()} == {None}
    assert [path.name for path in left.parent.glob("scores.own*")] == ["scores.own.jsonl"]
