"""A sweep's file is checked to the last key before anything runs, and says what was expected."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from line_domain import LineDomain

from bench.ablation.experiment import (
    check_experiment,
    chosen,
    experiment_from,
    find_experiment,
    read_experiment,
    resolved_settings,
    seeds_from,
    shipped,
)
from bench.ablation.report.published import Published
from bench.ablation.statistics import seeds_to_decide
from tsd.errors import UserError


def test_the_settings_of_an_arm_are_the_domains_then_the_files(raw: dict[str, Any]) -> None:
    raw["settings"]["point_weights"] = [1, 1, 1]
    raw["sweep"]["checkpoint_every"] = 7
    experiment = experiment_from(raw)
    settings = resolved_settings(experiment, experiment.arm("full"), LineDomain())
    given = {"steps": 15, "lr": 0.5, "point_weights": [1.0, 1.0, 1.0], "checkpoint_every": 7}
    assert settings == {**given, "optimizer": "adamw", "act": ""}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0-3", (0, 1, 2, 3)), ("0-1, 5", (0, 1, 5)), ("7", (7,)), ([3, 1], (3, 1))],
)
def test_seeds_are_ranges_or_a_list(given: Any, expected: tuple[int, ...]) -> None:
    assert seeds_from(given, "here") == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0-7,3", "3 given twice"),
        ([1, 1], "1 given twice"),
        ("3-1", "holds no seed"),
        ("a", "expected seeds such as"),
        ([1.5], "expected integers"),
        ([-1], "expected integers"),
    ],
)
def test_bad_seeds_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        seeds_from(given, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["sweep"].update(metric=["error"]), "unknown key 'metric' .did you mean 'metrics'"),
        (lambda raw: raw.update(arm={}), "unknown key 'arm' .did you mean 'arms'"),
        (lambda raw: raw["sweep"].pop("question"), "`question` is missing"),
        (lambda raw: raw["sweep"].update(nightly="no"), "nightly: expected true or false, found 'no'"),
        (lambda raw: raw["sweep"].update(metrics=[]), "expected the names of one measure or more"),
        (lambda raw: raw["sweep"].update(metrics=["error", "error"]), "error given twice"),
        (lambda raw: raw["sweep"].update(table="table5"), "unknown 'table5'.*table4, table6"),
        (lambda raw: raw["sweep"].pop("table"), "`paper` names figures of the paper"),
        (lambda raw: raw["sweep"].update(name="../up"), "cannot name a folder"),
        (lambda raw: raw.update(arms={}), "expected at least one"),
        (lambda raw: raw["arms"].update({"a b": {}}), "cannot name a folder"),
        (lambda raw: raw["comparisons"][0].update(against="slw"), "unknown 'slw' .did you mean 'slow'"),
        (lambda raw: raw["comparisons"][0].update(against="full"), "compared with itself"),
        (lambda raw: raw["comparisons"].append({"of": "slow", "against": "full"}), "compared twice"),
        (lambda raw: raw["comparisons"][0].update(metrics=["fid"]), "unknown 'fid'"),
        (lambda raw: raw["sweep"]["matched"].update(arms=["ful"]), "unknown 'ful'"),
        (lambda raw: raw["sweep"]["matched"].update(x="error"), "both x and a metric"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(raw: dict[str, Any], change: Any, message: str) -> None:
    change(raw)
    with pytest.raises(UserError, match=message):
        experiment_from(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: raw["arms"]["full"].update(rank=8),
            r"\[arms.full\]: unknown setting 'rank'.*knows steps",
        ),
        (lambda raw: raw["settings"].update(stepz=1), r"\[settings\]: unknown setting 'stepz' .did you mean 'steps'"),
        (lambda raw: raw["arms"]["full"].update(seed=1), r"`seed` is not a setting"),
        (lambda raw: raw["arms"]["full"].update(lr=0.1), "'full' and 'slow' have equal settings"),
        (lambda raw: raw["arms"].update(same={"lr": 0.5, "point_weights": [1, 0.3]}), "'full' and 'same' have equal"),
        (lambda raw: raw["settings"].update(steps=0), r"\[arms.full\]: steps = 0; expected 1 or more"),
        (lambda raw: raw["sweep"].update(metrics=["erorr"], paper={}), "no measure 'erorr' .did you mean 'error'"),
        (lambda raw: raw["sweep"].update(curve_every=3), "unknown setting 'curve_every'"),
    ],
)
def test_an_experiment_that_does_not_fit_its_domain_is_refused(raw: dict[str, Any], change: Any, message: str) -> None:
    change(raw)
    with pytest.raises(UserError, match=message):
        check_experiment(experiment_from(raw), LineDomain())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["arms"]["full"].update(paper="Ful"), "no row 'Ful'; expected one of w/o TSM; w/o DASM; Full"),
        (lambda raw: raw["sweep"].update(paper={"error": "fud"}), "no column 'fud'"),
        (lambda raw: raw["sweep"].update(paper={"error": "musiq"}), "do not count in the same direction"),
    ],
)
def test_rows_and_columns_that_the_paper_does_not_have_are_refused(
    raw: dict[str, Any], change: Any, message: str
) -> None:
    change(raw)
    with pytest.raises(UserError, match=message):
        Published(experiment_from(raw), LineDomain())


def test_arms_are_chosen_by_name_in_the_files_order(raw: dict[str, Any]) -> None:
    experiment = experiment_from(raw)
    assert [arm.name for arm in chosen(["slow", "full"], experiment)] == ["full", "slow"]
    with pytest.raises(UserError, match=r"unknown 'fulll' .did you mean 'full'"):
        chosen(["fulll"], experiment)
    with pytest.raises(UserError, match="given twice"):
        chosen(["full", "full"], experiment)


def test_a_file_is_found_by_path_or_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("not toml")
    assert find_experiment(str(path)) == path
    with pytest.raises(UserError, match="is not TOML"):
        read_experiment(path)
    with pytest.raises(UserError, match=r"no experiment 'no-such'.*bench sweep --list"):
        find_experiment("no-such")


def test_every_shipped_experiment_is_named_like_its_file() -> None:
    for path in shipped():
        assert read_experiment(path).name == path.stem


def test_tests_are_comparisons_times_metrics_and_what_is_matched(raw: dict[str, Any]) -> None:
    assert experiment_from(raw).tests() == 2 + 1
    raw["comparisons"][0]["metrics"] = ["slope"]
    raw["sweep"]["matched"] = {"x": "slope", "references": "slow: shrunk", "metrics": ["error"]}
    assert experiment_from(raw).matched_arms() == ("full",)  # `slow` is not held against its own references
    assert experiment_from(raw).tests() == 1 + 1
    del raw["comparisons"], raw["sweep"]["matched"]
    assert experiment_from(raw).tests() == 0


def test_every_shipped_experiment_has_seeds_enough_to_decide() -> None:
    """But those of the paper's scale, for the sake of GPU hours, and CI, which asks whether numbers stand still."""
    for path in shipped():
        experiment = read_experiment(path)
        if experiment.domain != "paper" and experiment.name != "mixture-ci":
            assert len(experiment.seeds) >= seeds_to_decide(experiment.tests()), experiment.name


def test_a_wrong_file_is_an_error_before_torch_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[sweep]\nname = "x"\nquestion = "?"\ndomain = "nowhere"\nseeds = "0"\nmetrics = ["a"]\n[arms.a]\n')
    code = f"""
import sys
from bench.cli import main
print(main(["sweep", {str(path)!r}]), main(["sweep", "--list"]), main(["sweep"]), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "2 0 2 False", done.stderr
    assert "no domain 'nowhere'" in done.stderr
