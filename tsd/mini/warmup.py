"""The head start of the student's adapters: the encoder learns to restore, then encoder and denoiser together.

The student's start z_L − v(z_L, t = 1000) is useless on a teacher trained from scratch: at t = 1000 it predicts noise
minus the mean image. Three steps replace that start by a good one, in the released layout, and leave the base as it is:

- The quarter-resolution convolutions of the encoder (they work on the grid of the low-quality pixels) are trained to
  map an enlarged low-quality image to the latent of its original. The layers below are frozen, so their output for a
  fixed pool of pairs is computed once: a step costs an eighth of a step through the full encoder.
- The denoiser's adapters start at B = 0, except that of `proj_out`, which starts at B·A = −W: the student's step begins
  as the identity, ẑ = z_L − bias, and learns a correction instead of unlearning a prediction. Encoder and adapters are
  then trained together.
- The change of every encoder kernel is factorised (SVD) into a LoRA pair; at the mini preset's rank nothing is lost.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsd.console.progress import Progress
from tsd.data.pairs import PairDataset
from tsd.files import write_safetensors
from tsd.mini.stages import in_batches, psnr_luma, run_stage, save_atomically
from tsd.model.backbone import Backbone
from tsd.model.lora import (
    STUDENT,
    VAE_FILE,
    adapter_parameters,
    attach,
    denoiser_file,
    denoiser_targets,
    role,
    vae_targets,
)
from tsd.seeds import generator_for, seed_for


@dataclass(frozen=True)
class WarmUpSettings:
    """The head start; the defaults made the shipped weights.

    Attributes:
        pairs, pair_seed, crop, batch: the pool of training pairs for the encoder alone, made once.
        steps, lr: for the encoder alone.
        joint_pairs, joint_crop, joint_batch, joint_steps: for encoder and denoiser together. The crops have the size
            of a tile, so that attention and positions are those of inference.
        joint_lr, adapter_lr: learning rates of the encoder and of the denoiser's adapter in the joint training.
    """

    pairs: int = 10_000
    pair_seed: int = 5
    crop: int = 128
    batch: int = 16
    steps: int = 3600
    lr: float = 1.5e-3
    joint_pairs: int = 2400
    joint_crop: int = 256
    joint_batch: int = 4
    joint_steps: int = 1600
    joint_lr: float = 4e-4
    adapter_lr: float = 1e-3


@torch.no_grad()
def pixel_metric(vae: Any, images: Tensor, generator: torch.Generator, step: float = 0.1) -> Tensor:
    """Weights that tell how much a latent channel's error counts in pixels: (1, c, 1, 1), mean 1.

    A weight is the squared change of the decoded `images` (B, 3, H, W) under a little noise on that channel. With these
    weights the MSE of latents stands for that of pixels without running the decoder.
    """
    z = vae.encode(images).latent_dist.mode()
    decoded = vae.decode(z).sample
    energies = []
    for channel in range(z.shape[1]):
        moved = z.clone()
        noise = torch.randn(z[:, channel].shape, generator=generator).to(z)
        moved[:, channel] += step * noise
        energies.append((vae.decode(moved).sample - decoded).square().mean())
    energy = torch.stack(energies)
    return (energy / energy.mean()).view(1, -1, 1, 1)


def make_pairs(path: Path, sources: Sequence[np.ndarray], count: int, crop: int, seed: int) -> tuple[Tensor, Tensor]:
    """Low-quality and original crops, uint8 (N, 3, crop/4, crop/4) and (N, 3, crop, crop), cached in `path`."""
    if path.exists():
        low, high = torch.load(path, weights_only=True)
        return low, high
    data = PairDataset(sources, crop=crop, seed=seed, length=count)
    low = torch.empty(count, 3, crop // 4, crop // 4, dtype=torch.uint8)
    high = torch.empty(count, 3, crop, crop, dtype=torch.uint8)
    for index in Progress(range(count), desc="degrading", unit="pair", mininterval=2.0):
        lr, hr = data.pair(index)
        low[index], high[index] = (lr * 255).round().to(torch.uint8), (hr * 255).round().to(torch.uint8)
    save_atomically([low, high], path)
    return low, high


def _lower(encoder: Any, x: Tensor) -> Tensor:
    """The frozen layers: images to the input of the last resolution's block."""
    h = encoder.conv_in(x)
    for block in encoder.down_blocks[:-1]:
        h = block(h)
    return h


def _upper(encoder: Any, h: Tensor) -> Tensor:
    """The trained layers: the rest of the encoder, to the posterior's mean (unscaled)."""
    h = encoder.mid_block(encoder.down_blocks[-1](h))
    return encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(h))).chunk(2, dim=1)[0]


def _upper_kernels(encoder: Any) -> list[Tensor]:
    parts = (encoder.down_blocks[-1], encoder.mid_block, encoder.conv_out)
    kernels = [layer.weight for part in parts for layer in part.modules() if isinstance(layer, nn.Conv2d)]
    for kernel in kernels:
        kernel.requires_grad_(True)
    return kernels


class Pool:
    """The training data: features of the frozen layers and latents of the originals, for a pool of pairs."""

    def __init__(self, vae: Any, low: Tensor, high: Tensor, path: Path, device: torch.device, seed: int) -> None:
        """Encodes the pairs of `make_pairs`, or reads the result of an earlier run with this VAE from `path`."""
        self.scale, self.device = float(vae.config["scaling_factor"]), device
        if not path.exists():
            save_atomically(self._encode(vae, low, high), path)
        features, self.latents = torch.load(path, weights_only=True)
        self.features = features.contiguous(memory_format=torch.channels_last)
        originals = (high[:8].to(device).float() / 255) * 2 - 1
        self.metric = pixel_metric(vae, originals, generator_for(seed, "pixel metric"))

    @torch.no_grad()
    def _encode(self, vae: Any, low: Tensor, high: Tensor) -> list[Tensor]:
        features, latents = [], []
        for start in Progress(range(0, len(low), 10), desc="encoding pairs", mininterval=2.0):
            x_l, x_h = (images[start : start + 10].to(self.device).float() / 255 for images in (low, high))
            x_l = F.interpolate(x_l, scale_factor=4, mode="bicubic").clamp(0, 1) * 2 - 1
            with torch.autocast(self.device.type, torch.bfloat16):
                features.append(_lower(vae.encoder, x_l).bfloat16().cpu())
                latents.append((vae.encode(x_h * 2 - 1).latent_dist.mode().float() * self.scale).half().cpu())
        return [torch.cat(features), torch.cat(latents)]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(features of the low-quality images, scaled latents of the originals) of a random batch."""
        rows = torch.randint(len(self.latents), (batch,), generator=generator)
        return self.features[rows].to(self.device), self.latents[rows].to(self.device).float()

    def loss(self, z_hat: Tensor, z: Tensor) -> tuple[Tensor, dict[str, float]]:
        return latent_loss(z_hat, z, self.metric)


def latent_loss(z_hat: Tensor, z: Tensor, metric: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Minus PSNR up to a constant: 10·log10 of each crop's error, so an easy crop counts as much as a hard one.

    Args:
        metric: weights of the latent channels from `pixel_metric`.
    """
    errors = (metric * (z_hat.float() - z).square()).mean(dim=(1, 2, 3))
    loss = 10 * (errors + 1e-3).log10().mean()
    return loss, {"db": loss.item()}


def train_encoder(
    folder: Path,
    vae: Any,
    pool: Pool,
    validation: tuple[Tensor, Tensor],
    settings: WarmUpSettings,
    *,
    seed: int,
    validate_every: int = 500,
) -> Any:
    """Trains (or resumes) in `folder` a copy of the VAE's encoder to restore; returns it. `vae` is left as it is.

    Args:
        validation: images (enlarged low-quality, original), both (B, 3, H, W) in [-1, 1].
    """
    device = pool.device
    encoder = copy.deepcopy(vae.encoder).requires_grad_(False).to(device, memory_format=torch.channels_last)
    low, high = (images.to(device) for images in validation)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        features, z = pool.draw(settings.batch, generator_for(seed, "encoder", step))
        with torch.autocast(device.type, torch.bfloat16):
            return pool.loss(_upper(encoder, features) * pool.scale, z)

    def validate() -> dict[str, float]:
        restored = in_batches(lambda x: vae.decode(_upper(encoder, _lower(encoder, x))).sample, low, 2)
        return {"psnr_y": psnr_luma(restored, high), "bicubic": psnr_luma(low, high)}

    optimiser = torch.optim.AdamW(_upper_kernels(encoder), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    run_stage(
        "encoder", folder, encoder, [optimiser], steps=settings.steps, warm_up=settings.steps // 10,
        loss_at=loss_at, validate=validate, validate_every=validate_every,
    )  # fmt: skip
    return encoder


def train_student(
    folder: Path,
    backbone: Backbone,
    encoder: Any,
    pool: Pool,
    validation: tuple[Tensor, Tensor],
    settings: WarmUpSettings,
    *,
    rank: int,
    seed: int,
    validate_every: int = 150,
) -> Any:
    """Trains (or resumes) the restoring `encoder` and the denoiser's student adapter together; returns the encoder.

    The adapter is attached to `backbone.denoiser` and stays there, trained.
    """
    device, denoiser = pool.device, backbone.denoiser
    encoder = encoder.requires_grad_(False).to(device, memory_format=torch.channels_last)
    targets = denoiser_targets(denoiser, backbone.family.student_targets)
    attach(denoiser, STUDENT, targets, rank, seed_for(seed, "adapter"))
    start_as_identity(denoiser, generator_for(seed, "identity"))
    denoiser.to(device)
    adapter = [parameter.requires_grad_(True) for parameter in adapter_parameters(denoiser, STUDENT).values()]
    low, high = (images.to(device) for images in validation)

    def one_step(features: Tensor) -> Tensor:
        with role(denoiser, STUDENT):
            return backbone.one_step(_upper(encoder, features) * pool.scale)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        features, z = pool.draw(settings.joint_batch, generator_for(seed, "student", step))
        with torch.autocast(device.type, torch.bfloat16):
            return pool.loss(one_step(features), z)

    def validate() -> dict[str, float]:
        restored = in_batches(lambda x: backbone.decode(one_step(_lower(encoder, x))), low, 2)
        return {"psnr_y": psnr_luma(restored, high), "bicubic": psnr_luma(low, high)}

    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
        for parameters, lr in ((_upper_kernels(encoder), settings.joint_lr), (adapter, settings.adapter_lr))
    ]
    run_stage(
        "student", folder, nn.ModuleDict({"encoder": encoder, "denoiser": denoiser}), optimisers,
        steps=settings.joint_steps, warm_up=settings.joint_steps // 10,
        loss_at=loss_at, validate=validate, validate_every=validate_every, save_every=150,
    )  # fmt: skip
    return encoder


@torch.no_grad()
def start_as_identity(denoiser: Any, generator: torch.Generator, last: str = "proj_out") -> None:
    """Sets the student adapter of the `last` layer to B·A = −W, so that the network predicts only its last bias."""
    layer = dict(denoiser.named_modules())[last]
    parameters = adapter_parameters(denoiser, STUDENT)
    a, b = (parameters[f"{last}.lora_{side}.weight"] for side in "AB")
    weight = layer.base_layer.weight.detach().float()
    needed = min(weight.flatten(1).shape)
    if a.shape[0] < needed:
        raise ValueError(f"the adapter's rank is {a.shape[0]}; cancelling {last} takes {needed}")
    for parameter, value in zip((a, b), factorise(-weight.cpu(), a.shape[0], generator), strict=True):
        parameter.copy_(value)


def factorise(change: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(A, B) of a LoRA pair with B·A as close to `change` as `rank` allows, in peft's shapes.

    The singular values are shared evenly between the factors. Directions beyond the change's own rank start like those
    of a new LoRA: A Gaussian (1 / rank), B zero.

    Args:
        change: (out, in) of a linear layer or (out, in, k, k) of a convolution.
    """
    matrix = change.reshape(change.shape[0], -1).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, int((s > 1e-9 * s.max().clamp_min(1e-30)).sum()) if s.max() > 0 else 0)
    a = torch.randn(rank, matrix.shape[1], generator=generator) / rank
    b = torch.zeros(matrix.shape[0], rank)
    a[:kept] = (s[:kept].sqrt()[:, None] * v[:kept]).float()
    b[:, :kept] = (u[:, :kept] * s[:kept].sqrt()).float()
    if change.ndim == 4:
        return a.reshape(rank, *change.shape[1:]), b[:, :, None, None]
    return a, b


def write_adapters(folder: Path, backbone: Backbone, encoder: Any, *, vae_rank: int, seed: int) -> None:
    """Writes the student in the released layout: the denoiser's adapter and the factorised change of the encoder."""
    generator = generator_for(seed, "factors")
    restored = {f"encoder.{name}": module for name, module in encoder.named_modules()}
    base = dict(backbone.vae.named_modules())
    state: dict[str, Tensor] = {}
    for name in vae_targets(backbone.vae):
        change = restored[name].weight.detach().float().cpu() - base[name].weight.detach().float().cpu()
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = factorise(change, vae_rank, generator)
    adapter = adapter_parameters(backbone.denoiser, STUDENT)
    prefix = backbone.family.denoiser_folder
    for file, values in ((VAE_FILE, state), (denoiser_file(backbone.family), adapter)):
        tensors = {f"{prefix}.{key}": value.detach().cpu().contiguous() for key, value in values.items()}
        write_safetensors(folder / file, tensors)
