"""The networks of the mixture: linear heads on fixed random features, which Adam trains in microseconds.

The features are √(2 / FEATURES) · cos(W x + b) with W ~ N(0, 1 / LENGTH²) and uniform b: their products approximate a
Gaussian kernel of width LENGTH, about half the distance of two modes. Without the factor a step of Adam at rate .02
moves the critic so far that its gain over the teacher is negative: its VSD signal would be noise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH = 1.5
FEATURES = 64


@dataclass(frozen=True)
class RandomFeatures:
    """Fixed features of vectors; drawn once, never trained."""

    weight: Tensor
    bias: Tensor

    @staticmethod
    def draw(inputs: int, generator: torch.Generator) -> "RandomFeatures":
        """Features of vectors with that many entries."""
        weight = torch.randn(inputs, FEATURES, generator=generator) / LENGTH
        return RandomFeatures(weight, 2 * math.pi * torch.rand(FEATURES, generator=generator))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, inputs) → (B, FEATURES) ; the mean of their squared norm is 1."""
        return math.sqrt(2 / FEATURES) * torch.cos(torch.addmm(self.bias, x, self.weight))


def new_head() -> Tensor:
    """The weights of a linear head with two outputs, all zero: a network begins as what it corrects."""
    return torch.zeros(FEATURES, 2, requires_grad=True)
