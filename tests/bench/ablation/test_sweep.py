"""Whole sweeps in worker processes: failures, killed workers, interruptions, the command line."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import LINE
from line_domain import LineDomain

import bench.ablation.domain
from bench import cli
from bench.ablation.experiment import experiment_from
from bench.ablation.sweep import run_sweep, seconds_left, workers_and_threads
from tsd.errors import UserError


def test_the_time_left_comes_from_the_arms_done() -> None:
    assert seconds_left(["a", "b"], {}, 2) is None
    assert seconds_left(["a", "a", "b"], {"a": [10.0, 20.0], "b": [40.0]}, 2) == 35.0
    assert seconds_left(["c"], {"a": [10.0], "b": [30.0]}, 1) == 20.0
    assert seconds_left([], {"a": [10.0]}, 1) == 0.0


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert workers_and_threads(None, "cpu") == (8, 1)
    assert workers_and_threads(3, "cpu") == (3, 2)
    assert workers_and_threads(20, "cpu") == (20, 1)
    assert workers_and_threads(None, "cuda:1") == (1, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers_and_threads(None, "cpu") == (4, 1)


@pytest.mark.slow
def test_a_failure_and_a_killed_worker_do_not_end_the_sweep(
    raw: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # The worker that dies is the one started last. The pool's own thread overlooks it, most of all while threads take
    # turns quickly; without the sweep's own precaution the test then ends after Patience, in most runs.
    interval = sys.getswitchinterval()
    request.addfinalizer(lambda: sys.setswitchinterval(interval))
    sys.setswitchinterval(1e-5)
    raw["arms"] = {"waits": {"act": "wait"}, "dies": {"act": "die"}, "fails": {"act": "fail"}, **raw["arms"]}
    experiment = experiment_from(raw)
    outcome = run_sweep(experiment, LineDomain(), tmp_path, seeds=[0], jobs=2, device="cpu")
    assert sorted(outcome.failed) == [
        "dies, seed 0: its process was killed, perhaps for lack of memory",
        "fails, seed 0: ValueError: diverged in seed-0000",
    ]
    assert (outcome.skipped, outcome.done) == (0, 4)  # three arms and the references
    assert (tmp_path / "cells/waits/seed-0000/resumed.txt").read_text() == "5"  # its worker was ended with the other
    assert "killed" in json.loads((tmp_path / "cells/dies/seed-0000/error.json").read_text())["error"]
    assert multiprocessing.active_children() == []

    again = run_sweep(experiment, LineDomain(), tmp_path, seeds=[0], arms=["full", "slow"], jobs=2, device="cpu")
    assert (again.skipped, again.done, again.failed) == (3, 0, ())
    raw["arms"]["fails"]["act"] = "nan"
    with pytest.raises(UserError, match=r'fails \(1 cell\): the settings changed \(act "fail" → "nan"\)'):
        run_sweep(experiment_from(raw), LineDomain(), tmp_path, seeds=[0], device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_keeps_checkpoints_and_continues(
    raw: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    raw["arms"]["full"]["act"] = "wait"
    experiment, folder = experiment_from(raw), tmp_path / "cells" / "full" / "seed-0000"

    def interrupt() -> None:
        while not (folder / "waiting").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    # As `bench.ranks.on_all_ranks` does for SIGTERM; SIGINT is ignored in what a shell starts in the background.
    before = signal.signal(number, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_sweep(experiment, LineDomain(), tmp_path, seeds=[0], jobs=1, device="cpu")
    finally:
        signal.signal(number, before)
    assert multiprocessing.active_children() == []
    assert (folder / "spent.json").exists()
    assert not (folder / "done.json").exists()
    if number == signal.SIGTERM:
        return
    outcome = run_sweep(experiment, LineDomain(), tmp_path, seeds=[0], jobs=1, device="cpu")
    assert (outcome.done, outcome.failed) == (3, ())
    assert (folder / "resumed.txt").read_text() == "5"


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench.ablation.domain, "open_domain", lambda spec: LineDomain())
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(LINE)
    assert cli.main(["sweep", "mine.toml", "--report-only"]) == 2
    assert "no records of a sweep in sweeps/line" in capsys.readouterr().err
    assert cli.main(["sweep", "mine.toml", "--device", "cpu", "--jobs", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out == Path("sweeps/line/table4.md").read_text()
    assert "cell 24 of 24" in shown.err
    assert "cannot reach" not in shown.err
    assert "holds here" in shown.out

    assert cli.main(["sweep", "mine.toml", "--device", "cpu", "--seeds", "0-3"]) == 0  # nothing to do: no workers
    again = capsys.readouterr()
    assert again.out == shown.out
    assert "note: 4 seeds cannot reach p < .05 (2/2^4 = 0.12); 7 seeds can" in again.err
    Path("sweeps/line/table4.md").unlink()
    assert cli.main(["sweep", "mine.toml", "--report-only"]) == 0
    assert Path("sweeps/line/table4.md").read_text() == shown.out
    assert cli.main(["sweep", "mine.toml", "--seeds", "0,0"]) == 2
    assert "--seeds: 0 given twice" in capsys.readouterr().err
    assert cli.main(["sweep", "mine.toml", "--arms", "ful"]) == 2
    assert "did you mean 'full'" in capsys.readouterr().err

    Path("mine.toml").write_text(LINE.replace("lr = 0.1", "lr = 0.2"))
    assert cli.main(["sweep", "mine.toml", "--device", "cpu"]) == 2
    assert "slow (8 cells): the settings changed (lr 0.1 → 0.2)" in capsys.readouterr().err
    changed = tomllib.loads(LINE)
    changed["arms"]["slow"]["act"] = "fail"
    failing = experiment_from(changed)
    monkeypatch.setattr("bench.ablation.experiment.read_experiment", lambda path: failing)
    assert cli.main(["sweep", "mine.toml", "--device", "cpu", "--redo-stale", "--jobs", "1"]) == 1
    shown = capsys.readouterr()
    assert "failed: slow, seed 0: ValueError: diverged" in shown.err
    assert "Not measured yet: w/o TSM." in shown.out


SHARED = """
import sys
from pathlib import Path

sys.path.append(sys.argv[1])
from conftest import LINE
from line_domain import LineDomain

import bench.ablation.domain
from bench import cli

if __name__ == "__main__":
    bench.ablation.domain.open_domain = lambda spec: LineDomain()
    Path(sys.argv[2]).write_text(LINE.replace("0-7", "0-1"))
    sys.exit(cli.main(["sweep", sys.argv[2], "--out", "out", "--device", "cpu"]))
"""


@pytest.mark.slow
def test_two_processes_share_the_cells_of_one_folder(tmp_path: Path) -> None:
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    here = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, script, here, f"mine{rank}.toml"],
            cwd=tmp_path,
            env={**os.environ, **launched, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONSAFEPATH": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert printed[0][0] == (tmp_path / "out" / "table4.md").read_text()
    assert printed[1][0] == ""
    assert "cell 3 of 3" in printed[0][1]  # its half of two arms and the references in two seeds
    assert len(list((tmp_path / "out").glob("*/**/done.json"))) == 6
