"""The prior and everything of it that has a closed form: density, posterior, velocity.

All Gaussians have the same weight and the same standard deviation, so that every posterior is a softmax and two
matrix products. An observation of a point z is x = α z + σ ε with ε ~ N(0, I): a noised latent (α = 1 − σ_t), or the
degraded one (α = 1). Given the Gaussian k, with V = α² sd² + σ²,

    x ~ N(α μ_k, V),   E[z | x, k] = μ_k + (α sd² / V)(x − α μ_k),   var[z | x, k] = sd² σ² / V,
    E[ε | x, k] = (σ / V)(x − α μ_k).

Points are (B, 2) fp32; α and σ are numbers or (B, 1).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Level = Tensor | float


@dataclass(frozen=True)
class Mixture:
    """Gaussians of equal weight, evenly spaced on a circle around the origin.

    Attributes:
        components: how many.
        radius: of the circle.
        sd: standard deviation of each, in both directions.
    """

    components: int
    radius: float
    sd: float

    @cached_property
    def means(self) -> Tensor:
        """μ, (K, 2)."""
        angle = torch.arange(self.components) * (2 * math.pi / self.components)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 2) draws from the prior."""
        which = torch.randint(self.components, (count,), generator=generator)
        return self.means[which] + self.sd * torch.randn(count, 2, generator=generator)

    def distance_to_mode(self, points: Tensor) -> Tensor:
        """(B,) Euclidean distances to the nearest mean."""
        return _distances(points, self.means).amin(dim=1)

    def log_density(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """(B,) log-densities of x; of the prior itself unless α and σ say otherwise. In nats."""
        variance = alpha**2 * self.sd**2 + sigma**2
        squares = _distances(x, alpha * self.means).square()
        constant = math.log(self.components) + math.log(2 * math.pi * variance)
        return torch.logsumexp(-squares / (2 * variance), dim=1) - constant

    def responsibilities(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """p(k | x), (B, K). |μ_k| is the same for all k, so that only the products x·μ_k distinguish them."""
        precision = alpha / ((alpha * self.sd) ** 2 + sigma**2)
        return torch.softmax((self.means @ (precision * x).T), dim=0).T  # rows of 8 are many times slower

    def posterior_mean(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """E[z | x], (B, 2): no estimate has a smaller MSE."""
        gain = alpha * self.sd**2 / (alpha**2 * self.sd**2 + sigma**2)
        return gain * x + (1 - gain * alpha) * (self.responsibilities(x, alpha, sigma) @ self.means)

    def posterior_sample(self, x: Tensor, alpha: float, sigma: float, generator: torch.Generator) -> Tensor:
        """(B, 2), one draw from p(z | x) for each point: distributed as the prior, at twice the smallest MSE."""
        variance = alpha**2 * self.sd**2 + sigma**2
        which = torch.multinomial(self.responsibilities(x, alpha, sigma), 1, generator=generator)[:, 0]
        means = self.means[which]
        centre = means + alpha * self.sd**2 / variance * (x - alpha * means)
        return centre + self.sd * sigma / variance**0.5 * torch.randn(x.shape, generator=generator)

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[ε − z | z_t = x], (B, 2), the exact prediction of a flow-matching teacher; α = 1 − σ, σ of shape (B, 1).

        It has no pole at σ = 0, unlike (x − E[z | x]) / σ, which it equals elsewhere. It is most of what a training
        step computes, and on arrays of this size a call of numpy costs a fraction of one of torch.
        """
        means = self._means_numpy
        point, level = x.numpy(), sigma.numpy()
        alpha = 1 - level
        variance = np.square(self.sd * alpha) + np.square(level)
        logits = means @ (alpha / variance * point).T  # (K, B), since sums over rows of 8 are slow
        weights = np.exp(logits - logits.max(axis=0))
        mean = (means.T @ weights / weights.sum(axis=0)).T
        return torch.from_numpy((level - alpha * self.sd**2) / variance * (point - alpha * mean) - mean)

    @cached_property
    def _means_numpy(self) -> NDArray[np.float32]:
        return self.means.numpy()


def _distances(points: Tensor, means: Tensor) -> Tensor:
    """(B, K). By differences: torch's way for many points, |x|² + |μ|² − 2 x·μ, loses the digits of small distances."""
    return torch.cdist(points, means, compute_mode="donot_use_mm_for_euclid_dist")
