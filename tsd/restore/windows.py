"""Windows over a large image: where they lie, how their results join, and how far around itself a network looks.

Positions are counted along one side, in any unit. A network sees a window together with a halo as wide as its
receptive field, so that what lies inside is computed as in the whole image; the halo is cut off. Windows are all of one
size and flush with the edges. Where a network looks farther than any halo (attention), neighbours are cross-faded.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from tsd.fast.upsampling import FastUpsample2D

BAND = 256
"""Most rows that are handed on together."""


@dataclass(frozen=True)
class Span:
    """One window along one side.

    Attributes:
        start, stop: what the network sees.
        weights: (stop − start,) float32, the share of this window in each position's result: 0 in the halo.
    """

    start: int
    stop: int
    weights: Tensor

    @property
    def first(self) -> int:
        """The first position with a share above 0."""
        return self.start + int(self.weights.nonzero()[0])

    @property
    def core(self) -> slice:
        """Where this window has the largest share, counted from its start: cores are a partition of the whole."""
        (positions,) = (self.weights > 0.5).nonzero(as_tuple=True)
        return slice(int(positions[0]), int(positions[-1]) + 1)


def spans(length: int, window: int, halo: int, fade: int = 0) -> list[Span]:
    """Windows that cover `length`; the shares of all windows sum to 1 at every position.

    Args:
        window: their largest side; one window covers everything where the length is no more.
        halo: positions at each inner side whose result is not used.
        fade: positions over which neighbours are cross-faded.

    Raises:
        ValueError: the window is no larger than its halos and fades.
    """
    if length <= window:
        return [Span(0, length, torch.ones(length))]
    overlap = 2 * halo + fade
    if window <= overlap:
        raise ValueError(f"the window is {window}; expected more than {overlap}, its two halos and the fade")
    count = math.ceil((length - overlap) / (window - overlap))
    window = math.ceil((length - overlap) / count) + overlap  # as many, and none larger than it must be
    starts = [index * (window - overlap) for index in range(count - 1)] + [length - window]
    rises = []
    for before, after in pairwise(starts):
        middle = (after + before + window) // 2  # of the overlap, which is the widest between the last two
        position = torch.arange(length) + 0.5
        rises.append(((position - middle) / max(fade, 1e-6) + 0.5).clamp(0, 1))
    ones, zeros = torch.ones(length), torch.zeros(length)
    weights = [rise - following for rise, following in zip([ones, *rises], [*rises, zeros], strict=True)]
    return [
        Span(start, start + window, weight[start : start + window])
        for start, weight in zip(starts, weights, strict=True)
    ]


def scaled(span: Span, factor: int) -> Span:
    """The same window counted in units a whole `factor` times as small."""
    weights = span.weights.repeat_interleave(factor)
    return Span(factor * span.start, factor * span.stop, weights)


def joined_rows(
    compute: Callable[[Span, Span], Tensor],
    rows: Sequence[Span],
    columns: Sequence[Span],
    weights: Callable[[Span, Span], Tensor] = lambda row, column: torch.outer(row.weights, column.weights),
) -> Iterator[tuple[int, Tensor]]:
    """The joined results of all windows from top to bottom, as (first row, (C, n, width) float32).

    No more rows are held than one row of windows has, and no more than `BAND` are handed on together.

    Args:
        compute: result of a window, (1, C, height, width) of it.
        weights: (height, width) of a window, its share or any weight above 0; sums are divided by the sum of weights.
    """
    height, width = rows[-1].stop, columns[-1].stop
    total, weight_sum, top = torch.empty(0), torch.empty(0), 0
    for number, row in enumerate(rows):
        for column in columns:
            result = compute(row, column)[0].float()
            share = weights(row, column).to(result.device)
            if total.numel() == 0:
                total = torch.zeros((result.shape[0], 0, width), device=result.device)
                weight_sum = torch.zeros((0, width), device=result.device)
            missing = row.stop - top - total.shape[1]
            if missing > 0:
                total = torch.cat([total, total.new_zeros((total.shape[0], missing, width))], dim=1)
                weight_sum = torch.cat([weight_sum, weight_sum.new_zeros((missing, width))])
            skipped = max(top - row.start, 0)  # rows of the halo that are handed on already; their share is 0
            result, share = result[:, skipped:], share[skipped:]
            place = (slice(row.start + skipped - top, row.stop - top), slice(column.start, column.stop))
            total[(slice(None), *place)] += result * share
            weight_sum[place] += share
        done = (rows[number + 1].first if number + 1 < len(rows) else height) - top
        for first in range(0, done, BAND):
            part = slice(first, min(first + BAND, done))
            yield top + first, total[:, part] / weight_sum[part]
        total, weight_sum, top = total[:, done:].clone(), weight_sum[done:].clone(), top + done


def receptive_field(stages: Iterable[nn.Module]) -> int:
    """How many input positions away, along one side, an output of a chain of convolutions still depends on.

    Args:
        stages: the modules in the order in which they are passed; each registers its own layers in that order.

    Attention, which reaches everywhere, does not count.
    """
    reach, size = 0.0, 1.0  # `size`: input positions covered by one position of the current layer's image
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Upsample | Upsample2D | FastUpsample2D):
                size /= 2
                reach += size  # nearest upsampling moves centres by half a position
            elif isinstance(module, nn.Conv2d):
                steps = module.stride[0] > 1
                reach += size * ((module.kernel_size[0] - 1) if steps else module.kernel_size[0] // 2)
                size *= module.stride[0]
            elif isinstance(module, Downsample2D) and not module.use_conv:
                size *= 2
    return math.ceil(reach)
