"""The paper's nine metrics, and others by name.

They stand in the paper's order. Importing this imports neither torch nor pyiqa.
"""

import math

from bench.metrics.base import (
    CannotScoreError,
    ImageScorer,
    MetricSpec,
    MissingWeightsError,
    SetScorer,
    missing_metric,
    weight_hashes,
)
from bench.metrics.consistency import LR_PSNR
from bench.metrics.distribution import FID, KID
from bench.metrics.per_image import (
    CLIPIQA,
    DISTS,
    FSIM,
    GMSD,
    LPIPS,
    MANIQA_PIPAL,
    MS_SSIM,
    MUSIQ_KONIQ,
    NIQE,
    PSNR,
    SSIM,
    VIF,
)
from tsd.errors import UserError, nearest

__all__ = [
    "EXTRA_METRICS",
    "METRICS",
    "CannotScoreError",
    "ImageScorer",
    "MetricSpec",
    "MissingWeightsError",
    "SetScorer",
    "bounds_of",
    "get_metric",
    "missing_metric",
    "weight_hashes",
]

METRICS: dict[str, MetricSpec] = {
    spec.name: spec for spec in (PSNR, SSIM, LPIPS, DISTS, FID, NIQE, MUSIQ_KONIQ, MANIQA_PIPAL, CLIPIQA)
}
EXTRA_METRICS: dict[str, MetricSpec] = {spec.name: spec for spec in (KID, LR_PSNR, MS_SSIM, GMSD, FSIM, VIF)}


def bounds_of(name: str) -> tuple[float, float]:
    """The smallest and the largest value of an image under the metric; no bounds for a name that is not known here."""
    spec = (METRICS | EXTRA_METRICS).get(name)
    return (-math.inf, math.inf) if spec is None else spec.bounds


def get_metric(name: str) -> MetricSpec:
    """The metric of that name, one of the nine or an extra one.

    Raises:
        UserError: unknown; the message suggests the nearest name and lists all.
    """
    known = METRICS | EXTRA_METRICS
    if name in known:
        return known[name]
    near = nearest(name, known)
    hint = f" Did you mean {near}?" if near else ""
    raise UserError(f"unknown metric {name!r}.{hint} Known: {', '.join(known)}")
