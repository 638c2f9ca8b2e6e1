"""The measures of points against the truth and against the prior."""

import math

import torch
from torch import Tensor

from bench.ablation.mixture.prior import Mixture

DIRECTIONS = 64


def sliced_w2(points: Tensor, others: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two sets of the same size, (B, 2): over directions evenly spaced in [0, π).

    The square root of the mean over directions of the squared W2 distance of the projections.
    """
    angle = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    directions = torch.stack([angle.cos(), angle.sin()])
    ours, theirs = ((x @ directions).sort(dim=0).values for x in (points, others))
    return (ours - theirs).square().mean().sqrt().item()


def point_scores(prior: Mixture, z_hat: Tensor, z: Tensor) -> dict[str, Tensor]:
    """The measures that a single point has, each (B,)."""
    return {
        "mse": (z_hat - z).square().mean(dim=1),
        "distance": prior.distance_to_mode(z_hat),
        "log_likelihood": prior.log_density(z_hat),
    }


def set_scores(prior: Mixture, z_hat: Tensor, z: Tensor, fresh: Tensor) -> dict[str, float]:
    """All measures of a set: means of the points', and the sliced W2 distance to fresh draws of the prior."""
    means = {name: values.mean().item() for name, values in point_scores(prior, z_hat, z).items()}
    return means | {"sliced_w2": sliced_w2(z_hat, fresh)}
