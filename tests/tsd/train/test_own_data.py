"""A data set object of the caller's own in place of folders: contract, captions, resumption, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from tsd.config import Phase, TrainConfig
from tsd.errors import UserError
from tsd.presets import MINI, TEACHER_PRESETS
from tsd.seeds import generator_for
from tsd.train.preflight import check_run
from tsd.train.settings import RunSettings
from tsd.train.student import train
from tsd.train.teacher import train_teacher

TINY = dataclasses.replace(
    MINI,
    phases=(Phase(steps=2, latent_mse=0.5, gamma2=1.0, point_weights=(1.0, 0.3)),),
    batch_size=2,
    crop=8,  # not read: the data set decides
    rank=4,
    vae_rank=4,
    critic_rank=4,
    warmup_steps=1,
    mixed_precision="no",
    checkpoint_every=1,
)


class Noise(Dataset[dict[str, Any]]):
    """Random pairs, 32 x 48, that are functions of their numbers; `extra` is laid over every item."""

    def __init__(self, *, shape: tuple[int, ...] = (3, 32, 48), fingerprint: str = "noise 1", **extra: Any) -> None:
        self.shape, self.fingerprint, self.extra = shape, fingerprint, extra
        self.asked: list[int] = []

    def __getitem__(self, number: int) -> dict[str, Any]:
        self.asked.append(number)
        hr, lr_up = torch.rand(2, *self.shape, generator=generator_for(3, number)) * 2 - 1
        return {"hr": hr, "lr_up": lr_up, "index": number} | self.extra


class Short(Noise):
    def __len__(self) -> int:
        return 3


def settings(model: Path, data: Dataset[dict[str, Any]], output: Path | None, **options: Any) -> RunSettings:
    return RunSettings(model=model, data=data, output=output, tracker="none", cpu=True, **options)


def student(model: Path, data: Dataset[dict[str, Any]], output: Path, config: TrainConfig = TINY) -> dict[str, Tensor]:
    return load_file(train(settings(model, data, output), config).lora / "transformer.safetensors")


def test_a_run_reads_the_numbers_of_its_steps_and_resumes_with_the_same_bits(
    tiny_sd3_dir: Path, tmp_path: Path
) -> None:
    data = Noise()
    whole = student(tiny_sd3_dir, data, tmp_path / "whole")
    assert data.asked[-4:] == [0, 1, 2, 3]
    train(settings(tiny_sd3_dir, Noise(), tmp_path / "parts", stop_after=1), TINY)
    with pytest.raises(UserError, match="data: 'noise 1' then, 'noise 2' now"):
        train(settings(tiny_sd3_dir, Noise(fingerprint="noise 2"), tmp_path / "parts", resume=True), TINY)
    resumed = train(settings(tiny_sd3_dir, Noise(), tmp_path / "parts", resume=True), TINY)
    parts = load_file(resumed.lora / "transformer.safetensors")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_its_captions_reach_teacher_and_critic(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    plain = student(tiny_sd3_dir, Noise(), tmp_path / "plain")
    captions = {"prompt_embeds": torch.ones(5, 12), "pool_embeds": torch.ones(10)}
    captioned = student(tiny_sd3_dir, Noise(**captions), tmp_path / "captioned")
    assert any(not torch.equal(plain[key], captioned[key]) for key in plain)


def test_the_teacher_needs_no_low_quality_images(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    class Clean(Noise):
        def __getitem__(self, number: int) -> dict[str, Any]:
            item = super().__getitem__(number)
            return {"hr": item["hr"], "index": number}

    config = dataclasses.replace(
        TEACHER_PRESETS["mini"], steps=1, batch_size=2, rank=4, mixed_precision="no", warmup_steps=0
    )
    run = train_teacher(settings(tiny_sd3_dir, Clean(), tmp_path / "run"), config)
    assert run.step == 1
    with pytest.raises(UserError, match="lacks lr_up"):
        check_run(settings(tiny_sd3_dir, Clean(), None), TINY, 1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Noise(fingerprint=""), "fingerprint"),
        (Short(), "holds 3 samples; this run reads 4"),
        (Noise(shape=(3, 32, 40)), "images of Noise are 40x32; this model needs a multiple of 16"),
        (Noise(shape=(3, 32, 1040)), "positions for 1024"),
        (Noise(shape=(1, 32, 32)), "1 channels; this model reads 3"),
        (Noise(shape=(2, 3, 32, 32)), r"expected floats of shape \(3, H, W\)"),
        (Noise(lr_up=torch.zeros(3, 32, 32)), r"lr_up of Noise is torch.float32 of shape \(3, 32, 32\)"),
        (Noise(hr=torch.zeros(3, 32, 32, dtype=torch.uint8)), "expected floats"),
        (Noise(index=7), "item 0 of Noise has the index 7"),
        (Noise(prompt_embeds=torch.zeros(5, 13), pool_embeds=torch.zeros(10)), "captions of Noise have the widths"),
        (Noise(prompt_embeds=torch.zeros(6, 12), pool_embeds=torch.zeros(10)), "different lengths in tokens"),
    ],
)
def test_what_does_not_keep_the_contract_is_refused(data: Noise, said: str, tiny_sd3_dir: Path) -> None:
    with pytest.raises(UserError, match=said):
        check_run(settings(tiny_sd3_dir, data, None), TINY, 1)


def test_without_pixel_loss_the_decoder_is_not_run(
    tiny_sd3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And LPIPS' weights, which are not here, are not asked for."""

    def refuse(*_: object) -> None:
        raise AssertionError("the decoder was run")

    monkeypatch.setattr("tsd.model.backbone.Backbone.decode", refuse)
    config = dataclasses.replace(TINY, gamma1=(0.0, 0.0), pixel_loss="lpips")
    run = train(settings(tiny_sd3_dir, Noise(), tmp_path / "run"), config)
    rows = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert all("pixel" not in row and row["latent_mse"] > 0 and "tsd" in row for row in rows)
    with pytest.raises(AssertionError, match="decoder"):
        train(settings(tiny_sd3_dir, Noise(), tmp_path / "other"), TINY)
