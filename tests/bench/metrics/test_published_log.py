"""The harness against the authors of OSEDiff: their published images, scored here, and their own log of the scores."""

import re
from pathlib import Path

import pytest

from bench import cli
from bench.options import RunOptions
from bench.records.records import Records
from bench.records.schema import VerifiedMetric
from bench.verify.check import check_log
from bench.verify.golden import read_golden

# Largest difference per image from the log, which has six decimals and was written by pyiqa 0.1.10.
TOLERANCES = {"psnr": 1e-4, "ssim": 1e-5, "niqe": 0.02}
LINE = re.compile(r"/(?P<name>[\w.]+\.png) \| (?P<scores>[^|]*) \|")


def read_log(path: Path) -> dict[str, dict[str, float]]:
    """Scores by metric and file name."""
    scores: dict[str, dict[str, float]] = {}
    for line in LINE.finditer(path.read_text(encoding="utf-8")):
        for part in line["scores"].split(";"):
            metric, value = part.split(":")
            scores.setdefault(metric.strip().lower(), {})[line["name"]] = float(value)
    return scores


def test_published_outputs_make_a_true_row_of_table_1(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bench run` over the first five images: the row of the table is what the authors' log says of them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    out = tmp_path / "out"
    arguments = ["run", "--testsets", "realsr", "--methods", "osediff-published", "--metrics", *TOLERANCES]
    arguments += ["--limit", "5", "--no-figure", "--data-root", str(shared_dir / "data"), "--out", str(out)]
    assert cli.main(arguments) == 0

    (log,) = (shared_dir / "data" / "realsr" / "osediff_metrics").glob("*.log")
    published = read_log(log)
    records = Records(out)
    for metric, tolerance in TOLERANCES.items():
        scores = records.of("realsr", "osediff-published").scores(metric)
        assert len(scores) == 5
        for name, score in scores.items():
            assert score.value == pytest.approx(published[metric][f"{name}.png"], abs=tolerance), (metric, name)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| OSEDiff (published)"))
    psnr = [published["psnr"][f"{name}.png"] for name in records.of("realsr", "osediff-published").images()]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:3] == ["1", f"{sum(psnr) / 5:.2f}"]


def test_the_shipped_figures_are_those_of_the_log(shared_dir: Path) -> None:
    (log,) = (shared_dir / "data" / "realsr" / "osediff_metrics").glob("*.log")
    golden = read_golden("osediff-realsr")
    published = {
        metric: {Path(name).stem: value for name, value in scores.items()} for metric, scores in read_log(log).items()
    }
    assert {metric: dict(scores) for metric, scores in golden.figures.items()} == published
    assert f"FID: {golden.whole_set['fid']:.6f}" in log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_published_outputs_score_as_their_authors_say(shared_dir: Path) -> None:
    """RealSR, 100 images: every per-image value, and the means of the paper's table."""
    options = RunOptions(data_root=shared_dir / "data")
    verdicts = check_log(read_golden("osediff-realsr"), list(TOLERANCES), options)
    assert [(type(verdict), verdict.metric) for verdict in verdicts] == [
        (VerifiedMetric, name) for name in ("psnr", "ssim", "niqe")
    ]
    assert [verdict for verdict in verdicts if not (isinstance(verdict, VerifiedMetric) and verdict.agrees)] == []
