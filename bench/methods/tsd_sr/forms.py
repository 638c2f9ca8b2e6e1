"""Other ways to compute a student's images, as rows of `bench latency` that show what a measure gains.

`FORMS` lists them. The images of a form differ from those of `OneStepMethod` by rounding alone.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.methods.stages import Boundary
from bench.methods.tsd_sr.loading import load_unmerged
from bench.methods.tsd_sr.method import OneStepMethod, codec_boundaries, networks_of
from tsd.config import RestoreConfig, enlarged_size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tsd.model.backbone import Backbone


class ReleasedStudent(OneStepMethod):
    """The student as the released script runs it: adapters beside the weights, default layout, nothing rewritten.

    Its VAE works on the whole image, also where the script would turn to tiles (above 1024 pixels).
    """

    @functools.cached_property
    def backbone(self) -> "Backbone":
        return load_unmerged(self.weights, self.options)

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        import torch

        with torch.inference_mode():
            return self._restore(lr, seed).to("cpu").clone()

    def _restore(self, lr: "Tensor", seed: int) -> "Tensor":
        import torch
        from torch.nn.functional import interpolate

        from tsd.restore.color import adain, wavelet
        from tsd.restore.restorer import processing_size, resize, truncate_to_8_bits

        config, backbone = self.config, self.backbone
        lr = lr.to(backbone.device)
        target = enlarged_size(lr.shape[-2], lr.shape[-1], config.scale)
        width, height = processing_size(lr.shape[-1], lr.shape[-2], config, backbone.pixel_multiple)
        x = interpolate(lr, size=(height, width), mode="bicubic", align_corners=False)
        x = (2 * x - 1).clamp(-1, 1).to(backbone.dtype)
        generator = torch.Generator().manual_seed(seed)
        z = backbone.encode(x, posterior=config.posterior, generator=generator)
        image = backbone.decode(self._one_step(z, config)).float().clamp(-1, 1) / 2 + 0.5
        if config.color == "adain":
            return adain(truncate_to_8_bits(image, target), lr).clamp(0, 1)
        image = resize(image, target)
        if config.color == "wavelet":
            image = wavelet(image, resize(lr, target))
        return image.clamp(0, 1)

    def _one_step(self, z: "Tensor", config: RestoreConfig) -> "Tensor":
        from tsd.restore.tiling import blend_tiles

        if config.tile and z.shape[-2] * z.shape[-1] > config.tile**2:
            return blend_tiles(self.backbone.one_step, z, tile=config.tile, overlap=config.tile_overlap)
        return self.backbone.one_step(z)

    def boundaries(self) -> Sequence[Boundary]:
        return [Boundary("upsample", self, "_restore", "copy"), *codec_boundaries(self.backbone)]

    def networks(self) -> "dict[str, nn.Module]":
        return networks_of(self.backbone)

    def provenance(self) -> dict[str, object]:
        return {**super().provenance(), "form": "as released: adapters beside the weights, default memory layout"}


FORMS: dict[str, tuple[str, type[OneStepMethod]]] = {"released": ("as released", ReleasedStudent)}
"""By the name after the @ of a row: the words after the method's name in a table, and the class."""
