"""The pixel term of Eq. 7: LPIPS as in the paper, or Charbonnier where LPIPS' weights cannot be had."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tsd.errors import UserError

PixelLoss = Callable[[Tensor, Tensor], Tensor]
"""(x̂_H, x_H), both (B, 3, H, W) in about [-1, 1] → a scalar."""

ALEXNET = "alexnet-owt-7be5be79.pth"


def charbonnier(x_hat: Tensor, x: Tensor, eps: float = 1e-3) -> Tensor:
    """mean(√(d² + ε²)) of the difference and of its two spatial gradients, which keep edges from being averaged away.

    Both images in [-1, 1]; fp32.
    """
    d = x_hat.float() - x.float()
    terms = (d, d.diff(dim=-1), d.diff(dim=-2))
    return torch.stack([(term.square() + eps**2).sqrt().mean() for term in terms]).sum()


def load_pixel_loss(name: str, device: torch.device | str) -> PixelLoss:
    """The loss by its configured name.

    Raises:
        UserError: LPIPS' package or its AlexNet weights are missing; the message says which file to put where.
    """
    if name == "charbonnier":
        return charbonnier
    if name != "lpips":
        raise ValueError(f"pixel_loss is {name!r}; expected 'lpips' or 'charbonnier'")
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not weights.is_file():
        raise UserError(
            f"the LPIPS loss needs torchvision's AlexNet at {weights} (233 MB): fetch it with `bench fetch lpips`, "
            f"or train with --pixel-loss charbonnier"
        )
    try:
        import lpips
    except ImportError as error:
        raise UserError("the LPIPS loss needs the package lpips: pip install 'tsd-sr-bench[train]'") from error
    network = lpips.LPIPS(net="alex", verbose=False).to(device).eval().requires_grad_(False)
    return lambda x_hat, x: network(x_hat.float().clamp(-1, 1), x.float()).mean()
