"""The teacher's stage: its loss, its draws, its result, and that the distillation uses it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tsd.algorithm.turns import Batch
from tsd.config import Phase
from tsd.errors import UserError
from tsd.model.backbone import load_backbone
from tsd.model.lora import adapter_parameters
from tsd.model.prompt import PromptEmbeds
from tsd.presets import MINI, TEACHER_PRESETS
from tsd.train.settings import RunSettings
from tsd.train.student import train
from tsd.train.teacher import attach_teacher, captions_with_dropout, teacher_loss, times, train_teacher

TINY = dataclasses.replace(
    TEACHER_PRESETS["mini"], steps=4, batch_size=2, crop=32, rank=4, warmup_steps=1, mixed_precision="no",
    checkpoint_every=2, validate_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (48, 40, 3), dtype=np.uint8) for _ in range(3)]


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_only_the_teacher_learns_and_the_loss_falls(family: str, request: pytest.FixtureRequest) -> None:
    backbone = load_backbone(request.getfixturevalue(f"tiny_{family}_dir"))
    attach_teacher(backbone, TINY)
    adapter = adapter_parameters(backbone.denoiser, "teacher")
    batch = Batch(torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1, [0, 1])
    optimizer = torch.optim.Adam(adapter.values(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = teacher_loss(backbone, batch, TINY)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    everything = [*backbone.denoiser.named_parameters(), *backbone.vae.named_parameters()]
    assert {name for name, parameter in everything if parameter.requires_grad} == {
        name for name, _ in backbone.denoiser.named_parameters() if ".teacher." in name
    }


def test_times_follow_the_familys_training_distribution(tiny_sd3_dir: Path, tiny_sd2_dir: Path) -> None:
    """Quartiles of a logit-normal are sigmoid(∓0.6745), of a uniform 1/4 and 3/4."""
    indices = list(range(4000))
    quarters = torch.tensor([0.25, 0.5, 0.75])
    sd3, sd2 = load_backbone(tiny_sd3_dir), load_backbone(tiny_sd2_dir)
    logit_normal = torch.tensor([-0.6745, 0.0, 0.6745]).sigmoid() * 1000
    torch.testing.assert_close(times(sd3, TINY, indices).quantile(quarters), logit_normal, atol=12, rtol=0)
    torch.testing.assert_close(times(sd2, TINY, indices).quantile(quarters), quarters * 999, atol=25, rtol=0)
    uniform = dataclasses.replace(TINY, t_density="uniform")
    torch.testing.assert_close(times(sd3, uniform, indices).quantile(quarters), quarters * 1000, atol=25, rtol=0)
    torch.testing.assert_close(times(sd3, TINY, [7, 3])[0], times(sd3, TINY, [3, 7])[1])


def test_captions_are_dropped_at_the_stated_rate(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    indices = list(range(1000))
    short = PromptEmbeds(torch.ones(1000, 3, 12), torch.ones(1000, 10))  # a caption without the T5 part
    batch = Batch(torch.zeros(1000, 1), torch.zeros(1000, 1), indices, prompt=short)
    got = captions_with_dropout(backbone, batch, dataclasses.replace(TINY, caption_dropout=0.25))
    assert got.pooled is not None
    dropped = (got.pooled == backbone.prompts["null"].pooled).all(-1)
    assert 0.2 < float(dropped.float().mean()) < 0.3
    assert torch.equal(got.embeds[dropped][0], backbone.prompts["null"].embeds[0])
    kept = got.embeds[~dropped][0]
    assert torch.equal(kept[:3], torch.ones(3, 12))
    assert not kept[3:].any()


def test_it_resumes_bit_for_bit_and_feeds_the_distillation(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(held_out / "a.png")

    def settings(name: str, **options: object) -> RunSettings:
        return RunSettings(model=tiny_sd3_dir, data=photos, output=tmp_path / name, tracker="none", cpu=True, **options)

    whole = train_teacher(settings("whole", val_data=held_out), TINY)
    for stop in (1, None):
        parts = train_teacher(settings("parts", resume=True, stop_after=stop), TINY)
        assert (parts.step, parts.best, parts.stopped_by) == (stop or 4, None, None)
    a, b = (load_file(run.lora / "transformer.safetensors") for run in (whole, parts))
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [("val_teacher" in row) for row in rows] == [False, True, False, True]
    assert whole.best is not None
    assert (whole.best / "transformer.safetensors").is_file()

    config = dataclasses.replace(
        MINI, phases=(Phase(1, 1.0, 1.0, (1.0,)),), batch_size=2, crop=32, rank=4, vae_rank=4, critic_rank=4,
        warmup_steps=1, mixed_precision="no",
    )  # fmt: skip
    loud = tmp_path / "loud"  # four steps hardly move it
    loud.mkdir()
    save_file({key: torch.full_like(value, 0.2) for key, value in a.items()}, loud / "transformer.safetensors")
    logs = []
    for name, teacher in (("bare", None), ("tuned", loud)):
        train(settings(name, teacher_lora=teacher), config)
        logs.append(json.loads((tmp_path / name / "log.jsonl").read_text()))
    assert logs[0]["latent_mse"] == logs[1]["latent_mse"]
    assert abs(logs[0]["tsm_rms"] - logs[1]["tsm_rms"]) > 1e-3 * logs[0]["tsm_rms"]
    with pytest.raises(UserError, match=r"teacher_lora: '[0-9a-f]+' then, None now"):
        train(settings("tuned", resume=True), config)
    with pytest.raises(UserError, match="for --stage student alone: the teacher starts from the base"):
        train_teacher(settings("again", teacher_lora=loud), TINY)
