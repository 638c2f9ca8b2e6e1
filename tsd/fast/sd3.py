"""SD3's denoiser for one prompt and one time: its modulations folded, its text side computed as far as it is constant.

The model stays an `SD3Transformer2DModel` with its own configuration and forward pass; its blocks and embedders are
replaced. What of the text depends on the image stays: from the second block on, that is all of it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tsd.config import FastPath
from tsd.fast.attention import attend
from tsd.fast.constants import Constant, Modulated, NoEmbedding
from tsd.fast.projections import Projections, use_fused_projections
from tsd.model.prompt import PromptEmbeds

Load = Callable[[str], None]


def rewrite(denoiser: Any, prompt: PromptEmbeds, timestep: Tensor, fast: FastPath, load: Load) -> FastPath:
    """Rewrites an `SD3Transformer2DModel` in place; returns what was done (`attention`: if it is of use).

    Args:
        prompt, timestep: the student's own, (1, …) and (1,).
        load: called with the name of each part before its weights are read, so that they may come from a file then.
    """
    if not fast.fold:
        load("")
        if fast.qkv:
            use_fused_projections(denoiser)
        return replace(fast, attention=False)
    for part in ("time_text_embed", "context_embedder"):
        load(part)
    dtype = denoiser.context_embedder.weight.dtype
    assert prompt.pooled is not None
    temb = denoiser.time_text_embed(timestep, prompt.pooled.to(dtype))
    text = denoiser.context_embedder(prompt.embeds.to(dtype))
    denoiser.time_text_embed = NoEmbedding()
    if fast.text:
        denoiser.context_embedder = Constant(text)
    for index, block in enumerate(denoiser.transformer_blocks):
        load(f"transformer_blocks.{index}")
        constant_text = text if fast.text and index == 0 else None
        denoiser.transformer_blocks[index] = FoldedBlock(block, temb, fast.qkv, constant_text, fast.attention)
    load("norm_out")
    norm = denoiser.norm_out
    scale, shift = norm.linear(norm.silu(temb)).chunk(2, dim=1)
    denoiser.norm_out = Modulated(scale, shift, norm.norm.eps)
    load("")
    return fast


class FoldedBlock(nn.Module):
    """A `JointTransformerBlock` whose modulations are constants: same arguments, same results.

    Each shift and scale has become the affine part of its LayerNorm. The last block, whose text nobody reads, computes
    no queries of it.

    Args:
        block: the block; its linear layers are taken over, not copied.
        temb: (1, D), the embedding of time and pooled prompt.
        fuse: whether queries, keys and values come from one product.
        text: (1, L, D), the text that enters this block, if that is always the same.
        wide: whether attention may be computed in fp32 where that is faster.
    """

    gate: Tensor
    gate_ff: Tensor
    text_gate: Tensor
    text_gate_ff: Tensor

    def __init__(self, block: Any, temb: Tensor, fuse: bool, text: Tensor | None, wide: bool) -> None:
        super().__init__()
        attention = block.attn
        self.wide = wide
        self.last = block.context_pre_only
        modulations = block.norm1.linear(block.norm1.silu(temb)).chunk(9 if block.use_dual_attention else 6, dim=1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = modulations[:6]
        self.norm = Modulated(scale, shift, block.norm1.norm.eps)
        self.norm_ff = Modulated(scale_ff, shift_ff, block.norm2.eps)
        self.ff = block.ff
        self.to_out = attention.to_out[0]
        self._keep(gate=gate, gate_ff=gate_ff)
        self.qkv = Projections(
            [attention.to_q, attention.to_k, attention.to_v],
            [attention.norm_q, attention.norm_k, None],
            attention.heads,
            fuse,
        )
        self.second = SecondAttention(block, modulations[6:], fuse, wide) if block.use_dual_attention else None
        added = [attention.add_q_proj, attention.add_k_proj, attention.add_v_proj]
        norms = [attention.norm_added_q, attention.norm_added_k, None]
        first = 1 if self.last else 0
        text_qkv = Projections(added[first:], norms[first:], attention.heads, fuse)
        context = block.norm1_context
        modulations = context.linear(context.silu(temb)).chunk(2 if self.last else 6, dim=1)
        if self.last:
            scale, shift = modulations
        else:
            shift, scale, gate, shift_ff, scale_ff, gate_ff = modulations
            self.to_add_out = attention.to_add_out
            self.text_norm_ff = Modulated(scale_ff, shift_ff, block.norm2_context.eps)
            self.text_ff = block.ff_context
            self._keep(text_gate=gate, text_gate_ff=gate_ff)
        text_norm = Modulated(scale, shift, context.norm.eps)
        self.text_qkv: Any = nn.Sequential(text_norm, text_qkv)
        if text is not None:
            self.text_qkv = ConstantProjections(self.text_qkv(text))

    def _keep(self, **constants: Tensor) -> None:
        for name, constant in constants.items():
            self.register_buffer(name, constant[0].detach().clone())

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Any = None, joint_attention_kwargs: Any = None
    ) -> tuple[Tensor | None, Tensor]:
        x, text, tokens = hidden_states, encoder_hidden_states, hidden_states.shape[1]
        query, key, value = self.qkv(self.norm(x))
        *text_query, text_key, text_value = self.text_qkv(text)
        query = torch.cat([query, *text_query], dim=2)
        key, value = torch.cat([key, text_key], dim=2), torch.cat([value, text_value], dim=2)
        attended = attend(query, key, value, self.wide).transpose(1, 2).flatten(2)
        second = None if self.second is None else self.second(x)
        x = torch.addcmul(x, self.gate, self.to_out(attended[:, :tokens]))
        x = x if second is None else x + second
        x = torch.addcmul(x, self.gate_ff, self.ff(self.norm_ff(x)))
        if self.last:
            return None, x
        text = torch.addcmul(text, self.text_gate, self.to_add_out(attended[:, tokens:]))
        return torch.addcmul(text, self.text_gate_ff, self.text_ff(self.text_norm_ff(text))), x


class SecondAttention(nn.Module):
    """The second attention of SD3.5's blocks, of the image alone: (B, N, D) → what is added to it."""

    def __init__(self, block: Any, modulations: tuple[Tensor, ...], fuse: bool, wide: bool) -> None:
        super().__init__()
        attention, (shift, scale, gate) = block.attn2, modulations
        self.wide = wide
        self.norm = Modulated(scale, shift, block.norm1.norm.eps)
        layers = [attention.to_q, attention.to_k, attention.to_v]
        self.qkv = Projections(layers, [attention.norm_q, attention.norm_k, None], attention.heads, fuse)
        self.to_out = attention.to_out[0]
        self.register_buffer("gate", gate[0].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x))
        return self.gate * self.to_out(attend(query, key, value, self.wide).transpose(1, 2).flatten(2))


class ConstantProjections(nn.Module):
    """Queries, keys and values of a text that is always the same, each (1, heads, L, d)."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.values = nn.ModuleList(map(Constant, values))

    def forward(self, text: Tensor) -> list[Tensor]:
        return [value(text) for value in self.values]
