"""The mini bases: small denoisers trained from scratch as diffusion models of VAE latents; each is its own teacher.

The first is an `SD3Transformer2DModel`, made here; the second, a UNet, is made in `tsd.mini.unet`. Both are trained in
the same way.

Two fixed random vectors replace the text prompts: `default` always goes with clean latents, `null` with a mixture of
clean and spoilt ones, so that classifier-free guidance points from "any image" to "clean image".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional as F

from tsd.mini.optim import split_optimisers
from tsd.mini.stages import run_stage
from tsd.model.family import Family
from tsd.model.process import NoiseProcess
from tsd.model.prompt import PromptEmbeds
from tsd.seeds import generator_for


@dataclass(frozen=True)
class BaseTraining:
    """The training settings that the bases of both families share."""

    prompt_tokens: int = 8
    prompt_width: int = 64
    steps: int = 3400
    batch: int = 10
    crop: int = 32  # latent positions: 128 pixels
    null_share: float = 0.2
    drawn_share: float = 0.2
    muon_lr: float = 0.01
    adamw_lr: float = 1e-3
    warm_up: int = 100


@dataclass(frozen=True)
class BaseSettings(BaseTraining):
    """Architecture and training of the mini transformer; the defaults made the shipped weights."""

    layers: int = 6
    heads: int = 4
    head_width: int = 32
    patch: int = 2
    position_table: int = 64
    position_jitter: int = 12
    shift: float = 1.0

    @property
    def width(self) -> int:
        return self.heads * self.head_width


def new_base(settings: BaseSettings, latent_channels: int) -> Any:
    """The untrained library model: modulations and the last projection start at 0, so every block is the identity."""
    model = SD3Transformer2DModel(
        sample_size=settings.position_table,
        patch_size=settings.patch,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=settings.layers,
        attention_head_dim=settings.head_width,
        num_attention_heads=settings.heads,
        joint_attention_dim=settings.prompt_width,
        caption_projection_dim=settings.width,
        pooled_projection_dim=settings.prompt_width,
        pos_embed_max_size=settings.position_table,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("norm_out.", "proj_out.")) or ".norm1.linear." in name or "context.linear." in name:
                parameter.zero_()
    return model


def new_prompts(settings: BaseTraining, seed: int, *, pooled: bool) -> dict[str, PromptEmbeds]:
    """`default` and `null`: fixed Gaussian vectors, (1, L, D) and, where the family has one, (1, D)."""
    prompts = {}
    for name in ("default", "null"):
        generator = generator_for(seed, "prompt", name)
        embeds = torch.randn(1, settings.prompt_tokens, settings.prompt_width, generator=generator)
        vector = torch.randn(1, settings.prompt_width, generator=generator)
        prompts[name] = PromptEmbeds(embeds, vector if pooled else None)
    return prompts


def new_scheduler(settings: BaseSettings) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=settings.shift)


@torch.no_grad()
def encode_images(vae: Any, images: Sequence[Tensor], turns: int, device: torch.device) -> list[Tensor]:
    """Scaled latents (c, H/4, W/4), fp16, of uint8 images (3, H, W) under the first `turns` of the eight symmetries.

    Full images are encoded once, and latents are cropped afterwards: with anchored norms a latent hardly depends on
    its crop.
    """
    latents = []
    for image in images:
        for turn in range(turns):
            x = torch.rot90(image, turn % 4, dims=(1, 2))
            x = (x.flip(2) if turn >= 4 else x)[None].float().div(127.5).sub(1)
            x = x.to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                z = vae.encode(x).latent_dist.mode()
            latents.append((z[0].float() * vae.config["scaling_factor"]).half().cpu())
    return latents


def spoil(image: Tensor, seed: int) -> Tensor:
    """A degraded version of a uint8 image (3, H, W): shrunk fourfold, noised, enlarged. For the null prompt only."""
    x = image[None].float()
    small = F.interpolate(x, scale_factor=0.25, mode="area")
    small = small + 8 * torch.randn(small.shape, generator=generator_for(seed, "spoil"))
    large = F.interpolate(small, size=x.shape[-2:], mode="bicubic")
    return large[0].clamp(0, 255).round().to(torch.uint8)


def latent_crops(
    pools: Sequence[Sequence[Tensor]], choice: Sequence[int], size: int, generator: torch.Generator
) -> Tensor:
    """One square crop of a random latent of `pools[k]` for every k in `choice`: float (len(choice), c, size, size)."""
    crops = []
    for k in choice:
        draw = torch.rand(3, generator=generator)
        latent = pools[k][int(draw[0] * len(pools[k]))]
        top, left = (int(draw[i] * (latent.shape[i] - size + 1)) for i in (1, 2))
        crops.append(latent[:, top : top + size, left : left + size])
    return torch.stack(crops).float()


class ShiftedPositions:
    """Rolls the position table, so that the crop that the model takes from its middle starts elsewhere at every step.

    Training crops are smaller than the tiles of inference; without the shift the outer positions are never trained.
    """

    def __init__(self, model: Any, jitter: int) -> None:
        self.buffer = model.pos_embed.pos_embed
        side = int(self.buffer.shape[1] ** 0.5)
        self.table = self.buffer.detach().clone().view(side, side, -1)
        self.jitter = jitter

    def shift(self, generator: torch.Generator) -> None:
        offset = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=generator).tolist()
        self.buffer.copy_(torch.roll(self.table, offset, dims=(0, 1)).reshape(self.buffer.shape))

    def restore(self) -> None:
        self.buffer.copy_(self.table.reshape(self.buffer.shape))


def train_base(
    folder: Path,
    model: Any,
    family: Family,
    process: NoiseProcess,
    vae: Any,
    photos: list[Tensor],
    drawn: list[Tensor],
    validation: list[Tensor],
    settings: BaseTraining,
    *,
    seed: int,
    device: torch.device,
    turns: int = 8,
    position_jitter: int = 0,
    validate_every: int = 250,
) -> dict[str, PromptEmbeds]:
    """Trains `model` (or resumes) in `folder`; returns its prompts. Images are uint8 (3, H, W)."""
    model.to(device)
    prompts = new_prompts(settings, seed, pooled=family.prompt_widths(model.config)[1] is not None)
    both = PromptEmbeds.cat(prompts["default"], prompts["null"]).to(device)
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    pools = [
        encode_images(vae, photos, turns, device),
        encode_images(vae, drawn, 1, device),
        encode_images(vae, [spoil(image, seed + i) for i, image in enumerate(photos)], 1, device),
    ]
    held_out = encode_images(vae, validation, 1, device)
    positions = ShiftedPositions(model, position_jitter) if position_jitter else None

    def error(z: Tensor, null: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """‖prediction − target‖² (Eq. 9) of every sample."""
        z = z.to(device)
        noise = torch.randn(z.shape, generator=generator).to(device)
        t, rows = t.to(device), null.long().to(device)
        prompt = PromptEmbeds(both.embeds[rows], None if both.pooled is None else both.pooled[rows])
        with torch.autocast(device.type, torch.bfloat16):
            predicted = family.predict(model, process.add_noise(z, noise, t), process.timestep(t), prompt)
        return (predicted.float() - process.target(z, noise, t)).square().mean(dim=(1, 2, 3))

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = generator_for(seed, "teacher", step)
        null = torch.rand(settings.batch, generator=generator) < settings.null_share
        draws = torch.rand(settings.batch, generator=generator)
        drawn_row = draws < settings.drawn_share
        choice = [2 if n and u > 0.5 else int(d) for n, u, d in zip(null, draws, drawn_row, strict=True)]
        z = latent_crops(pools, choice, settings.crop, generator)
        # Stratified times: one uniform draw in each of `batch` equal slices of the time axis.
        slices = torch.arange(settings.batch) + torch.rand(settings.batch, generator=generator)
        if positions is not None:
            positions.shift(generator)
        loss = error(z, null, process.last_time * slices / settings.batch, generator).mean()
        return loss, {"error": loss.item()}

    def validate() -> dict[str, float]:
        if positions is not None:
            positions.restore()
        generator = generator_for(seed, "teacher", "validation")
        z = latent_crops([held_out], [0] * 32, settings.crop, generator)
        t = (torch.arange(32) + 0.5) * (process.last_time / 32)
        default = torch.zeros(8, dtype=torch.bool)
        errors = torch.cat([error(z[i::4], default, t[i::4], generator)[:, None] for i in range(4)], 1).mean(1)
        quarters = errors.view(4, 2).mean(1)
        return {"held_out": errors.mean().item()} | {f"held_out_q{i + 1}": q.item() for i, q in enumerate(quarters)}

    optimisers = split_optimisers(
        model,
        muon_lr=settings.muon_lr,
        adamw_lr=settings.adamw_lr,
        keep_adamw=("proj_out.weight", "pos_embed.proj.weight", "conv_in.weight", "conv_out.weight"),
    )
    run_stage(
        "teacher", folder, model, optimisers,
        steps=settings.steps, warm_up=settings.warm_up,
        loss_at=loss_at, validate=validate, validate_every=validate_every,
        max_norm=1.0,
    )  # fmt: skip
    if positions is not None:
        positions.restore()
    return prompts
