"""Figures of a model on disk: a finished student, and a run's checkpoints with their critic."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.ablation.figures import figure3, figure5
from bench.ablation.figures.model import ModelSubject
from bench.cli import main
from tsd.errors import UserError
from tsd.presets import MINI
from tsd.train.settings import RunSettings
from tsd.train.student import train


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    pixels = torch.randint(0, 255, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{number}.png")
    return folder


def test_a_finished_student_has_one_moment_and_no_critic(
    tiny_sd3_dir: Path, tiny_lora_dir: Path, photographs: Path
) -> None:
    subject = ModelSubject(tiny_sd3_dir, {"student": tiny_lora_dir}, photographs, 64)
    assert subject.moments(figure3.FRACTIONS) == [1.0]
    numbers = figure3.measure(subject, [0], lambda text: None)
    assert set(numbers.place) == {"z", "z_hat"}
    assert numbers.cosine.abs().max() <= 1 + 1e-6
    (stage,) = subject.stages({}, 0, [1.0])
    assert stage.z.shape == stage.z_hat.shape == (2, 4, 8, 8)
    assert not torch.equal(stage.z_hat, stage.z_L)
    with pytest.raises(UserError, match="needs the critic"):
        figure5.measure(subject, [0], lambda text: None)


@pytest.mark.slow
def test_the_checkpoints_of_a_run_are_its_moments(tiny_sd3_dir: Path, photographs: Path, tmp_path: Path) -> None:
    phase = dataclasses.replace(MINI.phases[1], steps=4)
    config = dataclasses.replace(
        MINI, phases=(phase,), crop=64, batch_size=2, rank=4, vae_rank=4, critic_rank=4, critic_lr=1e-2, warmup_steps=0,
        mixed_precision="no", checkpoint_every=2, ema_decay=0.5,
    )  # fmt: skip
    settings = RunSettings(model=tiny_sd3_dir, data=photographs, output=tmp_path / "run", tracker="none", cpu=True)
    train(settings, config)
    subject = ModelSubject(tiny_sd3_dir, {"run": tmp_path / "run"}, photographs, 64)
    assert subject.moments([0.0, 0.4, 1.0]) == [0.5, 1.0]
    half, whole = subject.stages({}, 0, [0.5, 1.0])
    assert (half.step, whole.step) == (2, 4)
    assert not torch.equal(half.z_hat, whole.z_hat)
    assert whole.critic is not None
    t = whole.times(300)
    assert not torch.equal(whole.critic(whole.z, t, whole.rows), whole.teacher(whole.z, t, whole.rows))
    png, _, _ = figure5.draw(figure5.measure(subject, [0], lambda text: None), tmp_path)
    assert Image.open(png).width > 1000


def test_what_a_model_needs(tmp_path: Path) -> None:
    assert main(["figure", "3", "--model", str(tmp_path)]) == 2
    subject = ModelSubject(tmp_path, {"absent": tmp_path / "absent"}, tmp_path, 64)
    with pytest.raises(UserError, match="absent is no folder"):
        subject.moments([1.0])
