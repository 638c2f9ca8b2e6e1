"""The second mini base: a small `UNet2DConditionModel`, SD2's architecture, and its student's head start.

It works on the same latents as the first (the VAE is shared), with SD2's own noise schedule and v prediction. At
t = 999 an error of a noise prediction would count 1/α = 14.6 times in ẑ, which the pre-trained SD2 can afford and a
network trained for a quarter of an hour cannot.

The student's head start: at t = 999 the teacher expects noise and predicts next to nothing, so ẑ begins as 0.07 z_L.
The teacher's features still contain z_L. So the last convolution is set to the least-squares readout of these features
that comes closest to the originals' latents, computed in closed form, and written as that layer's LoRA pair (a map to
12 channels has rank 12). The adapters are then trained together, on latents alone.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from tsd.console.progress import Progress
from tsd.mini.base import BaseTraining
from tsd.mini.stages import in_batches, psnr_luma, run_stage, save_atomically
from tsd.mini.warmup import factorise, latent_loss, pixel_metric
from tsd.model.backbone import Backbone
from tsd.model.lora import STUDENT, adapter_parameters, attach, denoiser_targets, role
from tsd.model.process import Prediction
from tsd.seeds import generator_for, seed_for


@dataclass(frozen=True)
class UNetSettings(BaseTraining):
    """Architecture and training of the mini UNet; the defaults made the shipped weights."""

    channels: tuple[int, int] = (48, 72)
    heads: int = 3
    anchor_scale: float = 2.0
    prediction_type: Prediction = "v_prediction"
    steps: int = 1600
    muon_lr: float = 0.01


@dataclass(frozen=True)
class UNetStartSettings:
    """The student's head start; the defaults made the shipped weights.

    Attributes:
        pairs, crop: the pool of training pairs, encoded once.
        readout_pairs: how many of them the least-squares fit reads.
        window: side, in latent positions, of the crops trained on.
    """

    pairs: int = 1600
    crop: int = 256
    readout_pairs: int = 200
    window: int = 48
    batch: int = 4
    steps: int = 1000
    lr: float = 1e-3


def new_unet(settings: UNetSettings, latent_channels: int) -> Any:
    """The untrained library model, with two levels and attention on the second.

    Residual branches and the last convolution start at 0. A latent can pass through: z and −z go in and reach the last
    normalisation by the outermost skip, where silu(z) − silu(−z) = z can be read. Two constant channels per normalised
    tensor keep its statistics from following the image's contrast (see `tsd.mini.vae`; here they are only the start
    and are trained).
    """
    narrow, wide = settings.channels
    model = UNet2DConditionModel(
        sample_size=64,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(narrow, wide),
        layers_per_block=1,
        attention_head_dim=settings.heads,  # the library's name for the number of heads
        cross_attention_dim=settings.prompt_width,
        norm_num_groups=1,
        use_linear_projection=True,
    )
    with torch.no_grad():
        _start(model, latent_channels, settings.anchor_scale)
    return model


def _start(model: Any, latents: int, scale: float) -> None:
    def anchor(conv: Any) -> None:
        size = scale * math.sqrt(conv.out_channels / 2)
        conv.weight[-2:] = 0
        conv.bias[-2:] = torch.tensor([size, -size])

    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm):
            module.weight.fill_(scale)
        if name.endswith((".conv1", ".conv_shortcut", "samplers.0.conv")):
            anchor(module)
        if name.endswith(".time_emb_proj"):
            module.weight[-2:] = 0
            module.bias[-2:] = 0
        if name.endswith((".conv2", ".proj_out")):  # where residual branches end
            module.weight.zero_()
            module.bias.zero_()
    anchor(model.conv_in)
    model.conv_in.weight[: 2 * latents] = 0
    model.conv_in.bias[: 2 * latents] = 0
    for channel in range(latents):
        model.conv_in.weight[channel, channel, 1, 1] = 1
        model.conv_in.weight[latents + channel, channel, 1, 1] = -1
    last = model.up_blocks[-1].resnets[-1].conv_shortcut
    skip = last.in_channels - model.conv_in.out_channels  # its input is (decoder's features, conv_in's output)
    last.weight[: 2 * latents] = 0
    last.bias[: 2 * latents] = 0
    for channel in range(2 * latents):
        last.weight[channel, skip + channel, 0, 0] = 1
    model.conv_out.weight.zero_()
    model.conv_out.bias.zero_()


def new_sd2_scheduler(settings: UNetSettings) -> DDPMScheduler:
    """SD2's own schedule: α at t = 999 is 0.068."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=settings.prediction_type,
        clip_sample=False,
    )


@torch.no_grad()
def encode_pairs(path: Path, backbone: Backbone, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(z_L, z) of the pairs of `make_pairs`, fp16 (N, c, h, w), cached in `path`. z_L is from the student's encoder."""
    if path.exists():
        z_low, z = torch.load(path, weights_only=True)
        return z_low, z
    latents: list[list[Tensor]] = [[], []]
    device = backbone.device
    for start in Progress(range(0, len(low), 10), desc="encoding pairs", mininterval=2.0):
        x_l, x_h = (images[start : start + 10].to(device).float() / 255 for images in (low, high))
        x_l = F.interpolate(x_l, scale_factor=4, mode="bicubic").clamp(0, 1)
        for kept, x, active in zip(latents, (x_l, x_h), (STUDENT, "teacher"), strict=True):
            with role(backbone.vae, active), torch.autocast(device.type, torch.bfloat16):  # pyright: ignore[reportArgumentType]
                kept.append(backbone.encode(x * 2 - 1, posterior="mode").half().cpu())
    z_low, z = (torch.cat(parts) for parts in latents)
    save_atomically([z_low, z], path)
    return z_low, z


@torch.no_grad()
def fit_readout(backbone: Backbone, z_low: Tensor, z: Tensor, generator: torch.Generator, ridge: float = 1e-4) -> float:
    """Sets the student adapter of `conv_out` to the least-squares readout of ẑ ≈ z at the last time.

    The target is a prediction p with α z_L − σ p = z (v prediction), that is p = (α z_L − z)/σ. The normal equations
    are summed over the pairs in float64, and `ridge` times the mean diagonal is added.

    Returns:
        The root-mean-square error of ẑ over the fitted pairs.
    """
    denoiser, process, device = backbone.denoiser, backbone.process, backbone.device
    t = torch.full((1,), process.last_time, device=device)
    conv = denoiser.conv_out.base_layer
    columns = conv.in_channels * 9
    gram = torch.zeros(columns, columns, dtype=torch.float64)
    moment = torch.zeros(columns, conv.out_channels, dtype=torch.float64)
    captured: list[Tensor] = []
    hook = denoiser.conv_out.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    # ẑ is affine in the prediction: two predictions give slope and offset whatever the process.
    zero, one = torch.zeros_like(z_low[:1]).float(), torch.ones_like(z_low[:1]).float()
    slope = float((process.x0(zero, one, t.cpu()) - process.x0(zero, zero, t.cpu())).mean())
    with role(denoiser, STUDENT):
        for start in range(0, len(z_low), 4):
            z_l, wanted = (x[start : start + 4].to(device).float() for x in (z_low, z))
            captured.clear()
            backbone.predict(z_l, t, backbone.prompts["default"])
            target = (wanted - process.x0(z_l, torch.zeros_like(z_l), t)) / slope - conv.bias.float().view(1, -1, 1, 1)
            patches = F.unfold(captured[0].float(), 3, padding=1).transpose(1, 2).flatten(0, 1).double().cpu()
            gram += patches.T @ patches
            moment += patches.T @ target.flatten(2).transpose(1, 2).flatten(0, 1).double().cpu()
    hook.remove()
    gram += ridge * gram.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    weight = torch.linalg.solve(gram, moment).T.float().reshape(conv.weight.shape)
    parameters = adapter_parameters(denoiser, STUDENT)
    a, b = (parameters[f"conv_out.lora_{side}.weight"] for side in "AB")
    change = weight - conv.weight.detach().float().cpu()
    for parameter, value in zip((a, b), factorise(change, a.shape[0], generator), strict=True):
        parameter.copy_(value)
    with role(denoiser, STUDENT):
        fitted = in_batches(lambda z_l: backbone.one_step(z_l.to(device).float()).cpu(), z_low, 4)
    return float((fitted - z).square().mean().sqrt())


def train_unet_student(
    folder: Path,
    backbone: Backbone,
    latents: tuple[Tensor, Tensor],
    originals: Tensor,
    validation: tuple[Tensor, Tensor],
    settings: UNetStartSettings,
    *,
    rank: int,
    seed: int,
    validate_every: int = 100,
) -> None:
    """Attaches the UNet's student adapter and trains it (or resumes) in `folder`, on latents; the VAE's is frozen.

    Args:
        latents: (z_L, z) of `encode_pairs`.
        originals: uint8 images for the pixel metric.
        validation: images (enlarged low-quality, original) in [-1, 1].
    """
    denoiser, device = backbone.denoiser, backbone.device
    attach(
        denoiser, STUDENT, denoiser_targets(denoiser, backbone.family.student_targets), rank, seed_for(seed, "adapter")
    )
    denoiser.to(device)
    z_low, z = latents
    if not (folder / "unet-student.pt").exists():
        kept = settings.readout_pairs
        rms = fit_readout(backbone, z_low[:kept], z[:kept], generator_for(seed, "readout"))
        print(f"least-squares readout: ẑ is {rms:.4f} from z (rms), z_L is "
              f"{float((z_low[:kept].float() - z[:kept]).square().mean().sqrt()):.4f}", file=sys.stderr)  # fmt: skip
    metric = pixel_metric(backbone.vae, (originals[:8].to(device).float() / 255) * 2 - 1, generator_for(seed, "metric"))
    adapter = adapter_parameters(denoiser, STUDENT)
    low, high = (images.to(device) for images in validation)

    def one_step(z_l: Tensor) -> Tensor:
        with role(denoiser, STUDENT):
            return backbone.one_step(z_l)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = generator_for(seed, "unet student", step)
        rows = torch.randint(len(z), (settings.batch,), generator=generator)
        top, left = torch.randint(z.shape[-1] - settings.window + 1, (2,), generator=generator).tolist()
        window = (rows, slice(None), slice(top, top + settings.window), slice(left, left + settings.window))
        z_l, wanted = z_low[window].to(device).float(), z[window].to(device).float()
        with torch.autocast(device.type, torch.bfloat16):
            z_hat = one_step(z_l)
        return latent_loss(z_hat, wanted, metric)

    def restored(x: Tensor) -> Tensor:
        with role(backbone.vae, STUDENT):
            z_l = backbone.encode(x, posterior="mode")
        with role(backbone.vae, "teacher"):
            return backbone.decode(one_step(z_l))

    def validate() -> dict[str, float]:
        return {"psnr_y": psnr_luma(in_batches(restored, low, 2), high), "bicubic": psnr_luma(low, high)}

    for parameter in adapter.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(list(adapter.values()), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    run_stage(
        "unet-student", folder, nn.ParameterDict({k.replace(".", "/"): v for k, v in adapter.items()}), [optimiser],
        steps=settings.steps, warm_up=settings.steps // 10,
        loss_at=loss_at, validate=validate, validate_every=validate_every, save_every=100,
    )  # fmt: skip
