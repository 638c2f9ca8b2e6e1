"""A worker does a cell once, records costs or the reason of a failure, and continues what was interrupted."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from line_domain import LineDomain

from bench.ablation.cells import Identity, Job, jobs_of, read_json
from bench.ablation.experiment import experiment_from
from bench.ablation.worker import ALLOCATOR, Worker, worker_environment


def a_job(raw: dict[str, Any], out: Path, arm: str = "full", seed: int = 0) -> Job:
    experiment, domain = experiment_from(raw), LineDomain()
    found = jobs_of(experiment, domain, Identity.of(domain), out, experiment.arms, [seed])
    return next(job for job in found if job.arm == arm)


def a_worker(stop: threading.Event | None = None) -> Worker:
    return Worker(LineDomain(), "cpu", 1, stop or threading.Event())  # pyright: ignore[reportArgumentType]


def test_a_done_cell_has_its_costs_and_its_environment(raw: dict[str, Any], tmp_path: Path) -> None:
    job = a_job(raw, tmp_path)
    assert job.state() == "new"
    assert a_worker().run(job).status == "done"
    assert job.state() == "done"
    done = read_json(job.folder / "done.json")
    assert done is not None
    assert done["calls"] == 1
    assert done["seconds"] > 0
    assert done["peak_mib"] > 10
    assert done["environment"]["threads"] == 1
    assert (read_json(job.folder / "cell.json") or {})["key"] == job.key


def test_two_arms_of_a_seed_draw_the_same_and_two_seeds_do_not(raw: dict[str, Any], tmp_path: Path) -> None:
    drawn = {}
    for arm, seed in (("full", 0), ("slow", 0), ("full", 1)):
        job = a_job(raw, tmp_path, arm, seed)
        a_worker().run(job)
        drawn[arm, seed] = (job.folder / "draws.json").read_text()
    assert drawn["full", 0] == drawn["slow", 0] != drawn["full", 1]


@pytest.mark.parametrize(("optimizer", "quantizer"), [("adamw", "absent"), ("adamw8bit", "there")])
def test_bitsandbytes_is_kept_out_unless_a_cell_trains_with_it(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, quantizer: str
) -> None:
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    raw["settings"]["optimizer"] = optimizer
    job = a_job(raw, tmp_path)
    assert a_worker().run(job).status == "done"
    assert (job.folder / "quantizer.txt").read_text() == quantizer


@pytest.mark.parametrize(
    ("act", "message"),
    [("fail", "ValueError: diverged in seed-0000"), ("nan", "error of the set is nan; expected a finite number")],
)
def test_a_failure_is_recorded_without_paths_and_tried_again(
    raw: dict[str, Any], tmp_path: Path, act: str, message: str
) -> None:
    raw["settings"]["act"] = act
    job = a_job(raw, tmp_path)
    ended = a_worker().run(job)
    assert ended.status == "failed"
    assert ended.error is not None
    assert message in ended.error
    assert job.state() == "begun"
    error = read_json(job.folder / "error.json")
    assert error is not None
    assert error["error"] == ended.error
    assert str(tmp_path) not in error["error"]
    assert "Traceback" in error["traceback"]


def test_a_stopped_cell_continues_from_its_checkpoint_and_ends_the_same(raw: dict[str, Any], tmp_path: Path) -> None:
    whole = a_job(raw, tmp_path / "whole")
    a_worker().run(whole)
    raw["settings"]["act"] = "wait"  # at step 5, until it is told to stop
    job = a_job(raw, tmp_path / "stopped")
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    assert a_worker(stop).run(job).status == "stopped"
    assert job.state() == "begun"
    assert not (job.folder / "scores.jsonl").exists()
    spent = read_json(job.folder / "spent.json")
    assert spent is not None
    assert a_worker(stop).run(job).status == "stopped"  # no work is begun while stopping
    assert a_worker().run(job).status == "done"
    assert (job.folder / "resumed.txt").read_text() == "5"
    assert (job.folder / "scores.jsonl").read_text() == (whole.folder / "scores.jsonl").read_text()
    done = read_json(job.folder / "done.json")
    assert done is not None
    assert done["calls"] == 2
    assert done["seconds"] > spent["seconds"] > 0.1


def test_references_are_scored_and_checked(raw: dict[str, Any], tmp_path: Path) -> None:
    job = a_job(raw, tmp_path, "references")
    assert a_worker().run(job).status == "done"
    rows = [json.loads(line) for line in (job.folder / "shrunk 0.5" / "scores.jsonl").read_text().splitlines()]
    assert rows[-1]["image"] is None


def test_a_worker_finds_its_threads_and_the_allocators_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "77")
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with worker_environment(3):
        assert "WORLD_SIZE" not in os.environ  # a worker is none of the launcher's processes
        assert "ACCELERATE_MIXED_PRECISION" not in os.environ
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert os.environ["MALLOC_MMAP_THRESHOLD_"] == ALLOCATOR["MALLOC_MMAP_THRESHOLD_"]
        assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "77"
    assert os.environ["OMP_NUM_THREADS"] == "9"
    assert os.environ["WORLD_SIZE"] == "8"
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
