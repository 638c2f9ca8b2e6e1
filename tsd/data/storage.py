"""Estimates how much disk prepared data takes, part by part, before it is made.

Latents and embeddings are exact. The sizes of image files depend on the images; the figures here are means over the
central 512 x 512 pixels of Kodak's 24 photographs (lossless WebP, FULL degradation).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from tsd.files import human_size

HR_BYTES_PER_PIXEL = 1.33
SHARPENED_BYTES_PER_PIXEL = 1.47
LR_BYTES_PER_PIXEL = 1.35
FP16_BYTES = 2


@dataclass(frozen=True)
class Storage:
    """Bytes per crop of the image parts, bytes per distinct caption of the embeddings."""

    hr: int
    lr: int
    posterior: int
    embeddings: int

    def total(self, crops: int, captions: int) -> int:
        return crops * (self.hr + self.lr + self.posterior) + captions * self.embeddings

    def to_text(self, crops: int, captions: int) -> str:
        """A table to print: bytes per crop or caption, and in all for these numbers of crops and distinct captions."""
        rows = [
            ("target (estimate)", self.hr, crops),
            ("low-quality image (estimate)", self.lr, crops),
            ("latent: mean and logvar, fp16", self.posterior, crops),
            ("embeddings per distinct caption, fp16", self.embeddings, captions),
        ]
        lines = [f"{'part':40}{'bytes each':>14}{'number':>12}{'in all':>12}"]
        lines += [f"{name:40}{size:>14,}{number:>12,}{human_size(size * number):>12}" for name, size, number in rows]
        lines.append(f"{'together':40}{'':14}{'':12}{human_size(self.total(crops, captions)):>12}")
        return "\n".join(lines)


def storage_of(settings: Mapping[str, Any]) -> Storage:
    """The disk space of data with these settings (`tsd.data.prepare_config.settings_of`)."""
    pixels = settings["crop"] ** 2
    return Storage(
        hr=round(pixels * (SHARPENED_BYTES_PER_PIXEL if settings["usm"] else HR_BYTES_PER_PIXEL)),
        lr=round(pixels / settings["scale"] ** 2 * LR_BYTES_PER_PIXEL),
        posterior=FP16_BYTES * prod(settings["latent_shape"]),
        embeddings=sum(FP16_BYTES * prod(shape) for shape in settings["prompt_shapes"].values()),
    )
