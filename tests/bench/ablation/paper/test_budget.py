"""The dry run on the tiny model: FLOPs grow with N and not with s, and its commands train the arms."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from bench.ablation.experiment import experiment_from
from bench.ablation.paper.budget import PEAK_FLOPS, SHARE, arm_budgets, to_text, write_commands
from bench.ablation.paper.files import Files
from tsd.cli import build_parser
from tsd.commands.train import resolve_config
from tsd.config import TrainConfig
from tsd.memory.flops import SampleFlops


@pytest.mark.slow
def test_n_costs_and_s_does_not(raw_paper: dict[str, Any], tiny_sd3_dir: Path, tmp_path: Path) -> None:
    weights = {2: [1.0, 0.3, 0.3], 4: [1.0, 0.3, 0.3, 0.3, 0.3], 8: [1.0, *[0.3] * 8]}
    arms: dict[str, Any] = {f"n{n}": {"point_weights": found} for n, found in weights.items()}
    arms |= {"s25": {"stride": 25.0}, "s100": {"stride": 100.0}, "no-tsm": {"lambda_tsd": 1.0}}
    arms |= {"no-dasm": {"point_weights": [1.0]}, "given": {"gamma2": 0.5}, "long": {"steps": 12}}
    experiment = experiment_from(raw_paper | {"arms": arms, "comparisons": []})
    files = Files(model=str(tiny_sd3_dir), students=(("given", tmp_path / "student"),))
    budgets = {budget.arm.name: budget for budget in arm_budgets(experiment, experiment.arms, files, seed=3)}
    flops = {name: budget.flops for name, budget in budgets.items() if budget.flops is not None}
    hours = {name: budget.gpu_hours("A100") for name, budget in budgets.items()}
    assert hours["no-dasm"] < hours["n2"] < hours["n4"] < hours["n8"]
    assert hours["s25"] == hours["n4"] == hours["s100"]
    assert hours["no-tsm"] < hours["n4"]
    assert hours["given"] == 0
    assert hours["long"] == 2 * hours["n4"]
    assert flops["n8"].data == flops["n2"].data
    # Three steps with one point and three with N + 1, each point two latents of the teacher and one of the critic.
    assert flops["n8"].trajectory / flops["n2"].trajectory == pytest.approx((1 + 9) / (1 + 3))
    # λ = 1 leaves out the teacher at z_t; the critic costs a little more than the teacher, by its adapter.
    assert flops["no-tsm"].trajectory / flops["n4"].trajectory == pytest.approx(2 / 3, rel=0.01)
    assert hours["n4"] == pytest.approx(flops["n4"].total * 2 / (PEAK_FLOPS["A100"] * SHARE) / 3600)

    commands = write_commands(list(budgets.values()), files, tmp_path)
    assert set(commands) == set(arms) - {"given"}
    for name, command in commands.items():
        words = shlex.split(command.replace("$(which tsd)", "tsd"))
        args = build_parser().parse_args(words[words.index("tsd") + 1 :])
        config = resolve_config(args)
        assert config == budgets[name].config
        assert args.model == str(tiny_sd3_dir)
    text = to_text(list(budgets.values()), commands, "tiny", seeds=1)
    assert "nothing of it measured" in text
    assert "35 % of a GPU's peak" in text
    assert "finished student" in text
    assert text.count("accelerate launch") == len(commands)
    for gpu in ("24 GiB", "80 GiB"):
        assert gpu in text


def test_eight_gpus_share_the_global_batch_where_it_divides(tmp_path: Path) -> None:
    from bench.ablation.experiment import EXPERIMENTS, read_experiment
    from bench.ablation.paper.budget import ArmBudget, launch_command
    from bench.ablation.paper.settings import config_of

    experiment = read_experiment(EXPERIMENTS / "paper-table4.toml")
    config = config_of({}, seed=0)
    flops = SampleFlops(1.0, 2.0, 3.0)
    command = launch_command(ArmBudget(experiment.arms[0], config, None, flops), Files(), tmp_path / "c.json", tmp_path)
    assert "gpu-8x-ddp.yaml" in command
    assert "--gradient-accumulation 1" in command
    odd = dataclasses.replace(config, batch_size=3, gradient_accumulation=5)
    command = launch_command(ArmBudget(experiment.arms[0], odd, None, flops), Files(), tmp_path / "c.json", tmp_path)
    assert "gpu-1x-80gb.yaml" in command
    assert "--gradient-accumulation 5" in command


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("[]", "holds no settings"),
        ("{", "is no run's config.json"),
        ('{"phases": []}', "miss"),
    ],
)
def test_a_file_without_settings_is_refused(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tsd.cli import main

    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    assert main(["train", "--config", str(path), "--print-config"]) == 2
    assert message in capsys.readouterr().err


def test_settings_in_a_file_are_read_and_overridden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.ablation.paper.settings import config_of
    from tsd.cli import main

    config = config_of({"point_weights": [1.0, 0.5]}, seed=3)
    (tmp_path / "config.json").write_text(config.to_json())
    assert main(["train", "--config", str(tmp_path / "config.json"), "--lr", "0.5", "--print-config"]) == 0
    assert TrainConfig.from_dict(json.loads(capsys.readouterr().out)) == dataclasses.replace(config, lr=0.5)
    assert main(["train", "--stage", "teacher", "--config", "x.json", "--print-config"]) == 2
    assert "--config: not a setting of --stage teacher" in capsys.readouterr().err
