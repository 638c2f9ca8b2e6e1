"""Several processes: the same parameters as one, after kills, under FSDP and between both; and the launcher's files."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import tsd
from tsd.errors import UserError
from tsd.presets import MINI
from tsd.train import parallel
from tsd.train.parallel import _buckets, check_launcher

SCENARIOS = Path(__file__).with_name("process_scenarios.py")
CONFIGS = Path(tsd.__file__).parent / "assets" / "accelerate"
ENVIRONMENT = os.environ | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def runs(tiny_sd3_dir: Path, tmp_path_factory: pytest.TempPathFactory, warm: Any) -> Path:
    """Run folders of the scenarios of process_scenarios.py."""
    output = tmp_path_factory.mktemp("processes")
    names = ["one", "ddp", "killed", "fsdp", "one-then-fsdp"]
    names += ["zero"] if find_spec("deepspeed") else []
    assert "killed: -9" in run_scenarios(warm, tiny_sd3_dir, output, names)  # seen by its launcher
    return output


def run_scenarios(warm: Any, model: Path, output: Path, names: list[str]) -> str:
    done = warm.run(SCENARIOS, model, output, *names, cwd=output, env=ENVIRONMENT, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def largest_difference(a: Path, b: Path) -> float:
    """Over all parameters of two students."""
    largest = 0.0
    files = sorted(path.name for path in (a / "student").glob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        x, y = load_file(a / "student" / file), load_file(b / "student" / file)
        assert x.keys() == y.keys()
        largest = max(largest, *(float((x[key] - y[key]).abs().max()) for key in x))
    return largest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "killed", "fsdp", "fsdp-then-one", "one-then-fsdp"])
def test_processes_give_the_parameters_of_one(runs: Path, name: str) -> None:
    """After five steps of the same global batch; a step of Adam moves a parameter by about 1e-3 here.

    `fsdp` recomputes activations too; `fsdp-then-one` and `one-then-fsdp` resume each other's checkpoints.
    """
    assert largest_difference(runs / "one", runs / name) < 1e-5


@pytest.mark.slow
def test_a_unet_is_sharded_too(tiny_sd2_v_dir: Path, tmp_path: Path, warm: Any) -> None:
    """Its blocks hold blocks. Looser than above: ẑ magnifies what the order of a sum leaves."""
    run_scenarios(warm, tiny_sd2_v_dir, tmp_path, ["sharded"])
    assert largest_difference(tmp_path / "one", tmp_path / "sharded") < 5e-5


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed (it builds its own kernels)")
@pytest.mark.parametrize("name", ["zero", "zero-then-one", "one-then-zero"])
def test_deepspeed_gives_the_parameters_of_one(runs: Path, name: str) -> None:
    assert largest_difference(runs / "one", runs / name) < 1e-5


@pytest.mark.slow
def test_a_killed_process_costs_nothing(runs: Path) -> None:
    assert largest_difference(runs / "ddp", runs / "killed") == 0
    rows = [json.loads(line)["step"] for line in (runs / "killed" / "log.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5]
    assert not list((runs / "killed" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_accelerate_launches_the_command(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(data / "a.png")
    command = [
        str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", str(CONFIGS / "cpu-2x.yaml"),
        str(Path(sys.executable).with_name("tsd")), "train", "--device", "cpu", "--model", str(tiny_sd3_dir),
        "--data", str(data), "--output", str(tmp_path / "run"), "--crop", "32", "--max-train-steps", "1",
        "--batch-size", "1", "--rank", "4", "--vae-rank", "4", "--tracker", "none",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("student written to") == 1
    (record,) = (tmp_path / "run" / "checkpoints").glob("*/record.json")
    assert json.loads(record.read_text())["global_batch"] == 2


def test_ready_configurations_are_accelerates() -> None:
    names = {path.name for path in CONFIGS.glob("*.yaml")}
    assert {
        "gpu-1x-24gb.yaml",
        "gpu-1x-80gb.yaml",
        "gpu-8x-ddp.yaml",
        "gpu-8x-fsdp.yaml",
        "gpu-8x-zero2.yaml",
        "cpu-2x.yaml",
    } <= names
    for path in CONFIGS.glob("*.yaml"):
        config = load_config_from_file(str(path))
        assert config.num_processes == int(path.stem.split("-")[1].removesuffix("x"))
        if "fsdp" in path.stem:
            assert config.fsdp_config["fsdp_version"] == 2


def test_gradients_travel_in_few_flat_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = [torch.zeros(size) for size in (3, 5, 100, 1)] + [torch.zeros(2, dtype=torch.float64)]
    assert [len(bucket) for bucket in _buckets(gradients)] == [4, 1]
    monkeypatch.setattr(parallel, "BUCKET_BYTES", 40)
    assert [len(bucket) for bucket in _buckets(gradients)] == [2, 1, 1, 1]


def test_launchers_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="fsdp_version: 2"):
        check_launcher(MINI)
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_launcher(MINI)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(UserError, match="offload"):
        check_launcher(MINI)


def test_what_is_not_covered_of_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(UserError, match="use FSDP"):
        check_launcher(MINI)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(UserError, match="bf16"):
        check_launcher(dataclasses.replace(MINI, mixed_precision="fp16"))
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match="pip install deepspeed"):
        check_launcher(MINI)
    settings = tmp_path / "zero.json"
    settings.write_text(json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(settings))
    with pytest.raises(UserError, match="without offloading"):
        check_launcher(MINI)


def test_clipping_is_torchs_own() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([3.0, 0.0, 4.0, 0.0])
    assert parallel.clip_gradients([parameter], 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.0, 0.8, 0.0]))
