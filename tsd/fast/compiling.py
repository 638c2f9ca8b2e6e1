"""`torch.compile` for each kind of block, so that a block is compiled once and not once for every layer.

Diffusers' SD3 names no repeated blocks, so they are named here. On a GPU the mode `reduce-overhead` also records the
kernels as CUDA graphs, which are replayed as long as the size stays. A size that was not seen before is compiled anew.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tsd.model.backbone import Backbone

BLOCKS = ("FoldedBlock", "JointTransformerBlock", "BasicTransformerBlock", "ResnetBlock2D")
"""Class names of the blocks that repeat: of SD3, folded or not, of SD2, and of every VAE."""
VARIANTS = 4096

Report = Callable[[str], None]


def compile_blocks(backbone: Backbone, report: Report) -> bool:
    """Compiles the blocks of denoiser and VAE at their first call; returns whether this machine can.

    Args:
        report: called with one line if it cannot.
    """
    reason = _why_not(backbone.device)
    if reason is not None:
        report(f"not compiled: {reason}")
        return False
    # One class has up to a dozen variants (widths, first and last block), each compiled for each size. The default of
    # eight in all would run the rest uncompiled.
    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit"):  # names differ by version
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, VARIANTS)
    mode = "reduce-overhead" if backbone.device.type == "cuda" else None
    for module in (backbone.denoiser, backbone.vae):
        for block in module.modules():
            if type(block).__name__ in BLOCKS:
                block.compile(mode=mode, dynamic=False)
    return True


class Sizes:
    """Says when an image size is new to a compiled student, whose blocks are then compiled again.

    Args:
        report: called with one line for each new size.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.seen: set[tuple[int, int]] = set()

    def meet(self, size: tuple[int, int]) -> None:
        """Reports a (width, height) in pixels that was not met before."""
        if size not in self.seen:
            self.seen.add(size)
            again = " again" if len(self.seen) > 1 else ""
            self.report(f"compiling{again} for {size[0]}x{size[1]} pixels: this image takes much longer")


def _why_not(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device: the compiler is tried on one addition."""
    probe: Any = nn.Identity()
    probe.forward = lambda x: x + 1
    try:
        torch.compile(probe, dynamic=False)(torch.zeros(4, device=device))
    except Exception as error:  # the compiler's own errors are of many kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"torch.compile does not work here ({first[:200]})"
    return None
