"""Latents of two values, drawn as points of the plane."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from bench.ablation.figures.style import no_ticks

EXTENT = 5.4
"""Half the width of the window, in latent units; the prior's circle has radius 4."""


def are_points(latents: Tensor) -> bool:
    return latents.shape[1:] == (2, 1, 1)


def xy(latents: Tensor) -> NDArray[np.float32]:
    """(B, 2, 1, 1) → two rows, x and y."""
    return latents.detach().flatten(1).T.cpu().numpy()


def window(axis: Axes, extent: float = EXTENT, centre: tuple[float, float] = (0, 0)) -> None:
    """A square window with equal units and no ticks: the plane has no unit worth reading."""
    axis.set_aspect("equal")
    axis.set_xlim(centre[0] - extent, centre[0] + extent)
    axis.set_ylim(centre[1] - extent, centre[1] + extent)
    no_ticks(axis)
