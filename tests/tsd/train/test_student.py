"""The training loop on the tiny SD3-family model: turns, resumption, divergence, the command."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tsd.algorithm.pixel_loss import charbonnier
from tsd.algorithm.turns import Batch, critic_turn, student_turn
from tsd.cli import main
from tsd.config import Phase, RestoreConfig, TrainConfig
from tsd.data.degrade import FULL
from tsd.errors import UserError
from tsd.files import alone_in
from tsd.model.backbone import load_backbone
from tsd.model.lora import adapter_parameters, attach, denoiser_targets, vae_targets
from tsd.presets import MINI, PRESETS
from tsd.restore import Restorer
from tsd.train.run_log import TIMING, RunLog
from tsd.train.settings import RunSettings
from tsd.train.student import DivergenceError, train

TINY = dataclasses.replace(
    MINI,
    phases=(
        Phase(steps=2, latent_mse=1.0, gamma2=0.0, point_weights=(1.0,)),
        Phase(steps=2, latent_mse=0.5, gamma2=1.0, point_weights=(1.0, 0.3)),
    ),
    batch_size=2,
    crop=32,
    rank=4,
    vae_rank=4,
    critic_rank=4,
    warmup_steps=1,
    mixed_precision="no",
    checkpoint_every=1,
    validate_every=2,
    random_bias=True,
    posterior="sample",
)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (48, 40, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(params=["tiny_sd3_dir", "tiny_sd2_dir", "tiny_sd2_v_dir"])
def tiny_model_dir(request: pytest.FixtureRequest) -> Path:
    """Every family and prediction: flow, epsilon, v."""
    return request.getfixturevalue(request.param)


def tiny_run(
    model: Path, photos: list[np.ndarray], output: Path, config: TrainConfig = TINY, **options: object
) -> Path:
    settings = RunSettings(model=model, data=photos, output=output, tracker="none", cpu=True, **options)
    return train(settings, config).lora


def test_train_from_a_notebook(photos: list[np.ndarray], tmp_path: Path) -> None:
    """The example of the documents: the shipped mini model, its preset shortened, and the paths of what came out."""
    short = dataclasses.replace(MINI.scaled_to(2), crop=64, batch_size=1, mixed_precision="no")
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    for name, side in (("photo", 80), ("held-out/photo", 256)):
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    data = str(tmp_path / "photo.png")
    settings = RunSettings(data=data, output=tmp_path / "run", val_data=held_out, tracker="none", cpu=True)
    run = train(settings, short)
    assert (run.output, run.step, run.stopped_by) == (tmp_path / "run", 2, None)
    assert [json.loads(line)["step"] for line in run.log.read_text().splitlines()] == [1, 2]
    assert run.best is not None
    for lora in (run.lora, run.best):
        assert (lora / "transformer.safetensors").is_file()
    restored = Restorer.load(lora=run.lora)(photos[0][:16, :16])
    assert restored.shape == (64, 64, 3)
    with pytest.raises(UserError, match="--output"):
        train(RunSettings(data=photos, output=None, cpu=True), short)


def same_student(a: Path, b: Path) -> bool:
    names = sorted(path.name for path in a.glob("*.safetensors"))
    assert len(names) == 2
    pairs = [(load_file(a / name), load_file(b / name)) for name in names]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)


def test_resume_equals_uninterrupted_bit_for_bit(
    tiny_model_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    whole = tiny_run(tiny_model_dir, photos, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "log.jsonl").write_text('{"step": 1}\n{"st')  # of a kill before the first checkpoint
    for stop in (1, 3, None):
        parts = tiny_run(tiny_model_dir, photos, tmp_path / "parts", resume=True, stop_after=stop)
    assert same_student(whole, parts)
    rows = [
        [
            {name: value for name, value in json.loads(line).items() if name not in TIMING}
            for line in (tmp_path / run / "log.jsonl").read_text().splitlines()
        ]
        for run in ("whole", "parts")
    ]
    assert [row["step"] for row in rows[0]] == [1, 2, 3, 4]
    assert rows[0] == rows[1]


def test_the_student_moves_and_seed_matters(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    first = tiny_run(tiny_sd3_dir, photos, tmp_path / "a")
    other = tiny_run(tiny_sd3_dir, photos, tmp_path / "b", dataclasses.replace(TINY, seed=TINY.seed + 1))
    b = {k: v for k, v in load_file(first / "transformer.safetensors").items() if "lora_B" in k}
    assert sum(float(v.abs().sum()) > 0 for v in b.values()) > len(b) * 0.8
    assert not same_student(first, other)


def test_gradients_flow_only_where_the_turn_says(tiny_model_dir: Path) -> None:
    backbone = load_backbone(tiny_model_dir)
    family = backbone.family
    attach(backbone.denoiser, "student", denoiser_targets(backbone.denoiser, family.student_targets), 4, seed=1)
    attach(backbone.vae, "student", vae_targets(backbone.vae), 4, seed=2)
    attach(backbone.denoiser, "critic", denoiser_targets(backbone.denoiser, family.critic_targets), 4, seed=3)
    adapters = {
        "student.denoiser": adapter_parameters(backbone.denoiser, "student"),
        "student.vae": adapter_parameters(backbone.vae, "student"),
        "critic": adapter_parameters(backbone.denoiser, "critic"),
    }
    for group in adapters.values():
        for parameter in group.values():
            parameter.data.normal_(std=0.05)
    everything = [*backbone.denoiser.named_parameters(), *backbone.vae.named_parameters()]
    base = [parameter for name, parameter in everything if "lora_" not in name]
    batch = Batch(torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1, [0, 1])
    phase = TINY.phases[1]

    turn = student_turn(backbone, batch, TINY, phase, 1.0, charbonnier)
    turn.loss.backward()
    student = [*adapters["student.denoiser"].values(), *adapters["student.vae"].values()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student)
    assert sum(float(p.grad.abs().sum()) > 0 for p in student) > len(student) * 0.8
    assert all(p.grad is None for p in [*adapters["critic"].values(), *base])  # base: teacher and frozen decoder

    for parameter in student:
        parameter.grad = None
    assert not turn.z_hat.requires_grad
    critic_turn(backbone, turn.z_hat, batch.indices, TINY).loss.backward()
    assert all(p.grad is not None for p in adapters["critic"].values())
    assert all(p.grad is None for p in [*student, *base])


def test_turns_do_not_depend_on_the_batch(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    family = backbone.family
    attach(backbone.denoiser, "student", denoiser_targets(backbone.denoiser, family.student_targets), 4, seed=1)
    attach(backbone.vae, "student", vae_targets(backbone.vae), 4, seed=2)
    attach(backbone.denoiser, "critic", denoiser_targets(backbone.denoiser, family.critic_targets), 4, seed=3)
    x_L, x_H = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    phase = TINY.phases[1]
    both = student_turn(backbone, Batch(x_L, x_H, [7, 8]), TINY, phase, 1.0, charbonnier)
    alone = [
        student_turn(backbone, Batch(x_L[i : i + 1], x_H[i : i + 1], [7 + i]), TINY, phase, 1.0, charbonnier)
        for i in range(2)
    ]
    torch.testing.assert_close(both.z_hat, torch.cat([turn.z_hat for turn in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        both.logs["tsd"], torch.stack([t.logs["tsd"] for t in alone]).mean(), atol=1e-6, rtol=1e-4
    )


def test_divergence_stops_and_keeps_the_last_good_checkpoint(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    tiny_run(tiny_sd3_dir, photos, tmp_path / "run", dataclasses.replace(TINY, abort_grad_norm=1e4), stop_after=2)
    broken = tmp_path / "broken"
    config = dataclasses.replace(TINY, lr=1e30, checkpoint_every=1)
    with pytest.raises(DivergenceError, match=r"diverged at step \d+.*Last good checkpoint"):
        tiny_run(tiny_sd3_dir, photos, broken, config)
    assert not (broken / "student").exists()


def test_gradient_norm_limit_is_divergence(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="grad_norm"):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "x", dataclasses.replace(TINY, abort_grad_norm=1e-9))


def test_wrong_use_is_refused_before_training(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_run(tiny_sd3_dir, photos, run, stop_after=1)
    with pytest.raises(UserError, match="--resume"):
        tiny_run(tiny_sd3_dir, photos, run)
    with pytest.raises(UserError, match=r"lambda_tsd: 0\.7 then, 0\.1 now"):
        tiny_run(tiny_sd3_dir, photos, run, dataclasses.replace(TINY, lambda_tsd=0.1), resume=True)
    with pytest.raises(UserError, match="multiple of 16"):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "odd", dataclasses.replace(TINY, crop=24))
    with pytest.raises(UserError, match="alexnet"):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "lpips", dataclasses.replace(TINY, pixel_loss="lpips"))
    state = next((run / "checkpoints").iterdir()) / "state.pt"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        tiny_run(tiny_sd3_dir, photos, run, resume=True)


def test_initial_student_and_validation(
    tiny_sd3_dir: Path, tiny_lora_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 264, 3), dtype=np.uint8)).save(held_out / "a.png")
    config = dataclasses.replace(TINY, phases=(Phase(1, 1.0, 0.0, (1.0,)),), lr=1e-12, gradient_accumulation=2)
    student = tiny_run(tiny_sd3_dir, photos, tmp_path / "run", config, init_lora=tiny_lora_dir, val_data=held_out)
    given, kept = (load_file(folder / "vae.safetensors") for folder in (tiny_lora_dir, student))
    assert all(torch.allclose(given[k], kept[k], atol=1e-6) for k in given)
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert row["val_gain_db"] == pytest.approx(row["val_psnr_y"] - row["val_psnr_y_bicubic"])
    assert (tmp_path / "run" / "best" / "vae.safetensors").is_file()
    with Image.open(tmp_path / "run" / "validation" / "step-0000001.png") as strip:
        assert strip.width > 3 * 256
    with pytest.raises(UserError, match="another rank"):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "r2", dataclasses.replace(config, rank=2), init_lora=tiny_lora_dir)


def test_one_process_may_train_in_two_precisions(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    for precision in ("bf16", "no"):
        config = dataclasses.replace(TINY, phases=TINY.phases[1:], mixed_precision=precision)
        assert tiny_run(tiny_sd3_dir, photos, tmp_path / precision, config).is_dir()


def test_configuration_round_trip_and_refusals() -> None:
    for preset in PRESETS.values():
        assert TrainConfig.from_dict(json.loads(preset.to_json())) == preset
    with pytest.raises(UserError, match="unknown"):
        TrainConfig.from_dict({**json.loads(MINI.to_json()), "typo": 1})
    with pytest.raises(UserError, match="lambda_tsd = 2"):
        dataclasses.replace(MINI, lambda_tsd=2.0)
    short = PRESETS["paper"].scaled_to(10)
    assert [phase.steps for phase in short.phases] == [5, 5]
    lengths = {steps: [phase.steps for phase in MINI.scaled_to(steps).phases] for steps in (1, 2, 8, 50)}
    assert lengths == {1: [1, 0], 2: [1, 1], 8: [7, 1], 50: [47, 3]}
    assert PRESETS["paper"].gamma1_at(0) == 1.0
    assert PRESETS["paper"].gamma1_at(199_999) == 2.0
    assert short.phase_at(4).latent_mse == 1.0
    assert short.phase_at(5).latent_mse == 0.0


def test_the_warm_up_of_the_critic_counts_as_steps_and_shifts_none_of_the_students() -> None:
    phases = (Phase(4, 1.0, 0.0, (1.0,)), Phase(6, 0.5, 1.0, (1.0,)))
    plain = dataclasses.replace(MINI, phases=phases, gamma1=(1.0, 2.0))
    warm = dataclasses.replace(plain, critic_warmup_steps=5)
    assert (warm.total_steps, warm.student_steps, warm.critic_schedule_steps) == (15, 10, 11)
    assert [warm.warms_up(step) for step in (0, 4, 5)] == [True, True, False]
    for step in range(10):
        assert warm.phase_at(step + 5) == plain.phase_at(step)
        assert warm.gamma1_at(step + 5) == plain.gamma1_at(step)
        assert warm.stretch_of(step + 5) == plain.stretch_of(step) == step
    assert sorted(warm.stretch_of(step) for step in range(15)) == list(range(15))
    scaled = warm.scaled_to(6)
    assert (scaled.critic_warmup_steps, [phase.steps for phase in scaled.phases]) == (2, [2, 2])
    assert plain.scaled_to(5).critic_warmup_steps == 0
    for changes in (
        {"critic_warmup_steps": -1}, {"critic_steps": 0}, {"critic_ema_decay": 1.0}, {"gain_every": 0},
        {"regularisation": "python:file.py"}, {"regularisation": "TSD"}, {"critic_layers": "all"},
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{next(iter(changes))} = .* is not possible"):
            dataclasses.replace(MINI, **changes)


@pytest.mark.slow
def test_the_command(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, warm: Any) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    Image.fromarray(photos[0]).save(data / "a.png")
    arguments = [
        "tsd", "train", "--preset", "mini", "--model", str(tiny_sd3_dir), "--data", str(data),
        "--output", str(tmp_path / "run"), "--crop", "32", "--max-train-steps", "2", "--batch-size", "1",
        "--device", "cpu", "--rank", "4", "--vae-rank", "4",
    ]  # fmt: skip
    done = warm.run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train: step 2 of 2, " in done.stderr
    assert (tmp_path / "run" / "student" / "transformer.safetensors").is_file()
    assert list((tmp_path / "run" / "logs").rglob("events.*"))
    again = warm.run(*arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    printed = warm.run("tsd", "train", "--preset", "paper", "--print-config", cwd=tmp_path)
    assert json.loads(printed.stdout)["lambda_tsd"] == 0.7


def test_accumulated_micro_batches_are_one_batch(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    """For student and critic, whose turns are accumulated apart; logs are means over the micro-batches."""
    whole = tiny_run(tiny_sd3_dir, photos, tmp_path / "whole")
    split = dataclasses.replace(TINY, batch_size=1, gradient_accumulation=2)
    parts = tiny_run(tiny_sd3_dir, photos, tmp_path / "parts", split)
    for file in ("transformer.safetensors", "vae.safetensors"):
        a, b = load_file(whole / file), load_file(parts / file)
        assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-5
    rows = [(tmp_path / run / "log.jsonl").read_text().splitlines()[-1] for run in ("whole", "parts")]
    last = [
        {k: v for k, v in json.loads(row).items() if k not in TIMING and "rms" not in k and k != "grad_cosine"}
        for row in rows
    ]
    assert last[0] == pytest.approx(last[1], rel=1e-3)


def test_a_time_limit_and_sigterm_stop_cleanly(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole = tiny_run(tiny_sd3_dir, photos, tmp_path / "whole")
    config = dataclasses.replace(TINY, checkpoint_every=100)
    tiny_run(tiny_sd3_dir, photos, tmp_path / "parts", config, time_limit_seconds=0.001)
    assert "stopped by the time limit after step 1 of 4" in capsys.readouterr().err
    row = RunLog.row

    def row_and_signal(self: RunLog, step: int, numbers: dict[str, float]) -> None:
        row(self, step, numbers)
        if step == 2:  # arrives while step 3 is under way
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "row", row_and_signal)
    tiny_run(tiny_sd3_dir, photos, tmp_path / "parts", config, resume=True)
    assert "stopped by SIGTERM after step 3 of 4" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()) == [
        "checkpoint-0000001", "checkpoint-0000003",
    ]  # fmt: skip
    assert same_student(whole, tiny_run(tiny_sd3_dir, photos, tmp_path / "parts", config, resume=True))


def test_resuming_on_other_data_or_another_model_is_refused(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    tiny_run(tiny_sd3_dir, photos, run, stop_after=1)
    with pytest.raises(UserError, match=r"data: '[0-9a-f]+' then"):
        tiny_run(tiny_sd3_dir, photos[:2], run, resume=True)
    other = tmp_path / "model"
    shutil.copytree(tiny_sd3_dir, other)
    weights = other / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match=r"model: '[0-9a-f]+' then"):
        tiny_run(other, photos, run, resume=True)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_sd3_dir, moved)
    tiny_run(moved, photos, run, resume=True, stop_after=2)  # the same model elsewhere


def test_timing_memory_and_images_are_logged(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(held_out / "a.png")
    run = tmp_path / "run"
    config = dataclasses.replace(TINY, phases=TINY.phases[:1], validate_every=1, checkpoint_every=100)
    train(RunSettings(model=tiny_sd3_dir, data=photos, output=run, val_data=held_out, cpu=True, keep=1), config)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(row["images_per_second"] == pytest.approx(2 / row["seconds"]) for row in rows)
    assert all(50 < row["peak_mib"] < 100_000 for row in rows)
    events = EventAccumulator(str(next((run / "logs").rglob("events.*"))), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("input, student, ground truth")] == [1, 2]
    assert [event.step for event in events.Scalars("val_psnr_y")] == [1, 2]
    best = max(rows, key=lambda row: row["val_psnr_y"])["step"]
    kept = {int(path.name[-7:]) for path in (run / "checkpoints").iterdir()}
    assert kept == {best, 2}


def test_gradient_checkpointing_changes_nothing(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    plain = tiny_run(tiny_sd3_dir, photos, tmp_path / "plain", stop_after=3)
    config = dataclasses.replace(TINY, gradient_checkpointing=True)
    assert same_student(plain, tiny_run(tiny_sd3_dir, photos, tmp_path / "again", config, stop_after=3))


def test_prepared_data_is_read_and_must_fit(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    prepare = pytest.importorskip("tsd.data.prepare")
    from tsd.data.crops import CropConfig
    from tsd.data.prepare_config import PrepareConfig
    from tsd.data.sources import FolderSource

    data = tmp_path / "photos"
    data.mkdir()
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(data / f"{number}.png")
    prepared = tmp_path / "prepared"
    crops = CropConfig(crop=32, mode="random", per_image=2, degradation=FULL, usm=False, scale=4, seed=0)
    prepare.prepare(FolderSource([data]), prepared, tiny_sd3_dir, PrepareConfig(crops=crops))
    run = tiny_run(tiny_sd3_dir, [prepared], tmp_path / "run", TINY)
    anew = dataclasses.replace(TINY, degrade_anew=True)
    assert not same_student(run, tiny_run(tiny_sd3_dir, [prepared], tmp_path / "anew", anew))
    with pytest.raises(UserError, match="crops of 32"):
        tiny_run(tiny_sd3_dir, [prepared], tmp_path / "crop", dataclasses.replace(TINY, crop=48))
    with pytest.raises(UserError, match=r"targets that are not sharpened.*--no-usm"):
        tiny_run(tiny_sd3_dir, [prepared], tmp_path / "usm", dataclasses.replace(TINY, usm=True))
    with pytest.raises(UserError, match=r"other degradation settings.*--degrade-anew"):
        tiny_run(tiny_sd3_dir, [prepared], tmp_path / "light", dataclasses.replace(TINY, degradation="light"))
    with pytest.raises(UserError, match="must be the only"):
        tiny_run(tiny_sd3_dir, [prepared, data], tmp_path / "two")
    with pytest.raises(UserError, match="data: "):
        tiny_run(tiny_sd3_dir, [data], tmp_path / "run", resume=True)


def test_impossible_precisions_are_refused_before_anything_is_loaded(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    half = dataclasses.replace(TINY, mixed_precision="no", base_dtype="bf16")
    with pytest.raises(UserError, match="without autocast the base must be fp32"):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "a", half)
    fp16 = dataclasses.replace(TINY, mixed_precision="fp16", base_dtype="fp16")
    with pytest.raises(UserError, match="fp16 cannot be trained on a CPU"):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "b", fp16)


def test_prompts_of_different_lengths_are_refused_before_anything_is_loaded(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    for name, tokens in (("default", 5), ("null", 3)):
        (tmp_path / name).mkdir()
        torch.save(torch.randn(1, tokens, 12), tmp_path / name / "prompt_embeds.pt")
        torch.save(torch.randn(1, 10), tmp_path / name / "pool_embeds.pt")
    with pytest.raises(UserError, match=r"different lengths in tokens \(default 5, null 3\)"):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "run", prompt_embeds=tmp_path)


def test_a_log_line_torn_by_a_kill_is_dropped(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    tiny_run(tiny_sd3_dir, photos, tmp_path / "run", stop_after=1)
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 2, "pix')
    tiny_run(tiny_sd3_dir, photos, tmp_path / "run", resume=True)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_student_keeps_the_prompt_it_was_trained_with(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    """So that restoring with it cannot fall back on another one of the model's."""
    for name in ("default", "null"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        torch.save(torch.randn(1, 5, 12), tmp_path / "mine" / name / "prompt_embeds.pt")
        torch.save(torch.randn(1, 10), tmp_path / "mine" / name / "pool_embeds.pt")
    student = tiny_run(tiny_sd3_dir, photos, tmp_path / "run", prompt_embeds=tmp_path / "mine")
    lr = torch.rand(1, 3, 16, 16)
    config = RestoreConfig(process_size=0, posterior="mode", color="none")
    found = Restorer.load(tiny_sd3_dir, student, config=config).restore_tensor(lr, 0)
    named = Restorer.load(tiny_sd3_dir, student, tmp_path / "mine", config=config).restore_tensor(lr, 0)
    models = Restorer.load(tiny_sd3_dir, student, tiny_sd3_dir / "prompts", config=config).restore_tensor(lr, 0)
    assert torch.equal(found, named)
    assert not torch.equal(found, models)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "-1"], "--workers is -1"),
        (["--keep", "0"], "--keep is 0"),
        (["--stop-after", "0"], "--stop-after is 0"),
        (["--time-limit", "soon"], "a time limit is"),
        (["--val-data", "nowhere", "--dry-run"], "validation folder nowhere"),
        (["--model", "nowhere/"], "no model folder at"),
        (["--output", __file__], "is a file"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    arguments: list[str], said: str, tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, capsys
) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(photos[0]).save(tmp_path / "photos" / "a.png")
    command = ["train", "--model", str(tiny_sd3_dir), "--data", str(tmp_path / "photos"), "--device", "cpu"]
    command += ["--crop", "32", "--rank", "4", "--output", str(tmp_path / "run"), *arguments]
    assert main(command) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("then", ["data", "data_removed", "data_repaired"])
def test_a_truncated_photograph_ends_no_run_and_hinders_no_resumption(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, then: str
) -> None:
    for folder in ("data", "data_removed", "data_repaired"):
        (tmp_path / folder).mkdir()
        for number, photo in enumerate(photos):
            Image.fromarray(photo).save(tmp_path / folder / f"p{number}.png")
        Image.fromarray(photos[2]).save(tmp_path / folder / "p2.bmp")
        (tmp_path / folder / "p2.bmp").replace(tmp_path / folder / "p2.png")
    bad = tmp_path / "data" / "p1.png"
    bad.write_bytes(bad.read_bytes()[:1500])
    (tmp_path / "data_removed" / "p1.png").unlink()
    config = dataclasses.replace(TINY, batch_size=1)  # a round of three samples shows every file
    run = tmp_path / "run"

    def step(data: str, **options: object) -> None:
        settings = RunSettings(
            model=tiny_sd3_dir, data=tmp_path / data, output=run, tracker="none", cpu=True, **options
        )
        train(settings, config)

    step("data", stop_after=3)
    assert str(bad) in (run / "unreadable.txt").read_text()
    step(then, resume=True)
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    for said, other in (("data", photos[0][:40]), ("contents", photos[2][::-1])):  # another size, and the same
        Image.fromarray(other).save(tmp_path / then / "p2.bmp")  # not compressed
        (tmp_path / then / "p2.bmp").replace(tmp_path / then / "p2.png")
        with pytest.raises(UserError, match=rf"made with other settings, model or data \(.*{said}: "):
            step(then, resume=True)


def test_two_trainings_do_not_share_a_folder(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsd.files.PATIENCE_SECONDS", 0)
    (tmp_path / "run").mkdir()
    with (
        alone_in(tmp_path / "run", "busy"),
        pytest.raises(UserError, match="another `tsd train` writes to"),
    ):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    tiny_run(tiny_sd3_dir, photos, tmp_path / "run")


def test_a_student_says_how_it_was_trained_and_is_restored_so(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    lora = tiny_run(tiny_sd3_dir, photos, tmp_path / "run")
    settings = {"color": "wavelet", "posterior": TINY.posterior, "process_size": TINY.crop}
    assert json.loads((lora / "restore.json").read_text()) == settings
    restorer = Restorer.load(tiny_sd3_dir, lora)
    assert restorer.processing_size(8, 8) == (32, 32)  # and not 512
    assert dataclasses.asdict(restorer.config).items() >= settings.items()
    assert json.loads((lora / "adapter_config.json").read_text())["lora_alpha"] == TINY.rank


@pytest.mark.parametrize(
    ("stop", "status", "by"), [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 143, "SIGTERM"), ("", 0, "--stop-after")]
)
def test_a_stopped_run_says_so_and_has_the_exit_status_of_its_signal(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], stop: str, status: int, by: str,
) -> None:  # fmt: skip
    Image.fromarray(photos[0]).save(tmp_path / "a.png")
    row = RunLog.row

    def row_and_signal(self: RunLog, step: int, numbers: dict[str, float]) -> None:
        row(self, step, numbers)
        if stop and step == 1:  # arrives while step 2 is under way
            os.kill(os.getpid(), getattr(signal, stop))

    monkeypatch.setattr(RunLog, "row", row_and_signal)
    arguments = [
        "train", "--model", str(tiny_sd3_dir), "--data", str(tmp_path / "a.png"), "--output", str(tmp_path / "run"),
        "--crop", "32", "--max-train-steps", "3", "--batch-size", "1", "--device", "cpu", "--tracker", "none",
        "--rank", "4", "--vae-rank", "4", *([] if stop else ["--stop-after", "2"]),
    ]  # fmt: skip
    assert main(arguments) == status
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"stopped at step 2 of 3, continue with --resume ({by}")
    assert "student written" not in last
    monkeypatch.setattr(RunLog, "row", row)
    assert main([*arguments[:21], "--resume"] if not stop else [*arguments, "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("student written to ")


def test_a_full_disk_costs_a_checkpoint_and_leaves_no_half_of_one(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save = torch.save

    def full_at(*steps: int) -> None:
        def save_or_fail(state: dict[str, Any], path: Path) -> None:
            save(state, path)
            if state["step"] in steps:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(torch, "save", save_or_fail)

    full_at(2)
    tiny_run(tiny_sd3_dir, photos, tmp_path / "a")
    said = capsys.readouterr().err
    assert re.search(r"checkpoint-0000002 needs .* bytes\) in .*checkpoints, where .* is free", said)
    assert "The training goes on without it" in said
    assert [path.name for path in sorted((tmp_path / "a" / "checkpoints").iterdir())] == [
        "checkpoint-0000003", "checkpoint-0000004",
    ]  # fmt: skip
    full_at(4)
    with pytest.raises(UserError, match="make room"):
        tiny_run(tiny_sd3_dir, photos, tmp_path / "b")
    assert [path.name for path in sorted((tmp_path / "b" / "checkpoints").iterdir())] == [
        "checkpoint-0000002", "checkpoint-0000003",
    ]  # fmt: skip
