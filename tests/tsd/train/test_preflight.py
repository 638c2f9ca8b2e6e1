"""What is wrong is told before weights are loaded."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tsd.cli import main
from tsd.errors import UserError
from tsd.presets import MINI
from tsd.train.preflight import check_run, require_tracker
from tsd.train.settings import RunSettings

TINY = dataclasses.replace(MINI, batch_size=2, crop=32, rank=4, vae_rank=4, critic_rank=4)
PHOTOS = [np.zeros((48, 40, 3), np.uint8)]


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("diffusers.AutoencoderKL.from_pretrained", refuse)
    monkeypatch.setattr("diffusers.SD3Transformer2DModel.from_pretrained", refuse)
    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", refuse)


def check(model: Path, **options: object):
    config = options.pop("config", TINY)
    return check_run(RunSettings(**{"model": model, "data": PHOTOS, "output": None} | options), config, 2)


def changed(lora: Path, to: Path, file: str, change) -> Path:
    shutil.copytree(lora, to)
    state = load_file(to / file)
    save_file(change(state), to / file)
    return to


def test_a_good_run_passes_and_is_described(tiny_sd3_dir: Path, tiny_lora_dir: Path) -> None:
    checked = check(tiny_sd3_dir, init_lora=tiny_lora_dir, teacher_lora=tiny_lora_dir)
    assert checked.record["global_batch"] == 4
    assert checked.record["init_lora"] == checked.record["teacher_lora"]
    assert len(checked.teacher_targets) > 10
    assert "2 processes x 1 micro-batches x 2" in "\n".join(checked.summary)
    assert checked.record["model"] != check(tiny_sd3_dir).record["init_lora"]


def test_lora_files_are_judged_by_their_headers(
    tiny_sd3_dir: Path, tiny_sd2_dir: Path, tiny_lora_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="another rank than this run: 4, not 8"):
        check(tiny_sd3_dir, init_lora=tiny_lora_dir, config=dataclasses.replace(TINY, vae_rank=8))
    with pytest.raises(UserError, match="another family"):
        check(tiny_sd2_dir, init_lora=tiny_lora_dir)
    with pytest.raises(UserError, match="of another family: it holds transformer"):
        check(tiny_sd2_dir, teacher_lora=tiny_lora_dir)
    some = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    wide = changed(
        tiny_lora_dir, tmp_path / "wide", "transformer.safetensors", lambda s: {**s, some: torch.zeros(99, 4)}
    )
    for option in ("init_lora", "teacher_lora"):
        with pytest.raises(UserError, match=r"attn\.to_q.*belongs to another model"):
            check(tiny_sd3_dir, **{option: wide})
    few = changed(
        tiny_lora_dir, tmp_path / "few", "transformer.safetensors",
        lambda s: {key: value for key, value in s.items() if "blocks.0.attn.to_q" in key},
    )  # fmt: skip
    assert check(tiny_sd3_dir, teacher_lora=few).teacher_targets == ["transformer_blocks.0.attn.to_q"]
    with pytest.raises(UserError, match="does not adapt the"):
        check(tiny_sd3_dir, init_lora=few)


def test_models_prompts_and_data(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_sd3_dir, model)
    save_file({"prompt_embeds": torch.zeros(1, 5, 13)}, model / "prompts" / "null" / "prompt_embeds.safetensors")
    with pytest.raises(UserError, match="this model reads"):
        check(model)
    shutil.rmtree(model / "prompts" / "null")
    with pytest.raises(UserError, match="no 'null' prompt"):
        check(model)
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        check(model)
    with pytest.raises(UserError, match="multiple of 16"):
        check(tiny_sd3_dir, config=dataclasses.replace(TINY, crop=40))
    with pytest.raises(UserError, match="positions for 1024"):
        check(tiny_sd3_dir, config=dataclasses.replace(TINY, crop=1040))
    with pytest.raises(UserError, match="no such file or folder"):
        check(tiny_sd3_dir, data=[tmp_path / "nowhere"])


def test_a_regularisation_of_ones_own_is_tried_before_weights_are_loaded(
    tiny_sd3_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def mine(point, w, config):\n    return w * point.teacher_hat\n")
    checked = check(tiny_sd3_dir, config=dataclasses.replace(TINY, regularisation=f"python:{file}:mine"))
    assert checked.regularisation is not None
    assert checked.record["regularisation"] == checked.regularisation.identity
    assert check(tiny_sd3_dir).record["regularisation"] == "tsd"
    with pytest.raises(UserError, match="has no function 'vsd'; it defines mine"):
        check(tiny_sd3_dir, config=dataclasses.replace(TINY, regularisation=f"python:{file}:vsd"))
    assert main(["train", "--regularisation", "python:mine.py", "--print-config"]) == 2
    assert "regularisation = 'python:mine.py' is not possible" in capsys.readouterr().err


def test_trackers_by_name() -> None:
    require_tracker("none")
    require_tracker("tensorboard")
    with pytest.raises(UserError, match=r"no tracker 'tensorbord'; choose one of none, .*wandb"):
        require_tracker("tensorbord")
    with pytest.raises(UserError, match="pip install aim"):
        require_tracker("aim")


def test_the_command_refuses_settings_of_the_other_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--stage", "teacher", "--lambda-tsd", "0.5", "--print-config"]) == 2
    assert "--lambda-tsd: not a setting of --stage teacher" in capsys.readouterr().err
    assert main(["train", "--stage", "teacher", "--max-train-steps", "10", "--print-config"]) == 0
    assert '"steps": 10' in capsys.readouterr().out
    assert main(["train", "--accelerate-configs"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "gpu-8x-fsdp.yaml").is_file()


@pytest.mark.parametrize("stage", ["student", "teacher"])
def test_dry_run(stage: str, tiny_sd3_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    Image.fromarray(PHOTOS[0]).save(data / "a.png")
    command = ["train", "--stage", stage, "--model", str(tiny_sd3_dir), "--data", str(data), "--crop", "32"]
    output = tmp_path / "run"
    assert main([*command, "--output", str(output), "--rank", "4", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "data: " in told
    assert ("Memory plan for" if stage == "student" else "no plan of its own") in told
    assert not output.exists()
    assert main([*command, "--output", str(output), "--tracker", "nonsense", "--dry-run"]) == 2


def test_without_data_the_memory_is_planned_from_the_configuration_alone(
    tiny_sd3_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    for part in ("transformer", "vae", "scheduler"):
        (model / part).mkdir(parents=True)
        for config in (tiny_sd3_dir / part).glob("*.json"):
            (model / part / config.name).write_bytes(config.read_bytes())
    assert main(["train", "--model", str(model), "--crop", "32", "--rank", "4", "--dry-run"]) == 0
    assert "Memory plan for" in capsys.readouterr().out
    assert main(["train", "--model", "some/other-model", "--dry-run"]) == 2
    assert "config.json files" in capsys.readouterr().err
