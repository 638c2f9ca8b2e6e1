"""Group normalisation that stays accurate in fp32 on large channels-last images on the CPU.

PyTorch's CPU kernel for channels-last input takes mean and variance from plain running sums of x and x²: over the
pixels of a large image the result is off by up to 1e-3 of the largest value, enough to move an output by several
levels of 255. Here the mean is subtracted before squaring, and both reductions are PyTorch's own, which sum in
cascades. In half precision the weights' rounding is far coarser than this error, so the kernel is kept there.
"""

import torch
from torch import Tensor, nn


class TwoPassGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` in two passes for fp32 images (B, C, H, W) on the CPU; PyTorch's kernel for everything else."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 4 or input.dtype != torch.float32 or input.device.type != "cpu":
            return super().forward(input)
        centred = input - self._group_means(input)
        scale = torch.rsqrt(self._group_means(centred.square()) + self.eps)
        if not self.affine:
            return centred * scale
        return torch.addcmul(self.bias.view(1, -1, 1, 1), centred, scale * self.weight.view(1, -1, 1, 1))

    def _group_means(self, x: Tensor) -> Tensor:
        """The mean of each group's pixels and channels, as (B, C, 1, 1)."""
        batch, channels = x.shape[:2]
        means = x.mean(dim=3).mean(dim=2).view(batch, self.num_groups, -1).mean(dim=2, keepdim=True)
        return means.expand(-1, -1, channels // self.num_groups).reshape(batch, channels, 1, 1)


def use_two_pass_group_norm(module: nn.Module) -> None:
    """Replaces every `nn.GroupNorm` inside `module`; parameters are shared, not copied."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.GroupNorm:
                replacement = TwoPassGroupNorm(child.num_groups, child.num_channels, child.eps, child.affine)
                replacement.weight, replacement.bias = child.weight, child.bias
                replacement.train(child.training)
                setattr(parent, name, replacement)
