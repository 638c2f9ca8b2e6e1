"""A one-step super-resolution student as a pipeline of diffusers. This file needs diffusers, torch, NumPy and Pillow.

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("DIR", custom_pipeline="DIR", trust_remote_code=True)
    restored = pipeline(image)          # DIR: the folder of this file; a Pillow image in, one SCALE times as large out

The image is enlarged to the size the student works at, encoded, restored by one step of the denoiser, decoded, resized
to SCALE times the input, and its colours are aligned with the input's. SETTINGS says with what; each can be given in
the call: `pipeline(image, color="none")`. `tsd restore` of tsd-sr-bench gives the same image but for rounding.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image, ImageOps
from safetensors.torch import load_file

SETTINGS = {
    "scale": 4,  # size of the result over that of the input, 1 or more
    "color": "wavelet",  # takes the coarse colours (wavelet) or each channel's mean and contrast (adain) from the input
    "posterior": "sample",  # encodes the input as a sample of the encoder's distribution, or as its mean (mode)
    "process_size": 512,  # smallest short side to work at, in pixels of the result; 0: no minimum
    "seed": 42,  # of the sample, together with the call's `name`
    "tile": 64,  # side of the denoiser's tiles in latent positions; 0: none
    "tile_overlap": 8,
    "vae_tile": False,  # tiles of 1024 pixels in the VAE
}
"""The settings that the student was trained for, or those of the TSD-SR authors' script where it names none."""

SIDE_MULTIPLE = 8
VAE_TILE_PIXELS = 1024
LUMA = (0.299, 0.587, 0.114)
NEUTRAL = 2.01 / 255


class OneStepPipeline(DiffusionPipeline):
    """Restores images; `transformer` (SD3) or `unet` (SD2) is the student's denoiser."""

    _optional_components: ClassVar = ["transformer", "unet"]

    def __init__(
        self,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        transformer: SD3Transformer2DModel = None,  # pyright: ignore[reportArgumentType]
        unet: UNet2DConditionModel = None,  # pyright: ignore[reportArgumentType]
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, scheduler=scheduler, transformer=transformer, unet=unet)
        self._prompt: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, image: Image.Image, name: str = "", **settings: Any) -> Image.Image:
        """Restores one image of any mode of 8 bits; alpha is enlarged with it.

        Args:
            name: seeds the posterior sample; `tsd restore` gives the file's name without suffix.
            settings: replaces values of SETTINGS.
        """
        unknown = sorted(set(settings) - set(SETTINGS))
        if unknown:
            raise ValueError(f"no settings {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
        use = {**SETTINGS, **settings}
        image = ImageOps.exif_transpose(image)
        profile, gray = image.info.get("icc_profile"), image.mode in ("1", "L", "LA", "I;16")
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
        result = self._restore(torch.from_numpy(pixels).permute(2, 0, 1)[None], name, use)[0].permute(1, 2, 0).numpy()
        if np.ptp(pixels, axis=2).max() <= NEUTRAL:  # a black-and-white picture stays one
            result = np.repeat(result @ np.array(LUMA, np.float32)[:, None], 3, axis=2)
        levels = np.rint(result.clip(0, 1).astype(np.float64) * 255).astype(np.uint8)
        restored = Image.fromarray(levels)
        if gray:
            restored = Image.fromarray(levels[..., 0])
        if alpha is not None:
            mask = torch.from_numpy(np.array(alpha, np.float32) / 255)[None, None]
            mask = resize(mask, (restored.height, restored.width))[0, 0].numpy()
            restored.putalpha(Image.fromarray(np.rint(mask * 255).astype(np.uint8)))
        if profile:
            restored.info["icc_profile"] = profile
        return restored

    def _restore(self, lr: torch.Tensor, name: str, use: dict[str, Any]) -> torch.Tensor:
        """(1, 3, h, w) in [0, 1] → (1, 3, SCALE·h, SCALE·w) in [0, 1], on the CPU."""
        denoiser = self.transformer if self.transformer is not None else self.unet
        device, dtype, scale = denoiser.device, denoiser.dtype, use["scale"]
        vae_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._tile_vae(use["vae_tile"], vae_factor)
        lr = lr.to(device)
        height, width = lr.shape[-2:]
        target = enlarged(height, scale), enlarged(width, scale)
        least = int(use["process_size"] // scale)
        if width < least or height < least:
            enlarge = least / min(width, height)
            width, height = int(enlarge * width), int(enlarge * height)
        multiple = math.lcm(SIDE_MULTIPLE, vae_factor)
        height, width = (max(n - n % multiple, multiple) for n in (enlarged(height, scale), enlarged(width, scale)))
        x = F.interpolate(lr, size=(height, width), mode="bicubic", align_corners=False)
        x = (2 * x - 1).clamp(-1, 1).to(dtype)
        gaussian = self.vae.encode(x).latent_dist
        if use["posterior"] == "mode":
            z = gaussian.mode()
        else:
            z = gaussian.sample(generator=torch.Generator().manual_seed(seed_for(use["seed"], "posterior", name)))
        factor = self.vae.config.scaling_factor  # latents are scaled and not shifted, as the student was trained
        z_hat = self._one_step(z * factor, use["tile"], use["tile_overlap"])
        decoded = self.vae.decode(z_hat / factor, return_dict=False)[0].float()
        if not bool(decoded.isfinite().all()):
            raise ValueError(
                f"the networks gave values that are NaN or infinite in {dtype}; load in bfloat16 or float32"
            )
        restored = decoded.clamp(-1, 1) / 2 + 0.5
        if use["color"] == "adain":
            levels = (restored[0] * 255).permute(1, 2, 0).to("cpu", torch.uint8).numpy()
            picture = Image.fromarray(levels)
            if picture.size != (target[1], target[0]):
                picture = picture.resize((target[1], target[0]))
            restored = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(device, torch.float32) / 255
            return adain(restored, lr).clamp(0, 1).cpu()
        restored = resize(restored, target)
        if use["color"] == "wavelet":
            restored = restored + low_band(resize(lr, target) - restored)
        return restored.clamp(0, 1).cpu()

    def _tile_vae(self, tiled: bool, vae_factor: int) -> None:
        self.vae.use_tiling = tiled
        if tiled:
            self.vae.tile_sample_min_size = VAE_TILE_PIXELS
            self.vae.tile_latent_min_size = VAE_TILE_PIXELS // vae_factor

    def _one_step(self, z: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
        height, width = z.shape[-2:]
        longest = math.inf
        if self.transformer is not None:
            longest = self.transformer.config.pos_embed_max_size * self.transformer.config.patch_size
        if tile and (height * width > tile**2 or max(height, width) > longest):
            return self._in_tiles(z, int(min(tile, longest, height, width)), overlap)
        return self._step_padded(z)

    def _in_tiles(self, z: torch.Tensor, side: int, overlap: int) -> torch.Tensor:
        """The step tile by tile, blended by Gaussian weights; the last row and column are flush with the edge."""
        height, width = z.shape[-2:]
        overlap = min(overlap, side // 2) if overlap >= side else overlap
        starts = [
            [*range(0, length - side, side - overlap), length - side] if length > side else [0]
            for length in (height, width)
        ]
        position = torch.arange(side, dtype=torch.float64)

        def bell(centre: float) -> torch.Tensor:
            return torch.exp(-(((position - centre) / side) ** 2) / 0.02)

        weights = torch.outer(bell(side / 2), bell((side - 1) / 2)).to(z.device, torch.float32)
        total, weight_sum = torch.zeros(z.shape, device=z.device), torch.zeros((height, width), device=z.device)
        for left in starts[1]:
            for top in starts[0]:
                window = (..., slice(top, top + side), slice(left, left + side))
                total[window] += self._step_padded(z[window]).float() * weights
                weight_sum[window] += weights
        return (total / weight_sum).to(z.dtype)

    def _step_padded(self, z: torch.Tensor) -> torch.Tensor:
        patch = self.transformer.config.patch_size if self.transformer is not None else 1
        height, width = z.shape[-2:]
        padded = F.pad(z, (0, -width % patch, 0, -height % patch), mode="replicate")
        return self._step(padded)[..., :height, :width]

    def _step(self, z: torch.Tensor) -> torch.Tensor:
        """The clean latent that the prediction at the last time implies, computed in fp32."""
        steps = self.scheduler.config.num_train_timesteps
        flow = "FlowMatch" in type(self.scheduler).__name__
        time = torch.full((z.shape[0],), float(steps if flow else steps - 1), device=z.device)
        embeds = self._prompt_part("prompt_embeds", z)
        if self.transformer is not None:
            pooled = self._prompt_part("pool_embeds", z)
            prediction = self.transformer(
                hidden_states=z, timestep=time, encoder_hidden_states=embeds, pooled_projections=pooled,
                return_dict=False,
            )[0].float()  # fmt: skip
        else:
            prediction = self.unet(z, time, encoder_hidden_states=embeds, return_dict=False)[0].float()
        if flow:  # σ is 1 at the last time
            return (z.float() - prediction).to(z.dtype)
        alpha_bar = self.scheduler.alphas_cumprod[-1].to(z.device)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.scheduler.config.prediction_type == "epsilon":
            return ((z.float() - sigma * prediction) / alpha).to(z.dtype)
        return (alpha * z.float() - sigma * prediction).to(z.dtype)

    def _prompt_part(self, part: str, like: torch.Tensor) -> torch.Tensor:
        """The student's fixed prompt, which lies beside the weights."""
        if part not in self._prompt:
            name, source = f"prompts/default/{part}.safetensors", str(self.config["_name_or_path"])
            path = Path(source) / name
            if not path.is_file():
                from huggingface_hub import hf_hub_download

                path = Path(hf_hub_download(source, name))
            (self._prompt[part],) = load_file(path).values()
        return self._prompt[part].to(like.device, like.dtype).expand(like.shape[0], *self._prompt[part].shape[1:])


def enlarged(side: int, scale: float) -> int:
    """The side of the result, to the nearest pixel, halves up."""
    return math.floor(scale * side + 0.5)


def seed_for(*parts: int | str) -> int:
    """A stable seed of 63 bits for the given parts."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "big") >> 1


def resize(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Pillow's bicubic resizing of (B, C, H, W) in [0, 1], in float: rows first, then columns, each clamped."""
    for shape in ((image.shape[-2], size[1]), (size[0], size[1])):
        if image.shape[-2:] != shape:
            image = F.interpolate(image, size=shape, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return image


def low_band(image: torch.Tensor, levels: int = 5) -> torch.Tensor:
    """The coarsest band of an à-trous decomposition: a binomial blur with spacing 1, 2, 4, …"""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    across, down = row.view(1, 1, 1, 3).repeat(3, 1, 1, 1), row.view(1, 1, 3, 1).repeat(3, 1, 1, 1)
    for level in range(levels):
        radius = 2**level
        image = F.pad(image, (radius, radius, radius, radius), mode="replicate")
        image = F.conv2d(image, across, groups=3, dilation=(1, radius))
        image = F.conv2d(image, down, groups=3, dilation=(radius, 1))
    return image


def adain(restored: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """`restored` with the mean and the standard deviation that each channel of `reference` has."""
    var, mean = torch.var_mean(restored, dim=(2, 3), keepdim=True)
    var_ref, mean_ref = torch.var_mean(reference, dim=(2, 3), keepdim=True)
    return (restored - mean) * ((var_ref + 1e-5) / (var + 1e-5)).sqrt() + mean_ref
