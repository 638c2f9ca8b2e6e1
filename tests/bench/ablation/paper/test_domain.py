"""Cells on the tiny model: trained, stopped and continued, taken from finished students, scored again."""

import dataclasses
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.ablation.cells import Identity, Job, jobs_of, reopen
from bench.ablation.domain import Cell, Stopped
from bench.ablation.experiment import Experiment, experiment_from
from bench.ablation.paper import training
from bench.ablation.paper.call import opened, require
from bench.ablation.paper.domain import PaperDomain
from bench.ablation.paper.files import Files
from bench.ablation.worker import Worker
from tsd.errors import UserError

pytestmark = pytest.mark.slow
Opened = tuple[Experiment, PaperDomain]


@pytest.fixture
def files(tiny_sd3_dir: Path, tiny_prepared: Path, datasets: Path) -> Files:
    """The tiny model and its data; `datasets` puts three small images in the place of the mini test set."""
    return Files(model=str(tiny_sd3_dir), data=tiny_prepared)


def job_of(found: Opened, out: Path, arm: str = "full") -> Job:
    experiment, domain = found
    jobs = jobs_of(experiment, domain, Identity.of(domain), out, experiment.arms, [0])
    return next(job for job in jobs if job.arm == arm)


def run_cell(found: Opened, out: Path, arm: str = "full") -> Path:
    """Does a cell in a worker; returns its folder."""
    job = job_of(found, out, arm)
    ended = Worker(found[1], "cpu", 1, threading.Event()).run(job)  # pyright: ignore[reportArgumentType]
    assert ended.status == "done", ended.error
    return job.folder


def scores(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_a_cell_stops_with_a_checkpoint_and_ends_as_if_it_had_not(
    raw_paper: dict[str, Any], files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(experiment_from(raw_paper), files)
    whole = run_cell(found, tmp_path / "whole")
    rows = scores(whole)
    assert [row["image"] for row in rows] == ["mini/photo0", "mini/photo1", "mini/photo2", None]
    assert rows[-1]["mini-psnr"] == pytest.approx(sum(row["mini-psnr"] for row in rows[:-1]) / 3)
    assert rows[-1]["mini-ssim"] <= 1
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert len(log) == 6
    assert "critic_gain" in log[0]
    restored = json.loads((whole / "student" / "restore.json").read_text())
    assert restored == {"color": "adain", "process_size": 0, "posterior": "sample"}

    # The time limit: a run that is allowed no time at all stops after its first step, or before it.
    late = dataclasses.replace(found[1], deadline=time.time() + 0.05)
    job = job_of(found, tmp_path / "stopped")
    worker = Worker(late, "cpu", 1, threading.Event())  # pyright: ignore[reportArgumentType]
    assert worker.run(job).status == "stopped"
    assert job.state() == "begun"
    assert (job.folder / "spent.json").is_file()

    # A request to stop, which the training does not hear by itself.
    monkeypatch.setattr(training, "POLL_SECONDS", 0.01)
    steps = job.folder / "run" / "log.jsonl"
    assert job.cell is not None
    with pytest.raises(Stopped):
        found[1].run(
            job.cell, job.folder, device="cpu",
            stop=lambda: steps.is_file() and len(steps.read_text().splitlines()) >= 2,
        )  # fmt: skip
    assert 2 <= len(steps.read_text().splitlines()) < 6
    assert list((job.folder / "run" / "checkpoints").iterdir())
    assert not (job.folder / "log.jsonl").exists()
    continued = run_cell(found, tmp_path / "stopped")
    assert scores(continued) == rows


def test_the_arms_of_a_seed_are_paired_and_differ(raw_paper: dict[str, Any], files: Files, tmp_path: Path) -> None:
    """Without teacher and critic in the first phase, both arms take the same steps in it."""
    raw_paper["settings"]["first_gamma2"] = 0.0
    found = opened(experiment_from(raw_paper), files)
    full, no_tsm = (run_cell(found, tmp_path, arm) for arm in ("full", "no-tsm"))
    logs = [[json.loads(line)["pixel"] for line in (f / "log.jsonl").read_text().splitlines()] for f in (full, no_tsm)]
    assert logs[0][:4] == logs[1][:4]  # the fourth step begins with the same weights
    assert scores(full) != scores(no_tsm)


def test_a_finished_student_takes_the_place_of_training(
    raw_paper: dict[str, Any], files: Files, tmp_path: Path
) -> None:
    found = opened(experiment_from(raw_paper), files)
    trained = run_cell(found, tmp_path / "trained")
    student = trained / "run" / "student"
    given = dataclasses.replace(files, data=None, students=(("full", student), ("no-tsm", student)))
    experiment, domain = opened(experiment_from(raw_paper), given)
    with pytest.raises(UserError, match=r"no-tsm=.*other settings than the arm .*lambda_tsd 0.7, expected 1.0"):
        require(experiment, domain, None, [0], "cpu")
    with pytest.raises(UserError, match=r"seed 0, expected 3"):
        require(experiment, domain, None, [3], "cpu")
    with pytest.raises(UserError, match=r"a finished student is one seed, and 2 are asked for"):
        require(experiment, domain, None, [0, 1], "cpu")

    given = dataclasses.replace(given, students=(("full", student),))
    experiment, domain = opened(experiment_from(raw_paper), given)
    with_student = require(experiment, domain, ["full"], [0], "cpu")
    assert require(experiment, domain, None, (), "cpu", running=False) == with_student
    digest = with_student.arm("full").overrides["student"]
    assert digest.startswith("adapter_config.json ")
    assert ", prompts/default/pool_embeds.safetensors " in digest
    assert "transformer.safetensors " in digest
    folder = run_cell((with_student, domain), tmp_path / "given")
    assert not (folder / "run").exists()
    assert scores(folder) == scores(trained)
    assert job_of((with_student, domain), tmp_path).key != job_of((experiment, domain), tmp_path).key

    other = tmp_path / "other"
    shutil.copytree(student, other)
    (other / "vae.safetensors").write_bytes((other / "vae.safetensors").read_bytes() + b" ")
    changed = dataclasses.replace(domain, files=dataclasses.replace(given, students=(("full", other),)))
    cell = job_of((with_student, domain), tmp_path).cell
    assert isinstance(cell, Cell)
    with pytest.raises(UserError, match="has changed since the sweep began"):
        changed.run(cell, tmp_path / "changed", device="cpu", stop=lambda: False)

    log = trained / "run" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(UserError, match="its run is not finished, 4 of 6 steps"):
        require(experiment, domain, ["full"], [0], "cpu")


def test_a_new_measure_is_scored_without_training_again(
    raw_paper: dict[str, Any], files: Files, tmp_path: Path
) -> None:
    raw_paper["sweep"]["metrics"] = ["mini-psnr"]
    folder = run_cell(opened(experiment_from(raw_paper), files), tmp_path)
    weights = folder / "run" / "student" / "transformer.safetensors"
    before = weights.stat().st_mtime_ns
    raw_paper["sweep"]["metrics"] = ["mini-psnr", "mini-ssim"]
    found = opened(experiment_from(raw_paper), files)
    job = job_of(found, tmp_path)
    assert job.state() == "done"
    assert reopen([job], found[1].measures) == 1
    assert job.state() == "begun"
    first = scores(folder)
    run_cell(found, tmp_path)
    assert weights.stat().st_mtime_ns == before
    assert scores(folder)[0] == first[0] | {"mini-ssim": scores(folder)[0]["mini-ssim"]}
    assert json.loads((folder / "done.json").read_text())["calls"] == 2
    assert reopen([job], found[1].measures) == 0
