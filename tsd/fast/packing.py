"""On a CPU in bf16: linear layers whose weights lie in the order in which oneDNN multiplies them.

PyTorch hands oneDNN the plain matrix, which is put into blocks at every call. Here that is done once, in place of the
plain matrix, and a GELU that follows is computed on the product before it is rounded. The products are bit-equal.
"""

from typing import Any

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn

ROWS = 1024
"""Rows of the input that the order is chosen for: the tokens of 512 x 512 pixels. Others are multiplied as well."""


class PackedLinear(nn.Module):
    """A linear layer (…, K) → (…, N), followed by the GELU in its tanh form if `gelu`. It cannot be saved or moved.

    Attributes:
        weight: the opaque tensor (N, K); it is no parameter.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = linear.bias
        self.after = "gelu" if gelu else "none"

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.after, [], "tanh")


def pack_linears(module: nn.Module) -> bool:
    """Packs every linear layer of a bf16 module on the CPU in place; returns False where that cannot be.

    The operators are those that `torch.compile` uses; a build of torch without them keeps the plain form.
    """
    like = next(module.parameters())
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if (
        like.device.type != "cpu"
        or like.dtype != torch.bfloat16
        or not torch.backends.mkldnn.is_available()
        or not there
    ):
        return False
    with torch.no_grad():
        for parent in list(module.modules()):
            for name, child in parent.named_children():
                packed = _packed(child)
                if packed is not None:
                    setattr(parent, name, packed)
    return True


def _packed(child: Any) -> PackedLinear | None:
    if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16:
        return PackedLinear(child)
    if type(child) is GELU and child.approximate == "tanh" and type(child.proj) is nn.Linear:
        return PackedLinear(child.proj, gelu=True)
    return None
