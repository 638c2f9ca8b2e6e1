"""The mini VAE: an `AutoencoderKL` with a downsampling factor of 4 that starts as a linear PCA codec.

A small VAE of this class trained from the library's initialisation stays below a linear PCA of the same size:
GroupNorm divides every crop by its own contrast, and the network spends its capacity on carrying contrast and colour
around the normalisation. Two measures remove that obstacle without changing the class:

Anchors. Two channels of every normalised tensor hold the constants +A and -A (biases of the convolutions that
produce the tensor; their weights are zero and stay zero). With a large A the group statistics are nearly constant, so
GroupNorm is nearly a fixed scale: contrast passes, and a pixel's result does not depend on the rest of the crop (which
also makes decoding in tiles safe).

Linear start. Residual branches end in zeros. The strided convolutions of the encoder start as the 4x4 block PCA of the
training crops. Values pass the SiLU before the encoder's last convolution in pairs, since silu(x) - silu(-x) = x.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from tsd.mini.images import random_crops
from tsd.mini.optim import split_optimisers
from tsd.mini.stages import in_batches, psnr_luma, run_stage
from tsd.seeds import generator_for, seed_for

ANCHORS = 2
"""Channels at the end of every normalised tensor that hold constants."""


@dataclass(frozen=True)
class VaeSettings:
    """Architecture and training of the mini VAE; the defaults made the shipped weights."""

    channels: tuple[int, ...] = (24, 48, 96)
    latent_channels: int = 12
    anchor_scale: float = 2.0
    steps: int = 1200
    batch: int = 12
    crop: int = 64
    drawn_share: float = 0.25
    muon_lr: float = 0.008
    adamw_lr: float = 1e-3
    warm_up: int = 100
    kl_weight: float = 1e-6
    edge_weight: float = 0.5
    mean_weight: float = 0.01
    log_variance: float = -5.0


def new_vae(settings: VaeSettings) -> Any:
    """The untrained library model: three levels, one resnet layer each, one normalisation group, no attention."""
    levels = len(settings.channels)
    model: Any = AutoencoderKL  # its annotations name tuples of one
    return model(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.channels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=1,
        sample_size=256,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def _stream_convs(vae: Any) -> tuple[list[nn.Conv2d], list[nn.Conv2d]]:
    """The convolutions that produce a residual stream, and those that read one without a normalisation before them."""
    producers = [vae.encoder.conv_in, vae.decoder.conv_in]
    readers: list[nn.Conv2d] = []
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and (name.endswith("conv_shortcut") or "samplers." in name):
            producers.append(module)
            readers.append(module)
    return producers, readers


@torch.no_grad()
def anchor(vae: Any, scale: float) -> None:
    """Sets the anchors and residual zeros, and masks the gradients that would move an anchor.

    The anchors of a tensor of n channels are ±scale·sqrt(n/2), so its group standard deviation is about `scale`; the
    norms' gains start at `scale` and undo it. Call this again after loading weights to train them further: after
    `initialise` it changes only anchors.
    """
    masks: dict[nn.Parameter, Tensor] = {}

    def freeze(parameter: Any, index: tuple[slice, ...], value: Tensor | float) -> None:
        parameter[index] = value
        masks.setdefault(parameter, torch.ones_like(parameter))[index] = 0

    def produce(conv: Any) -> None:
        size = scale * math.sqrt(conv.out_channels / 2)
        freeze(conv.weight, (slice(-ANCHORS, None),), 0.0)
        freeze(conv.bias, (slice(-ANCHORS, None),), torch.tensor([size, -size]))

    producers, readers = _stream_convs(vae)
    for conv in producers:
        produce(conv)
    for conv in readers:
        freeze(conv.weight, (slice(None), slice(-ANCHORS, None)), 0.0)
    module: Any
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            produce(module.conv1)
            freeze(module.conv2.weight, (slice(-ANCHORS, None),), 0.0)
            freeze(module.conv2.bias, (slice(-ANCHORS, None),), 0.0)
        if isinstance(module, nn.GroupNorm):
            freeze(module.weight, (slice(-ANCHORS, None),), 0.0)
            freeze(module.bias, (slice(-ANCHORS, None),), 0.0)
    for parameter, mask in masks.items():
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))


def block_pca(crops: Tensor, factor: int = 4) -> tuple[Tensor, Tensor]:
    """(components, standard deviations) of the factor x factor x 3 blocks of crops (B, 3, H, W), largest first.

    A block's values are ordered (row within the block, column within the block, colour) by halves, as two strided 2x2
    convolutions deliver them: (row of the 2x2, column of the 2x2, row inside, column inside, colour).
    """
    halves = F.pixel_unshuffle(crops, 2).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    width = halves.shape[1]
    blocks = F.pixel_unshuffle(halves, factor // 2).unflatten(1, (width, 4)).transpose(1, 2).flatten(1, 2)
    values = blocks.movedim(1, -1).flatten(0, -2).double()
    covariance = values.T @ values / len(values)
    variances, vectors = torch.linalg.eigh(covariance)
    return vectors.flip(1).T.float(), variances.flip(0).clamp_min(1e-10).sqrt().float()


@torch.no_grad()
def initialise(vae: Any, crops: Tensor, settings: VaeSettings) -> None:
    """Turns a new VAE into the linear start described above; `crops` (B, 3, H, W) in [-1, 1] give the PCA."""
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            module.weight.fill_(settings.anchor_scale)
        if isinstance(module, ResnetBlock2D):
            for parameter in module.conv2.parameters():
                parameter.zero_()
    anchor(vae, settings.anchor_scale)
    encoder, decoder, latents = vae.encoder, vae.decoder, settings.latent_channels
    components, deviations = block_pca(crops)

    def fill(conv: Any, row: int, column: int, tap: tuple[int, int], values: Tensor) -> None:
        conv.weight[row : row + values.shape[0], column : column + values.shape[1], tap[0], tap[1]] = values

    def clear(conv: Any, rows: int) -> None:
        conv.weight[:rows] = 0
        conv.bias[:rows] = 0

    clear(encoder.conv_in, 3)
    fill(encoder.conv_in, 0, 0, (1, 1), torch.eye(3))
    first, second = (block.downsamplers[0].conv for block in encoder.down_blocks[:2])
    clear(first, 12)
    for position in range(4):
        fill(first, 3 * position, 0, divmod(position, 2), torch.eye(3))
    widen, mix = encoder.down_blocks[1].resnets[0].conv_shortcut, encoder.down_blocks[2].resnets[0].conv_shortcut
    clear(widen, 12)
    fill(widen, 0, 0, (0, 0), torch.eye(12))
    kept = min(48, second.out_channels - ANCHORS)
    clear(second, kept)
    for position in range(4):
        fill(second, 0, 0, divmod(position, 2), components[:kept, 12 * position : 12 * position + 12])
    # Half whitening: a latent's spread is the square root of its component's, between PCA (all in the mean) and noise.
    spread = torch.diag(deviations[:latents] ** -0.5)
    raw = min(kept, mix.out_channels - ANCHORS - 2 * latents)
    clear(mix, 2 * latents + raw)
    fill(mix, 0, 0, (0, 0), spread)
    fill(mix, latents, 0, (0, 0), -spread)
    fill(mix, 2 * latents, 0, (0, 0), torch.eye(raw))
    clear(encoder.conv_out, 2 * latents)
    fill(encoder.conv_out, 0, 0, (1, 1), torch.eye(latents))
    fill(encoder.conv_out, 0, latents, (1, 1), -torch.eye(latents))
    encoder.conv_out.bias[latents:] = settings.log_variance
    encoder.conv_out.bias[:latents] -= vae.encode(crops[:64]).latent_dist.mean.mean(dim=(0, 2, 3))
    clear(decoder.conv_in, latents)
    fill(decoder.conv_in, 0, 0, (1, 1), torch.eye(latents))


def vae_loss(vae: Any, x: Tensor, settings: VaeSettings, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """L1 on pixels and on their differences, a small KL term, and a pull of every latent channel's mean to 0.

    x is (B, 3, H, W) in [-1, 1]. The last term helps the student, whose one step starts by undoing the
    teacher's mean prediction.
    """
    posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    restored = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    error = restored - x
    edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) / 2
    pixels = error.abs().mean()
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    offset = posterior.mean.float().mean(dim=(0, 2, 3)).square().mean()
    loss = pixels + settings.edge_weight * edges + settings.kl_weight * kl + settings.mean_weight * offset
    return loss, {"l1": pixels.item(), "edges": edges.item(), "kl": kl.item(), "offset": offset.item()}


def train_vae(
    folder: Path,
    photos: list[Tensor],
    drawn: list[Tensor],
    validation: Tensor,
    settings: VaeSettings,
    *,
    seed: int,
    device: torch.device,
    validate_every: int = 200,
) -> Any:
    """Trains (or resumes) in `folder`; returns the VAE with a `scaling_factor` that gives latents unit deviation."""
    torch.manual_seed(seed_for(seed, "vae", "weights"))
    vae = new_vae(settings)

    def crops_at(step: int | str, batch: int, size: int) -> Tensor:
        return random_crops(
            photos, drawn, size=size, batch=batch, drawn_share=settings.drawn_share, seed=(seed, "vae", step)
        )

    initialise(vae, crops_at("pca", 256, 64), settings)
    vae.to(device=device, memory_format=torch.channels_last)
    validation = validation.to(device)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        x = crops_at(step, settings.batch, settings.crop).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            return vae_loss(vae, x, settings, generator_for(seed, "vae", "posterior", step))

    def validate() -> dict[str, float]:
        restored = in_batches(lambda x: vae.decode(vae.encode(x).latent_dist.mode()).sample, validation, 2)
        return {"psnr_y": psnr_luma(restored, validation)}

    optimisers = split_optimisers(vae, muon_lr=settings.muon_lr, adamw_lr=settings.adamw_lr)
    run_stage(
        "vae", folder, vae, optimisers,
        steps=settings.steps, warm_up=settings.warm_up,
        loss_at=loss_at, validate=validate, validate_every=validate_every,
    )  # fmt: skip
    with torch.no_grad():
        sample = crops_at("scale", 64, 128).to(device)
        latents = in_batches(lambda x: vae.encode(x).latent_dist.mode(), sample, 8)
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    return vae
