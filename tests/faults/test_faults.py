"""A small part of `nox -s faults`: a few kills of a few commands, and mutants of every form of input."""

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.cli import main as bench_main
from tsd.cli import main as tsd_main

sys.path.append(str(Path(__file__).parent))

from fuzzing import fuzz

MAIN = Path(__file__).with_name("main.py")


def test_what_a_folder_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody, not even root, makes a folder in /sys."""
    if not Path("/sys").is_dir():
        pytest.skip("no /sys")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    run = ["run", "--methods", "bicubic", "--metrics", "psnr", "--limit", "1", "--no-timing", "--no-figure"]
    assert bench_main([*run, "--device", "cpu", "--out", "/sys/run"]) == 2
    assert "/sys/run" in capsys.readouterr().err
    assert tsd_main(["degrade", str(tmp_path / "a.png"), "-o", "/sys/low"]) in (1, 2)
    assert "/sys/low" in capsys.readouterr().err


def test_broken_inputs_give_a_clear_error_or_the_right_result(tmp_path: Path) -> None:
    """Seeds of their own: `nox -s faults` has others."""
    outcomes = fuzz(tmp_path, seed=1000, mutants=40)
    assert {name: outcome.lost for name, outcome in outcomes.items() if outcome.lost} == {}
    assert all(outcome.refused and outcome.cases == 40 for outcome in outcomes.values())


@pytest.mark.slow
def test_commands_survive_faults(tmp_path: Path, warm: Any) -> None:
    """Other tests kill `bench run`, `tsd prepare` and `tsd train` at several instants."""
    commands, kinds = ("bench sweep",), ("kill", "full", "eio-write", "read-only")
    arguments = ("--commands", *commands, "--kinds", *kinds, "--instants", 1, "--others", 1, "--mutants", 0)
    done = warm.run(MAIN, *arguments, "--report", tmp_path / "faults.md", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "faults.md").read_text()
    assert "Nothing was lost." in report
    assert all(f"| `{name}` |" in report for name in commands)
