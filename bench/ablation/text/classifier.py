"""The classifier of glyphs whose features the text domain's scores are taken in.

It reads a 24x24 crop around a glyph and tells letter and face. Its feature maps serve an LPIPS-like distance and its
64-dimensional embedding Fréchet distance and KID, as Inception's and AlexNet's do for photographs; it is trained on
ground-truth lines alone, so that no restored image has been seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.ablation.text.glyphs import ALPHABET, FACES, Line
from tsd.errors import UserError

SIDE = 24
"""Side of a glyph's crop in pixels."""

EMBEDDING = 64
WEIGHTS_FILE = "classifier.safetensors"


@dataclass(frozen=True)
class GlyphFeatures:
    """What the classifier says of B crops.

    Attributes:
        letters: logits over `ALPHABET`, (B, 50).
        faces: logits over `FACES`, (B, 14).
        embedding: (B, 64), the input of both heads.
        maps: feature maps of the five convolutions, coarser and coarser.
    """

    letters: Tensor
    faces: Tensor
    embedding: Tensor
    maps: tuple[Tensor, ...]


class GlyphClassifier(nn.Module):
    """Five convolutions, an embedding, and two heads; 0.4 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (32, 64, 64, 96, 128), (1, 2, 1, 2, 2)
        ins = (1, *widths[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=s, padding=1) for i, o, s in zip(ins, widths, strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths)
        self.embed = nn.Linear(widths[-1] * 9, EMBEDDING)
        self.letters, self.faces = nn.Linear(EMBEDDING, len(ALPHABET)), nn.Linear(EMBEDDING, len(FACES))

    def forward(self, crops: Tensor) -> GlyphFeatures:
        """Reads gray crops (B, 1, 24, 24) in [0, 1]."""
        maps: list[Tensor] = []
        h = crops * 2 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = F.silu(norm(convolution(h)))
            maps.append(h)
        embedding = self.embed(h.flatten(1))
        return GlyphFeatures(self.letters(F.silu(embedding)), self.faces(F.silu(embedding)), embedding, tuple(maps))


def load_classifier(folder: Path) -> GlyphClassifier:
    """The trained classifier, frozen, in fp32.

    Raises:
        UserError: no such file.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"no glyph classifier at {path}; `nox -s train_text` makes it")
    model = GlyphClassifier()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval().requires_grad_(False)


def glyph_crops(images: Tensor, lines: Sequence[Line]) -> Tensor:
    """The crops around every glyph of every line, in order: (number of glyphs, 1, 24, 24) from (B, 1, H, W).

    A crop is cut at whole pixels; beyond the image's edge its border is continued.
    """
    margin = SIDE // 2
    padded = F.pad(images, (margin,) * 4, mode="replicate")
    crops = [
        padded[number, :, round(y) : round(y) + SIDE, round(x) : round(x) + SIDE]
        for number, line in enumerate(lines)
        for x, y in line.centres
    ]
    return torch.stack(crops)
