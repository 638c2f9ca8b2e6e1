"""The flat settings are the paper's run, wrong ones are refused, and the shipped experiments are the paper's arms."""

import dataclasses

import pytest

from bench.ablation.domain import open_domain
from bench.ablation.experiment import EXPERIMENTS, Experiment, read_experiment
from bench.ablation.paper.call import opened
from bench.ablation.paper.files import Files
from bench.ablation.paper.settings import config_of, default_settings, restoration_of
from bench.ablation.report.published import Published
from tsd.config import TrainConfig
from tsd.errors import UserError
from tsd.presets import PAPER


def shipped(name: str) -> Experiment:
    return read_experiment(EXPERIMENTS / f"{name}.toml")


def runs(experiment: Experiment) -> dict[str, TrainConfig]:
    return {arm.name: config_of(default_settings() | experiment.overrides(arm), seed=43) for arm in experiment.arms}


def test_the_defaults_are_the_papers_run_in_one_process() -> None:
    config = config_of(default_settings(), seed=43)
    assert config == dataclasses.replace(PAPER, gradient_accumulation=8)
    assert config.global_batch(1) == PAPER.global_batch(8) == 16
    assert restoration_of(default_settings()) == {"color": "adain", "process_size": 512, "posterior": "sample"}


def test_the_steps_are_shared_by_the_two_phases() -> None:
    config = config_of({"steps": 10, "first_share": 0.25, "point_weights": [1, 0.5]}, seed=0)
    assert [phase.steps for phase in config.phases] == [2, 8]
    assert [phase.point_weights for phase in config.phases] == [(1.0,), (1.0, 0.5)]
    assert [phase.latent_mse for phase in config.phases] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lamda_tsd": 1.0}, "unknown settings lamda_tsd"),
        ({"lr": "fast"}, "lr = 'fast'; expected float, found str"),
        ({"point_weights": 1.0}, "point_weights = 1.0; expected a list of numbers"),
        ({"steps": True}, "steps = True; expected int"),
        ({"first_share": 1.5}, "a share from 0 to 1"),
        ({"lambda_tsd": 2.0}, "lambda_tsd = 2.0 is not possible"),
        ({"color": "sepia"}, "color is 'sepia'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_domain("paper").check(settings | {k: v for k, v in default_settings().items() if k not in settings})


def test_table_4_has_the_papers_arms_and_its_figures_of_both_sets() -> None:
    experiment, domain = opened(shipped("paper-table4"), Files())
    arms = runs(experiment)
    assert [len(arms[name].phases[1].point_weights) for name in ("full", "no-tsm", "no-dasm")] == [5, 5, 1]
    assert [arms[name].lambda_tsd for name in ("full", "no-tsm", "no-dasm")] == [0.7, 1.0, 0.7]
    published = Published(experiment, domain)
    assert published.cells("full", "lpips of DRealSR") == ["0.2967"]
    assert published.cells("full", "lpips of RealSR") == ["0.2743"]
    assert published.cells("full", "lpips") == ["0.2967", "0.2743"]
    (fid,) = (measure for measure in domain.measures if measure.name == "realsr-fid")
    order = published.order("full", "no-dasm", fid)
    assert order is not None
    assert order.relative == pytest.approx(114.45 / 123.51 - 1)
    assert order.text() == "ahead in 1 of 1 FID of RealSR figures, -7.3 % on average"
    assert experiment.nightly
    assert experiment.seeds == (0,)


def test_table_6_has_the_papers_arms() -> None:
    experiment, domain = opened(shipped("paper-table6"), Files())
    found = {name: (len(arm.phases[1].point_weights) - 1, arm.stride) for name, arm in runs(experiment).items()}
    assert found == {
        "n2-s50": (2, 50.0), "n4-s50": (4, 50.0), "n8-s50": (8, 50.0), "n4-s25": (4, 25.0), "n4-s100": (4, 100.0),
    }  # fmt: skip
    assert Published(experiment, domain).cells("n8-s50", "fid of DRealSR") == ["151.64"]


def test_a_column_of_a_data_set_that_the_table_lacks_is_refused() -> None:
    experiment = shipped("paper-table6")
    wrong = dataclasses.replace(experiment, paper={"drealsr-fid": "fid of RealSR"})
    with pytest.raises(UserError, match="table6 has no data set 'RealSR'; expected one of DRealSR"):
        Published(*opened(wrong, Files()))
    wrong = dataclasses.replace(experiment, paper={"drealsr-fid": "fvd of DRealSR"})
    with pytest.raises(UserError, match=r"no column 'fvd of DRealSR'; .*lpips of DRealSR"):
        Published(*opened(wrong, Files()))


def test_measures_are_metrics_on_test_sets() -> None:
    experiment, domain = opened(shipped("paper-table4"), Files(), testsets=["mini", "div2k-val"])
    assert experiment.metrics[0] == "mini-lpips"
    assert domain.wanted()["div2k-val"] == ["lpips", "dists", "fid", "musiq", "maniqa", "clipiqa"]
    assert experiment.paper == {}
    for name, message in (
        ("lpips", "expected TESTSET-METRIC"),
        ("mini-fvd", "unknown metric 'fvd'"),
        ("moon-lpips", "unknown test set 'moon'"),
        ("realsrset-lpips", "has none"),
    ):
        with pytest.raises(UserError, match=message):
            domain.measuring([name])
    with pytest.raises(UserError, match="given twice"):
        opened(shipped("paper-table4"), Files(), testsets=["mini", "mini"])
