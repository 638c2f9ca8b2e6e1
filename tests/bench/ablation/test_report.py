"""The report comes from three small files alone, and says what the cells' own files say."""

import csv
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from line_domain import LineDomain, write_scores
from PIL import Image

from bench.ablation.cells import Identity, jobs_of
from bench.ablation.experiment import Experiment, experiment_from
from bench.ablation.report.plots import curve_band, within_seeds
from bench.ablation.report.write import write_report
from bench.ablation.statistics import paired
from bench.ablation.sweep import load_records
from bench.ablation.worker import Worker
from tsd.errors import UserError

COMPACT = ("sweep.json", "cells.jsonl", "images.npz")


def train(experiment: Experiment, out: Path, seeds: range = range(8)) -> None:
    """Every cell, in this process."""
    domain = LineDomain()
    worker = Worker(domain, "cpu", 1, threading.Event())  # pyright: ignore[reportArgumentType]
    for job in jobs_of(experiment, domain, Identity.of(domain), out, experiment.arms, seeds):
        assert worker.run(job).status == "done"


@pytest.fixture
def trained(raw: dict[str, Any], tmp_path: Path) -> Path:
    train(experiment_from(raw), tmp_path / "out")
    return tmp_path / "out"


def set_scores(out: Path, arm: str) -> list[float]:
    paths = [out / "cells" / arm / f"seed-{seed:04d}" / "scores.jsonl" for seed in range(8)]
    return [json.loads(path.read_text().splitlines()[-1])["error"] for path in paths]


def test_every_figure_is_that_of_the_cells(raw: dict[str, Any], trained: Path) -> None:
    experiment = experiment_from(raw)
    report = write_report(experiment, LineDomain(), load_records(experiment, LineDomain(), trained), trained)
    full, slow = np.array(set_scores(trained, "full")), np.array(set_scores(trained, "slow"))
    with (trained / "comparisons.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    assert [(line["of"], line["against"], line["metric"]) for line in lines] == [
        ("full", "slow", "error"),
        ("full", "slow", "slope"),
        ("full", "shrunk", "error"),
    ]
    assert float(lines[0]["difference"]) == pytest.approx((full - slow).mean())
    assert (lines[0]["verdict"], lines[0]["paper_order"], lines[0]["below_zero"]) == ("lower", "holds here", "8")
    with (trained / "table4.csv").open() as handle:
        table = {line["name"]: line for line in csv.DictReader(handle) if line["source"] != "paper"}
    assert list(table) == ["full", "slow", "shrunk 0.5", "shrunk 1"]
    assert float(table["full"]["error"]) == pytest.approx(full.mean())
    assert float(table["full"]["cpu_seconds"]) >= 0
    assert table["slow"]["paper_row"] == "w/o TSM"
    assert f"| {full.mean():.4f} ± " in report.markdown
    assert "0.3176 / 0.2934" in report.markdown  # the paper's LPIPS of the row, on both of its sets
    assert "Critic's gain" in report.markdown
    assert "Command: `bench sweep line.toml --seeds 0-7`." in report.markdown


def test_the_files_are_all_there_and_can_be_opened(raw: dict[str, Any], trained: Path) -> None:
    experiment = experiment_from(raw)
    report = write_report(experiment, LineDomain(), load_records(experiment, LineDomain(), trained), trained)
    names = {path.name for path in report.paths}
    assert names == {
        "table4.md", "table4.csv", "table4.tex", "comparisons.csv",
        "forest.png", "forest.svg", "curves.png", "curves.svg",
    }  # fmt: skip
    for name in ("forest.png", "curves.png"):
        with Image.open(trained / name) as image:
            assert len(set(image.convert("L").tobytes())) > 20
    assert "full − w/o TSM" in (trained / "forest.svg").read_text()
    assert "−" not in (trained / "table4.tex").read_text()  # pdflatex knows no such letter


def test_three_small_files_give_the_same_report_byte_by_byte(
    raw: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    experiment, domain, copy = experiment_from(raw), LineDomain(), tmp_path / "committed"
    report = write_report(experiment, domain, load_records(experiment, domain, trained), trained)
    copy.mkdir()
    for name in COMPACT:
        shutil.copy(trained / name, copy)
    again = write_report(experiment, domain, load_records(experiment, domain, copy), copy)
    assert len(again.paths) == len(report.paths)
    for path in again.paths:
        there = (trained / path.name).read_bytes()
        if path.name == "comparisons.csv":
            # Scores of images are kept to two digits more than are printed.
            compare_numbers(path.read_text(), there.decode())
        else:
            assert path.read_bytes() == there, path.name


def compare_numbers(first: str, second: str) -> None:
    for a, b in zip(csv.reader(first.splitlines()), csv.reader(second.splitlines()), strict=True):
        for x, y in zip(a, b, strict=True):
            try:
                assert float(x) == pytest.approx(float(y), abs=1e-5)
            except ValueError:
                assert x == y


def test_records_of_other_settings_are_refused(raw: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    load_records(experiment_from(raw), LineDomain(), trained)
    copy = tmp_path / "committed"
    copy.mkdir()
    for name in COMPACT:
        shutil.copy(trained / name, copy)
    raw["arms"]["full"]["lr"] = 0.6
    with pytest.raises(UserError, match=r"full, seed 0 was made with .*0\.5.*the file now has .*0\.6"):
        load_records(experiment_from(raw), LineDomain(), copy)
    with pytest.raises(UserError, match="no records of a sweep"):
        load_records(experiment_from(raw), LineDomain(), tmp_path / "nothing")


def test_a_report_can_be_made_after_the_code_has_changed(raw: dict[str, Any], tmp_path: Path) -> None:
    experiment = experiment_from(raw)
    train(experiment, tmp_path, range(1))
    before = load_records(experiment, LineDomain(), tmp_path)
    source = tmp_path / "new.py"
    source.write_text("a = 1")
    changed = LineDomain(source=source)
    assert load_records(experiment, changed, tmp_path).rows == before.rows
    (tmp_path / "cells.jsonl").unlink()
    with pytest.raises(UserError, match="the training code changed"):
        load_records(experiment, changed, tmp_path)


def test_rows_that_an_arm_leaves_are_references_of_its_name(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["sweep"]["matched"]["references"] = "slow: sharpened"
    experiment = experiment_from(raw)
    train(experiment, tmp_path, range(2))
    for seed in range(2):
        for amount in ("0.15", "0.3", "1.2"):
            folder = tmp_path / "cells" / "slow" / f"seed-{seed:04d}" / "references" / f"sharpened {amount}"
            write_scores(folder, [0.1] * 6, 2 * float(amount))
    records = load_records(experiment, LineDomain(), tmp_path)
    names = [name for name in records.references() if name.startswith("slow")]
    assert names == ["slow: sharpened 0.15", "slow: sharpened 0.3", "slow: sharpened 1.2"]
    report = write_report(experiment, LineDomain(), records, tmp_path)
    matched = [result for result in report.findings.results if result.difference.matched_x]
    assert [result.paired.n for result in matched] == [2]

    # Without `arms`, all are held against the family but the one that left it: nothing is said of that one.
    del raw["sweep"]["matched"]["arms"]
    again = write_report(experiment_from(raw), LineDomain(), records, tmp_path / "again")
    assert [result.difference.of for result in again.findings.results if result.difference.matched_x] == ["full"]
    assert not any("sharpened" in reason for reason in again.findings.unmeasured)


def test_learning_curves_have_students_bands(raw: dict[str, Any], trained: Path) -> None:
    experiment = experiment_from(raw)
    records = load_records(experiment, LineDomain(), trained)
    steps, means, low, high = curve_band([row.curve for row in records.of_arm("full").values()], "error")
    assert steps == [5, 10, 15]
    finals = [row.curve[-1]["error"] for row in records.of_arm("full").values()]
    assert means[-1] == pytest.approx(np.mean(finals))
    half = 2.3646 * np.std(finals, ddof=1) / np.sqrt(8)
    assert (low[-1], high[-1]) == pytest.approx((means[-1] - half, means[-1] + half), rel=1e-4)


def test_a_torn_line_is_left_out_and_any_other_is_an_error(raw: dict[str, Any], tmp_path: Path) -> None:
    experiment = experiment_from(raw)
    train(experiment, tmp_path, range(1))
    curve = tmp_path / "cells" / "full" / "seed-0000" / "curve.jsonl"
    whole = curve.read_text()
    curve.write_text(whole + '{"step": 20, "err')
    assert len(load_records(experiment, LineDomain(), tmp_path).of_arm("full")[0].curve) == 3
    curve.write_text("{torn}\n" + whole)
    with pytest.raises(UserError, match=r"curve\.jsonl, line 1 is not JSON"):
        load_records(experiment, LineDomain(), tmp_path)


def test_bands_within_seeds_leave_out_what_the_arms_of_a_seed_share() -> None:
    rng = np.random.default_rng(0)
    luck, noise = 10 * rng.normal(size=8), 0.1 * rng.normal(size=(3, 8))

    def curves(shared: np.ndarray) -> list[dict[int, list[dict[str, float]]]]:
        return [
            {seed: [{"step": 5, "error": arm + shared[seed] + noise[arm, seed]}] for seed in range(8)}
            for arm in range(3)
        ]

    with_luck, without = within_seeds(curves(luck), "error"), within_seeds(curves(0 * luck), "error")
    for (_, means, low, high), (_, _, same_low, same_high) in zip(with_luck, without, strict=True):
        assert high[0] - low[0] == pytest.approx(same_high[0] - same_low[0])
        assert means[0] == pytest.approx((low[0] + high[0]) / 2)
    plain = curve_band(list(curves(luck)[0].values()), "error")
    assert plain[3][0] - plain[2][0] > 20 * (with_luck[0][3][0] - with_luck[0][2][0])
    # With two arms a band is the interval of their difference, divided by √2.
    pair = within_seeds(curves(luck)[:2], "error")
    difference = paired(noise[1] - noise[0])
    assert difference.high is not None
    assert difference.low is not None
    assert pair[0][3][0] - pair[0][2][0] == pytest.approx((difference.high - difference.low) / 2**0.5)
    assert within_seeds(curves(luck)[:1], "error") == [plain]


def test_an_arm_is_drawn_at_all_of_its_own_steps() -> None:
    """Also where the arms share few of them, or none."""
    noise = np.random.default_rng(0).normal(size=(2, 8, 21))

    def arm(number: int, steps: list[int]) -> dict[int, list[dict[str, float]]]:
        return {seed: [{"step": step, "error": noise[number, seed, step]} for step in steps] for seed in range(8)}

    first, second = within_seeds([arm(0, [0, 10, 20]), arm(1, [0, 5, 20])], "error")
    assert (first[0], second[0]) == ([0, 10, 20], [0, 5, 20])
    widths = [np.subtract(high, low) for _, _, low, high in (first, second)]
    assert widths[0] == pytest.approx([widths[0][0], (widths[0][0] + widths[0][2]) / 2, widths[0][2]])
    assert widths[1][1] == pytest.approx(0.75 * widths[1][0] + 0.25 * widths[1][2])
    apart = [arm(0, [5]), arm(1, [10])]
    assert within_seeds(apart, "error") == [curve_band(list(curves.values()), "error") for curves in apart]
