"""The text domain's scores: of every restored line, and of the whole set.

Of a line: PSNR; LP, an LPIPS-like distance in the glyph classifier's feature maps (Zhang et al., arXiv 1801.03924,
with equal weights: unit vectors along the channels, squared differences, mean over space, sum over layers); the shares
of letters and faces that the classifier reads right. Of the set: Fréchet distance and KID of the classifier's
embeddings against those of *other* ground-truth lines; and sharpness, the gradient energy over the ground truth's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ablation.text.classifier import GlyphClassifier, GlyphFeatures, glyph_crops
from bench.ablation.text.glyphs import Line
from bench.metrics.distribution import fid_from_features, kid_from_features


@dataclass(frozen=True)
class TextScores:
    """Scores of a set of N restored lines: `per_image` arrays (N,) by metric, and `of_set`, one number a metric."""

    per_image: dict[str, np.ndarray]
    of_set: dict[str, float]


class TextScorer:
    """Scores restored lines against their ground truth; the ground truth's features are computed once.

    Args:
        lines: the test lines.
        reference: other lines with at least as many glyphs, whose embeddings Fréchet distance and KID compare with.
    """

    def __init__(self, classifier: GlyphClassifier, lines: Sequence[Line], reference: Sequence[Line]) -> None:
        self.classifier, self.lines = classifier, list(lines)
        self.hr = gray_images(lines)
        self.letters = torch.tensor([glyph for line in lines for glyph in line.glyphs])
        self.faces = torch.tensor([line.face for line in lines for _ in line.glyphs])
        self.owner = np.array([number for number, line in enumerate(lines) for _ in line.glyphs])
        self.truth = self.features(self.hr, self.lines)
        other = self.features(gray_images(reference), reference).embedding.double().numpy()
        # The embedding has no scale of its own; in this unit its 64 values have a variance of 1 on average.
        self.unit = float(np.sqrt(other.var(axis=0).mean()))
        self.reference = other / self.unit

    @torch.no_grad()
    def features(self, images: Tensor, lines: Sequence[Line]) -> GlyphFeatures:
        """The classifier's features of every glyph of gray images (N, 1, H, W) in [0, 1]."""
        parts = [self.classifier(crops) for crops in glyph_crops(images, lines).split(512)]
        return GlyphFeatures(
            torch.cat([part.letters for part in parts]),
            torch.cat([part.faces for part in parts]),
            torch.cat([part.embedding for part in parts]),
            tuple(torch.cat(found) for found in zip(*(part.maps for part in parts), strict=True)),
        )

    def __call__(self, images: Tensor) -> TextScores:
        """Scores (N, 1, H, W) in [0, 1], which are rounded to 8 bits first, as a file would be."""
        images = (images.clamp(0, 1) * 255).round() / 255
        found = self.features(images, self.lines)
        right = {
            "letters": (found.letters.argmax(1) == self.letters).double().numpy(),
            "faces": (found.faces.argmax(1) == self.faces).double().numpy(),
            "lp": map_distance(found.maps, self.truth.maps).double().numpy(),
        }
        counts = np.bincount(self.owner, minlength=len(self.lines))
        per_image = {
            name: np.bincount(self.owner, weights=value, minlength=len(self.lines)) / counts
            for name, value in right.items()
        }
        mse = (images - self.hr).double().square().mean(dim=(1, 2, 3)).numpy()
        per_image["psnr"] = -10 * np.log10(np.maximum(mse, 1e-10))
        embedding = found.embedding.double().numpy() / self.unit
        of_set = {name: float(value.mean()) for name, value in per_image.items()}
        of_set |= {
            "fd": fid_from_features(embedding, self.reference),
            "kid": kid_from_features(embedding, self.reference[: len(embedding)]),
            "sharpness": float(gradient_energy(images).sum() / gradient_energy(self.hr).sum()),
        }
        return TextScores(per_image, of_set)


def gray_images(lines: Sequence[Line]) -> Tensor:
    """(N, 1, H, W) in [0, 1], rounded to 8 bits."""
    return torch.from_numpy(np.stack([np.rint(line.image * 255) for line in lines]).astype(np.float32) / 255)[:, None]


def gray_of(images: Tensor) -> Tensor:
    """Decoded images (N, 3, H, W) in about [-1, 1] as gray ones (N, 1, H, W) in about [0, 1]."""
    return images.float().mean(1, keepdim=True) / 2 + 0.5


def map_distance(maps: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """The LPIPS-like distance of every crop, (B,)."""
    total = torch.zeros(len(maps[0]))
    for a, b in zip(maps, truth, strict=True):
        difference = F.normalize(a.float(), dim=1, eps=1e-8) - F.normalize(b.float(), dim=1, eps=1e-8)
        total = total + difference.square().sum(1).mean(dim=(1, 2))
    return total


def gradient_energy(images: Tensor) -> Tensor:
    """The sum of squared differences of neighbouring pixels, (N,) from (N, 1, H, W)."""
    across, down = (images.double().diff(dim=dim).square().sum(dim=(1, 2, 3)) for dim in (-1, -2))
    return across + down


def unsharp(images: Tensor, amount: float, sigma: float = 1.0) -> Tensor:
    """Sharpens (N, 1, H, W): x + amount · (x − blurred x), with a Gaussian of `sigma` pixels."""
    radius = round(4 * sigma)
    weights = torch.exp(-torch.arange(-radius, radius + 1).float().square() / (2 * sigma**2))
    weights = weights / weights.sum()
    blurred = F.conv2d(F.pad(images, (radius, radius, 0, 0), mode="replicate"), weights.view(1, 1, 1, -1))
    blurred = F.conv2d(F.pad(blurred, (0, 0, radius, radius), mode="replicate"), weights.view(1, 1, -1, 1))
    return images + amount * (images - blurred)
