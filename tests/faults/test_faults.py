"""A small part of `nox -s faults`: a few kills of a few commands, and mutants of every form of input."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from fuzzing import fuzz

MAIN = Path(__file__).with_name("main.py")


def test_broken_inputs_give_a_clear_error_or_the_right_result(tmp_path: Path) -> None:
    """Seeds of their own: `nox -s faults` has others."""
    outcomes = fuzz(tmp_path, seed=1000, mutants=40)
    assert {name: outcome.lost for name, outcome in outcomes.items() if outcome.lost} == {}
    assert all(outcome.right and outcome.refused and outcome.cases == 40 for outcome in outcomes.values())


@pytest.mark.slow
def test_commands_survive_faults(tmp_path: Path, warm: Any) -> None:
    """Of the others `tests/bench/run/test_interruption.py` and `tests/tsd/data/test_prepare.py` kill more often."""
    commands = ("bench fetch", "bench sweep", "tsd train", "tsd restore")
    arguments = ("--commands", *commands, "--instants", 2, "--others", 1, "--mutants", 0, "--seed", 1)
    done = warm.run(MAIN, *arguments, "--report", tmp_path / "faults.md", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "faults.md").read_text()
    assert "Nothing was lost." in report
    assert all(f"| `{name}` |" in report for name in commands)
