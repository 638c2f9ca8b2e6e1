"""SD2's UNet for one prompt and one time: what they add to its convolutions folded, keys and values of the text kept.

The time embedding enters each residual block as a vector added to its first convolution, so it becomes part of that
convolution's bias. The prompt enters by cross-attention alone, so its keys and values are constants everywhere.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from tsd.config import FastPath
from tsd.fast.constants import Constant, NoEmbedding
from tsd.fast.projections import use_fused_projections
from tsd.fast.upsampling import use_fast_upsampling
from tsd.model.prompt import PromptEmbeds


def rewrite(
    denoiser: Any, prompt: PromptEmbeds, timestep: Tensor, fast: FastPath, load: Callable[[str], None]
) -> FastPath:
    """Rewrites a `UNet2DConditionModel` in place; returns what was done.

    A UNet with embeddings beyond those of SD2 (classes, sizes, images) is not folded.
    """
    load("")
    fast = replace(fast, attention=False)
    if fast.fold and not _is_plain(denoiser):
        fast = replace(fast, fold=False, text=False)
    if fast.fold:
        sample = denoiser.conv_in.weight[:1]  # for its dtype and a batch of 1
        embedding = denoiser.time_embedding(denoiser.get_time_embed(sample=sample, timestep=timestep))
        for block in denoiser.modules():
            if isinstance(block, ResnetBlock2D) and block.time_emb_proj is not None:
                added = block.time_emb_proj(block.nonlinearity(embedding))[0]
                bias: Any = block.conv1.bias
                block.conv1.bias = nn.Parameter(bias.detach() + added, requires_grad=False)
                block.time_emb_proj = None
        denoiser.time_embedding = NoEmbedding()
    if fast.text:
        embeds = prompt.embeds.to(next(denoiser.parameters()).dtype)
        for block in denoiser.modules():
            if isinstance(block, BasicTransformerBlock) and block.attn2 is not None:
                attention: Any = block.attn2
                attention.to_k, attention.to_v = Constant(attention.to_k(embeds)), Constant(attention.to_v(embeds))
    if fast.qkv:
        use_fused_projections(denoiser)
    if fast.upsample:
        use_fast_upsampling(denoiser)
    return fast


def _is_plain(denoiser: Any) -> bool:
    config = denoiser.config
    absent = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_embedding_act_fn")
    absent += ("num_class_embeds", "encoder_hid_dim", "time_cond_proj_dim")
    blocks = [block for block in denoiser.modules() if isinstance(block, ResnetBlock2D)]
    crossing = [block for block in denoiser.modules() if isinstance(block, BasicTransformerBlock)]
    return (
        all(config.get(name) is None for name in absent)
        and all(b.time_embedding_norm == "default" and not b.skip_time_act for b in blocks)
        and all(b.attn2 is None or (b.attn2.is_cross_attention and not b.attn2.norm_cross) for b in crossing)
        and not config.get("only_cross_attention")
        and not config.get("dual_cross_attention")
    )
