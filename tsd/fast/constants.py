"""Modules whose result is a constant of the student, since its prompt and its time are fixed."""

from typing import Any

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """Gives the same tensor (1, …) whatever it is asked, repeated to the batch of the first argument."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self, like: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.value.expand(len(like), *self.value.shape[1:])


class NoEmbedding(nn.Module):
    """Stands where an embedding of the time was, of which nothing is left."""

    def forward(self, *args: Any, **kwargs: Any) -> None:
        return None


class Modulated(nn.Module):
    """LayerNorm without parameters, then · (1 + scale) + shift: a modulation that has become one affine LayerNorm.

    Args:
        scale, shift: (1, D) as the modulation computes them.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", (1 + scale[0]).detach())
        self.register_buffer("bias", shift[0].detach().clone())
        self.eps = eps

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return torch.nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
