"""Encoding to the mean of the encoder's Gaussian, without its variance."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from tsd.model.backbone import Backbone


def encode_mean(backbone: Backbone, x: Tensor) -> Tensor:
    """What `backbone.encode(x, posterior="mode")` gives: the last convolution makes the mean's channels alone.

    Where the VAE works in tiles, or an adapter wraps that convolution, the variance is computed and left.
    """
    vae: Any = backbone.vae
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    if type(last) is not nn.Conv2d or (vae.use_tiling and max(x.shape[-2:]) > vae.tile_sample_min_size):
        mean = vae._encode(x).chunk(2, dim=1)[0]
    elif vae.quant_conv is None:
        mean = functional_call(vae.encoder, _first_half(last, "conv_out."), x)
    else:
        mean = functional_call(last, _first_half(last), vae.encoder(x))
    return mean * vae.config["scaling_factor"]


def _first_half(convolution: nn.Conv2d, prefix: str = "") -> dict[str, Tensor]:
    """Weight and bias of the first half of a convolution's outputs, by their names."""
    channels = convolution.out_channels // 2
    return {f"{prefix}{name}": tensor[:channels] for name, tensor in convolution.named_parameters()}
