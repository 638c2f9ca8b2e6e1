"""The harness against the authors of OSEDiff: their published images, scored here, and their own log of the scores."""

import re
import shutil
from pathlib import Path

import pytest

from bench import cli
from bench.metrics import METRICS
from bench.records.records import Records
from bench.report.folders import find_pairs, score_pairs

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


def install_niqe(shared_dir: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(shared_dir / "weights" / "pyiqa", torch_home / "hub" / "pyiqa")
    monkeypatch.setenv("TORCH_HOME", str(torch_home))


def test_published_outputs_make_a_true_row_of_table_1(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bench run` over the first five images: the row of the table is what the authors' log says of them."""
    install_niqe(shared_dir, tmp_path / "torch", monkeypatch)
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


@pytest.mark.slow
def test_published_outputs_score_as_their_authors_say(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RealSR, 100 images: every per-image value, and the means of the paper's table."""
    install_niqe(shared_dir, tmp_path, monkeypatch)
    realsr = shared_dir / "data" / "realsr"
    (log,) = (realsr / "osediff_metrics").glob("*.log")
    published = read_log(log)

    pairs = find_pairs(realsr / "osediff", realsr / "test_HR")
    result = score_pairs(pairs, [METRICS[name] for name in TOLERANCES])

    assert result["n"] == 100
    assert result["missing"] == {}
    for name, tolerance in TOLERANCES.items():
        measured = result["metrics"][name]["per_image"]
        assert measured.keys() == published[name].keys()
        furthest = max(measured, key=lambda image: abs(measured[image] - published[name][image]))
        assert measured[furthest] == pytest.approx(published[name][furthest], abs=tolerance), (name, furthest)
    means = {name: result["metrics"][name]["mean"] for name in TOLERANCES}
    assert f"{means['psnr']:.4f}" == "25.1511"
    assert f"{means['ssim']:.4f}" == "0.7341"
    assert means["niqe"] == pytest.approx(5.647, abs=0.001)
