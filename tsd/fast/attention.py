"""Attention in bf16 on a processor without a matrix unit: computed in fp32, which is faster there and rounds less.

The CPU's attention kernel hands its small products to a library that multiplies bf16 well with a matrix unit alone.
"""

import functools
import os
import platform

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, wide: bool) -> Tensor:
    """Scaled dot-product attention of (B, heads, N, d); `wide` computes that of half precision in fp32."""
    if wide and takes_fp32(query.device, query.dtype):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value)


def takes_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention is faster in fp32 than in `dtype` on a device."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not has_matrix_unit()


@functools.cache
def has_matrix_unit() -> bool:
    """Whether this processor multiplies bf16 in a matrix unit that no setting of oneDNN switches off.

    True for processors that are not x86, where nothing is known.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    allowed = "AMX" in limit or limit in ("ALL", "DEFAULT")
    return allowed and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
