"""Group normalisation of windows by statistics of the whole image, so that no window differs from another in tone.

Mean and variance of every layer are first estimated from small windows spread over the image, which pass the network
together. Passes over all windows then measure them while normalising by what is known so far. Each pass makes at least
one more layer exact, and errors shrink in all the others, since a normalisation undoes most of what is wrong with those
before it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mode = Literal["estimate", "measure", "apply"]
ROWS = 64
"""Rows whose moments are taken together, in fp32: so many, that a window is not copied whole."""


class PooledNorms:
    """The group normalisations of one network, which normalise by common statistics inside `in_use`.

    Attributes:
        mode: `estimate` takes the statistics from the batch at hand and normalises by them, `measure` normalises by
            those known and adds the batch to the next ones, `apply` only normalises.
        inside: where a window's result is used, rows and columns in positions of the network's input; only
            these pixels are measured.
        shape: (height, width) of the network's input.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self.modules = [module for network in networks for module in network.modules()]
        self.norms = [_PooledNorm(module, self) for module in self.modules if isinstance(module, nn.GroupNorm)]
        self.mode: Mode = "apply"
        self.inside = (slice(None), slice(None))
        self.shape = (1, 1)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Replaces the normalisations until the block ends; blocks that were compiled run uncompiled."""
        compiled = [(m, m._compiled_call_impl) for m in self.modules if m._compiled_call_impl is not None]
        try:
            for module, _ in compiled:
                module._compiled_call_impl = None
            for norm in self.norms:
                norm.module.forward = norm  # pyright: ignore[reportAttributeAccessIssue]
            yield
        finally:
            for norm in self.norms:
                norm.module.__dict__.pop("forward", None)
            for module, implementation in compiled:
                module._compiled_call_impl = implementation

    def see(self, shape: tuple[int, int], inside: tuple[slice, slice]) -> None:
        """Says which window comes next: its (height, width), and the rows and columns where its result is used."""
        self.shape, self.inside = shape, inside

    def update(self) -> float:
        """Makes what was measured the statistics; returns by how much they changed.

        That is the largest shift of a mean in standard deviations, or relative change of a standard deviation.
        """
        return max((norm.update() for norm in self.norms), default=0.0)


class _PooledNorm:
    """One group normalisation, called in place of the module's own `forward`."""

    def __init__(self, module: nn.GroupNorm, owner: PooledNorms) -> None:
        self.module, self.owner = module, owner
        self.mean = self.variance = torch.zeros(0)
        self._restart()

    def _restart(self) -> None:
        self.count, self.next_mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def __call__(self, x: Tensor) -> Tensor:
        mode = self.owner.mode
        if mode != "apply":
            for rows in self._used_part(x).split(ROWS, dim=2):
                self._add(rows)
        if mode == "estimate":
            self.update()
        each = self.module.num_channels // self.module.num_groups
        mean, variance = (value.float().repeat_interleave(each) for value in (self.mean, self.variance))
        weight, bias = (None if p is None else p.float() for p in (self.module.weight, self.module.bias))
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=self.module.eps)

    def _used_part(self, x: Tensor) -> Tensor:
        """The pixels of (B, C, H, W), or of (B, C, H·W) as attention passes them, that lie inside."""
        height, width = self.owner.shape
        scale = math.sqrt(math.prod(x.shape[2:]) / (height * width))
        x = x.unflatten(2, (round(height * scale), -1)) if x.ndim == 3 else x
        rows, columns = (
            slice(*(None if end is None else round(end * scale) for end in (part.start, part.stop)))
            for part in self.owner.inside
        )
        return x[..., rows, columns]

    def _add(self, x: Tensor) -> None:
        """Joins the moments of (B, C, H, W) to those measured so far (Chan et al.), in float64."""
        groups = self.module.num_groups
        x = x.float().permute(0, 2, 3, 1).flatten(0, 2)  # windows are channels-last: sums down a column are 3x as fast
        means = x.mean(dim=0)
        variances = (x - means).square_().mean(dim=0)
        means, variances = means.double().view(groups, -1), variances.double().view(groups, -1)
        mean = means.mean(dim=1)
        variance = (variances + (means - mean[:, None]).square()).mean(dim=1)
        count = x.numel() // groups
        share = count / (self.count + count)
        delta = mean - self.next_mean
        self.squares = self.squares + variance * count + delta.square() * (self.count * share)
        self.next_mean, self.count = self.next_mean + delta * share, self.count + count

    def update(self) -> float:
        mean, variance = self.next_mean, self.squares / self.count
        change = math.inf
        if self.mean.numel():
            deviation = (self.variance + self.module.eps).sqrt()
            moved = torch.maximum(
                (mean - self.mean).abs() / deviation, ((variance + self.module.eps).sqrt() / deviation - 1).abs()
            )
            change = float(moved.max())
        self.mean, self.variance = mean, variance
        self._restart()
        return change
