"""A small decoder in the place of the VAE's: faster by far, and only nearly the same image.

It is diffusers' `AutoencoderTiny` (TAESD3 is one), or one that `tsd distill-decoder` trained; its encoder is not used.
Such models take the latents that pipelines pass on, shifted and scaled: (z_vae − shift) · scaling. TSD-SR's are scaled
alone, so shift · scaling is subtracted first: 0.0932 for SD3.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from tsd.errors import UserError
from tsd.model.loading import read_config, weight_files


class SmallDecoder(nn.Module):
    """Latents z (B, C, h, w), scaled but not shifted → images (B, 3, H, W), nominally in [-1, 1].

    Args:
        tiny: the model whose decoder is used.
        vae: configuration of the VAE whose latents they are.
    """

    def __init__(self, tiny: Any, vae: Any) -> None:
        super().__init__()
        self.network = tiny.decoder
        # A pipeline divides by the small model's own scaling and adds its own shift.
        self.scaling, self.own_shift = tiny.config["scaling_factor"], tiny.config["shift_factor"]
        self.shift = (vae["shift_factor"] or 0.0) * vae["scaling_factor"]

    def forward(self, z: Tensor) -> Tensor:
        return self.network((z - self.shift) / self.scaling + self.own_shift)


def load_decoder(
    folder: str | Path, vae: Any, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SmallDecoder:
    """Loads a small decoder for the latents of a VAE, whose configuration is `vae`.

    Raises:
        UserError: no `AutoencoderTiny` in the folder, or it reads other latents or enlarges otherwise than the VAE.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no decoder folder at {folder}; expected config.json and weights of an AutoencoderTiny")
    config = read_config(folder / "config.json")
    if config.get("_class_name") != "AutoencoderTiny":
        raise UserError(f"{folder} holds a {config.get('_class_name')}; a small decoder is an AutoencoderTiny")
    weight_files(folder)
    wanted, found = vae["latent_channels"], config.get("latent_channels", 4)
    if wanted != found:
        raise UserError(f"the decoder {folder} reads latents of {found} channels; this model's have {wanted}")
    enlarges = config.get("upsampling_scaling_factor", 2) ** (len(config["decoder_block_out_channels"]) - 1)
    needed = 2 ** (len(vae["block_out_channels"]) - 1)
    if enlarges != needed:
        raise UserError(f"the decoder {folder} enlarges latents {enlarges} times; this model's need {needed}")
    try:
        tiny: Any = AutoencoderTiny.from_pretrained(
            str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the decoder in {folder} could not be loaded: {error}") from error
    decoder = SmallDecoder(tiny, vae).eval().requires_grad_(False).to(device)
    return decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
