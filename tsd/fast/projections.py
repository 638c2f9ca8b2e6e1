"""Queries, keys and values from one matrix product instead of three."""

from typing import Any

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
)
from torch import Tensor, nn

_FUSED = {AttnProcessor2_0: FusedAttnProcessor2_0, JointAttnProcessor2_0: FusedJointAttnProcessor2_0}


def fused(layers: list[Any]) -> nn.Linear:
    """One linear layer whose outputs are those of `layers` side by side."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=layers[0].bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if layers[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)
    return joined


def fuse_projections(attention: Any) -> None:
    """Fuses the projections of an attention of diffusers, whose own fused processor then runs it.

    Diffusers keeps the separate weights beside the fused ones; here they leave memory. An attention with a processor
    that has no fused form, or whose keys and values come from elsewhere than its queries, stays as it is.
    """
    processor = _FUSED.get(type(attention.processor))
    if processor is None or attention.is_cross_attention or type(attention.to_q) is not nn.Linear:
        return  # also if an adapter that is not merged wraps its layers
    attention.to_qkv = fused([attention.to_q, attention.to_k, attention.to_v])
    attention.to_q = attention.to_k = attention.to_v = None
    if getattr(attention, "add_q_proj", None) is not None:
        attention.to_added_qkv = fused([attention.add_q_proj, attention.add_k_proj, attention.add_v_proj])
        attention.add_q_proj = attention.add_k_proj = attention.add_v_proj = None
    attention.fused_projections = True
    attention.set_processor(processor())


def use_fused_projections(module: nn.Module) -> None:
    """Fuses the projections of every attention inside `module`."""
    for child in module.modules():
        if type(child) is Attention:
            fuse_projections(child)


class Projections(nn.Module):
    """Some of queries, keys and values of one input: (B, N, D) → for each (B, heads, N, d).

    Args:
        layers: the projections wanted, in order.
        norms: for each, the norm of every head's vector, or None.
        heads: number of heads.
        fuse: whether they are computed by one product.
    """

    def __init__(self, layers: list[Any], norms: list[Any], heads: int, fuse: bool) -> None:
        super().__init__()
        self.heads, self.count = heads, len(layers)
        self.layers = nn.ModuleList([fused(layers)] if fuse else layers)
        self.norms = nn.ModuleList([nn.Identity() if norm is None else norm for norm in norms])

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [layer(x) for layer in self.layers]
        outputs = outputs if len(outputs) == self.count else list(outputs[0].chunk(self.count, dim=-1))
        return [
            norm(output.unflatten(-1, (self.heads, -1)).transpose(1, 2))
            for norm, output in zip(self.norms, outputs, strict=True)
        ]
