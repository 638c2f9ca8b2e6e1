"""A small decoder that follows the frozen one: the decoded images of given photographs' latents, in L1.

The small decoder is diffusers' `AutoencoderTiny`, in which only the decoder is trained. It sees the latents of the
frozen encoder's mean. Every draw is seeded by its sample's or step's number, so an interrupted run ends with the same
weights. The frozen model takes most of a step's time, so its images may be made once for a pool of crops.
"""

import functools
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.optimization import get_scheduler
from torch import Tensor

from tsd.config import DecoderConfig
from tsd.console.progress import Progress
from tsd.data.crops import decode, to_tensor
from tsd.data.sources import FolderSource
from tsd.errors import UserError
from tsd.fast.decoder import SmallDecoder
from tsd.fast.upsampling import use_fast_upsampling
from tsd.files import atomic_folder
from tsd.model.backbone import Backbone, load_backbone
from tsd.seeds import seed_for
from tsd.train.checkpoint import (
    TrainState,
    check_same_run,
    checkpoint_folder,
    prune,
    recorded,
    remove_unfinished,
    settings_in,
)
from tsd.train.fingerprint import of_folder, of_text
from tsd.train.paths import newest_checkpoint
from tsd.train.stopping import Stopper

KEPT_IMAGES = 64
"""Decoded images that are kept in memory."""
MEASURED_CROPS = 16


@dataclass(frozen=True)
class FinishedDecoder:
    """A finished or stopped run.

    Attributes:
        folder: the decoder, for `tsd restore --decoder`; None if the run was stopped.
        step: steps done.
        stopped_by: what stopped the run (`tsd.train.stopping`); None if it is finished.
        psnr: dB of its images against the frozen decoder's, on crops of its own training images; None if stopped.
    """

    folder: Path | None
    step: int
    stopped_by: str | None
    psnr: float | None


def distill_decoder(
    model: Path,
    data: list[Path],
    output: Path,
    config: DecoderConfig,
    *,
    device: str = "cpu",
    resume: bool = False,
) -> FinishedDecoder:
    """Trains a small decoder for the VAE of a model folder; writes `output/decoder` at the end.

    A resumed run may have another number of steps: its learning rate goes on with the new schedule, and the record says
    so.

    Raises:
        UserError: no images; `output` holds a run and `resume` was not given, or the run is another one; an image that
            cannot be read or is smaller than the crop.
    """
    source = FolderSource(data)
    files = [image.picture for image in source.images(0, None, 1)]
    folder, newest, planned = checkpoint_folder(output), newest_checkpoint(output, resume=resume), config.steps
    settings: Any = config
    record = {"stage": "decoder", "model": of_folder(model, ["vae"]), "data": of_text(json.dumps(source.describe()))}
    if newest is not None:
        planned = settings_in(newest).get("steps", config.steps)
        check_same_run(newest, replace(settings, steps=planned), record)
    backbone = load_backbone(model, device=device)
    backbone.vae.to(memory_format=torch.channels_last)
    use_fast_upsampling(backbone.vae)
    tiny, small = build_decoder(backbone, config)
    parameters = dict(tiny.decoder.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.lr, weight_decay=0.0)
    schedule = get_scheduler(
        "cosine", optimizer, num_warmup_steps=min(100, config.steps // 10), num_training_steps=config.steps
    )
    state = TrainState({"decoder": parameters}, {"optimizer": optimizer, "schedule": schedule})  # type: ignore[arg-type]
    if newest is not None:
        state.load(newest)
        print(f"resumed from {newest} at step {state.step}", file=sys.stderr)
        record |= {"replanned": _replanned(newest, state.step, planned, config.steps)}
    remove_unfinished(folder)
    crops = Crops(files, config)
    pool = Pool(backbone, crops) if config.pool else None
    with Stopper(None) as stopper, Progress(total=config.steps, initial=state.step, unit="step") as bar:
        while state.step < config.steps and stopper.reason() is None:
            if pool is None:
                z, wanted = latents_and_images(backbone, crops.batch(state.step))
            else:
                z, wanted = pool.batch(state.step)
            with torch.autocast(backbone.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
                decoded = small(z)
            loss = (decoded.float() - wanted).abs().mean()
            if not math.isfinite(loss.item()):
                raise UserError(f"the loss is {loss.item()} at step {state.step}; give a lower --lr than {config.lr}")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            state.step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.4f}")
            if state.step % config.checkpoint_every == 0 or state.step == config.steps or stopper.reason() is not None:
                state.save(folder, settings, record)
                prune(folder, 1)
    if state.step < config.steps:
        return FinishedDecoder(None, state.step, stopper.reason(), None)
    tiny.half()  # half the bytes, and far finer than the agreement
    with atomic_folder(output / "decoder") as written:
        tiny.save_pretrained(written)
        psnr = agreement(backbone, small.float(), crops)
        facts = {"psnr_to_frozen_decoder": psnr, "config": json.loads(config.to_json()), "made_from": record}
        (written / "distilled.json").write_text(json.dumps(facts, indent=2) + "\n")
    return FinishedDecoder(output / "decoder", state.step, None, psnr)


def _replanned(checkpoint: Path, step: int, planned: int, now: int) -> list[list[int]]:
    """The steps at which the run was resumed with another number of steps, each with the number until then.

    Raises:
        UserError: the run has more steps than it is to have.
    """
    if step > now:
        raise UserError(f"{checkpoint} has {step} steps and --steps is {now}; give {step} or more")
    known = recorded(checkpoint).get("replanned", [])
    return [*known, *([[step, planned]] if planned != now else [])]


def build_decoder(backbone: Backbone, config: DecoderConfig) -> tuple[Any, SmallDecoder]:
    """A new `AutoencoderTiny` for the model's latents, whose encoder is a stub of few weights, and its decoder."""
    vae = backbone.vae.config
    levels = len(vae["block_out_channels"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "decoder"))
        tiny: Any = AutoencoderTiny(
            encoder_block_out_channels=(4,) * levels,
            num_encoder_blocks=(1,) * levels,
            decoder_block_out_channels=(config.width,) * levels,
            num_decoder_blocks=(config.blocks,) * (levels - 1) + (1,),
            latent_channels=vae["latent_channels"],
        )
    tiny.to(backbone.device, memory_format=torch.channels_last).requires_grad_(False)
    tiny.decoder.requires_grad_(True)
    return tiny, SmallDecoder(tiny, vae)


class Crops:
    """Crops of image files by sample number, each drawn from its own seed."""

    def __init__(self, files: list[Any], config: DecoderConfig) -> None:
        self.files, self.config = files, config
        self.read = functools.lru_cache(KEPT_IMAGES)(self._read)

    def batch(self, step: int) -> Tensor:
        """(B, 3, S, S) in [-1, 1]: the crops of a step."""
        size = self.config.batch_size
        return torch.stack([self.sample(step * size + i) for i in range(size)])

    def sample(self, number: int) -> Tensor:
        rng = np.random.default_rng(seed_for(self.config.seed, "decoder's crop", number))
        image, side = self.read(int(rng.integers(len(self.files)))), self.config.crop
        top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
        crop = to_tensor(image[top : top + side, left : left + side]) * 2 - 1
        return crop.flip(-1) if rng.random() < 0.5 else crop

    def _read(self, index: int) -> np.ndarray:
        image, side = decode(self.files[index]), self.config.crop
        if min(image.shape[:2]) < side:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise UserError(f"{self.files[index]} is {size}, smaller than the crop of {side}; give a smaller --crop")
        return image


class Pool:
    """Latents and decoded images of the first `config.pool` crops, made once; a step draws its batch by its number."""

    def __init__(self, backbone: Backbone, crops: Crops) -> None:
        config = self.config = crops.config
        numbers = range(0, config.pool, config.batch_size)
        self.pairs = [
            pair
            for first in Progress(numbers, desc="decoding crops", unit="batch")
            for pair in zip(*latents_and_images(backbone, crops.batch(first // config.batch_size)), strict=True)
        ]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed_for(self.config.seed, "decoder's pool", step))
        chosen = [self.pairs[i] for i in rng.integers(len(self.pairs), size=self.config.batch_size)]
        z, images = (torch.stack(side) for side in zip(*chosen, strict=True))
        return z.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)


@torch.no_grad()
def latents_and_images(backbone: Backbone, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents of images (B, 3, S, S), scaled but not shifted, and what the frozen decoder makes of them."""
    x = x.to(backbone.device, memory_format=torch.channels_last)
    z = backbone.encode(x, posterior="mode")
    return z, backbone.decode(z).clamp(-1, 1)


@torch.no_grad()
def agreement(backbone: Backbone, small: SmallDecoder, crops: Crops) -> float:
    """PSNR in dB of the small decoder's images against the frozen one's, in [0, 1], over crops never trained on."""
    errors = []
    for number in range(MEASURED_CROPS):
        sample = crops.sample(max(crops.config.steps, crops.config.pool) * crops.config.batch_size + number)
        z, wanted = latents_and_images(backbone, sample[None])
        errors.append(float((small(z).clamp(-1, 1) - wanted).square().mean()) / 4)
    return -10 * math.log10(max(sum(errors) / len(errors), 1e-12))
