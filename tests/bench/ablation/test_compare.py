"""`bench compare` of two sweeps: a moved score, a missing cell and other settings fail, noise and costs do not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from line_domain import LineDomain

import bench.ablation.report.compare as compare_module
from bench import cli
from bench.ablation.domain import Cell
from bench.ablation.experiment import experiment_from
from bench.ablation.mixture.domain import MixtureDomain
from bench.ablation.records import Row, SweepRecords, read_records, write_records
from bench.ablation.report.compare import compare_sweeps, last_digits
from tsd.errors import UserError

IMAGES = {"error": {"00": 0.2, "01": 0.4}}


def write(out: Path, raw: dict[str, Any], shift: float = 0.0, seeds: range = range(2)) -> Path:
    rows = [
        Row(
            arm=arm,
            reference=None,
            seed=seed,
            key="key",
            overrides=overrides,
            scores={"error": 0.3 + shift, "slope": 2.0, "inverse": 3.0},
            curve=[{"step": 5, "error": 0.5}],
            seconds=float(seed),
            images=IMAGES,
        )
        for seed in seeds
        for arm, overrides in raw["arms"].items()
    ]
    write_records(out, experiment_from(raw), SweepRecords(tuple(rows), {}), LineDomain.measures)
    return out


@pytest.fixture(autouse=True)
def domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "open_domain", lambda spec: LineDomain())


def test_equal_records_pass_and_every_value_is_counted(raw: dict[str, Any], tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", raw), write(tmp_path / "new", raw, shift=4e-5)
    outcome = compare_sweeps(old, new, {})
    assert outcome.compared == 4 * (3 + 2 + 1)  # cells × (scores, images, a point of the curve)
    assert outcome.failures == ()
    assert outcome.largest["error"] == pytest.approx(4e-5)
    assert outcome.allowed == pytest.approx({"error": 5e-5, "slope": 5e-4, "inverse": 5e-4})
    assert [len(compare_sweeps(old, new, {"error": 1e-5}).failures)] == [4]


def test_what_moved_is_listed_by_its_place(raw: dict[str, Any], tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", raw), write(tmp_path / "new", raw)
    lines = [json.loads(line) for line in (new / "cells.jsonl").read_text().splitlines()]
    lines[0]["scores"]["error"] += 0.01
    lines[1]["curve"][0]["error"] -= 0.01
    lines[2]["curve"] = []
    lines[3]["overrides"] = {"lr": 7.0}
    (new / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    failures = [failure.line() for failure in compare_sweeps(old, new, {}).failures]
    assert failures[:3] == [
        "full · seed 0 · error · set: 0.3 → 0.31 (+0.01, allowed ±5e-05)",
        "slow · seed 0 · error · step 5: 0.5 → 0.49 (-0.01, allowed ±5e-05)",
        "full · seed 1 · error · step 5: was 0.5, is gone",
    ]
    assert failures[3].startswith("slow · seed 1: had the settings")
    assert len(failures) == 4


def test_an_image_that_moved_is_found(raw: dict[str, Any], tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", raw), write(tmp_path / "new", raw)
    arrays = dict(np.load(new / "images.npz"))
    arrays["error"][1, 1] += 1000
    np.savez_compressed(new / "images.npz", **arrays)
    (failure,) = compare_sweeps(old, new, {}).failures
    assert failure.place == "slow · seed 0 · error · image 01"


def test_a_part_is_compared_only_where_that_is_asked_for(raw: dict[str, Any], tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", raw), write(tmp_path / "new", raw, seeds=range(1))
    assert [failure.line() for failure in compare_sweeps(old, new, {}).failures] == [
        "full · seed 1: is gone",
        "slow · seed 1: is gone",
    ]
    assert compare_sweeps(old, new, {}, subset=True).failures == ()
    with pytest.raises(UserError, match="has no arm and seed"):
        compare_sweeps(old, write(tmp_path / "other", raw, seeds=range(7, 8)), {}, subset=True)


def test_what_cannot_be_compared_is_an_error(raw: dict[str, Any], tmp_path: Path) -> None:
    old = write(tmp_path / "old", raw)
    with pytest.raises(UserError, match="no records of a sweep"):
        compare_sweeps(old, tmp_path, {})
    with pytest.raises(UserError, match="--tolerance psnr: no such measure"):
        compare_sweeps(old, old, {"psnr": 0.1})
    raw["sweep"]["domain"] = "mixture"
    with pytest.raises(UserError, match="expected the same"):
        compare_sweeps(old, write(tmp_path / "new", raw), {})


def test_the_command_tells_a_sweep_from_a_run(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write(tmp_path / "old", raw), write(tmp_path / "new", raw, shift=0.01)
    assert cli.main(["compare", str(old), str(old)]) == 0
    assert "24 values compared, 0 failures" in capsys.readouterr().out
    assert cli.main(["compare", str(old), str(new), "--show", "1"]) == 1
    shown = capsys.readouterr().out
    assert "error: largest change 0.01, allowed 5e-05" in shown
    assert "and 3 more" in shown


@pytest.mark.slow
def test_the_committed_records_are_those_of_this_code(tmp_path: Path) -> None:
    """One cell of what `nox -s ci_regression` trains, in this process."""
    committed = Path(__file__).parents[3] / "reports" / "ablations" / "mixture-ci"
    row = read_records(committed).of_arm("full")[0]
    domain = MixtureDomain()
    cell = Cell("mixture-ci", "full", 0, {**domain.settings(), **row.overrides}, "key")
    domain.run(cell, tmp_path, device="cpu", stop=lambda: False)
    found = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[-1])
    for name, allowed in last_digits(domain.measures).items():
        assert found[name] == pytest.approx(row.scores[name], abs=allowed)
    shutil.rmtree(tmp_path)
