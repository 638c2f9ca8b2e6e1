"""How figures look, and how they are written: PNG, SVG and the numbers as CSV, the same bytes from the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tsd.files import atomic_path

# Okabe and Ito's colours, which the colour-blind tell apart; a role has one colour in all figures.
STUDENT = "#0072B2"
TRUTH = "#009E73"
DEGRADED = "#999999"
TEACHER = "#E69F00"
CRITIC = "#CC79A7"
GRADIENT = "#D55E00"
INK = "#222222"
MOMENTS = "viridis"
"""Colour map of moments of a training, early to late; perceptually even, and readable in grey."""
ERRORS = "inferno"

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "tsd-sr-bench",
    "figure.constrained_layout.use": True,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of this size in inches; the style holds inside the block, so save it there."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height))


def save(figure: Figure, numbers: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Writes NAME.png, NAME.svg and NAME.csv atomically, and returns their paths.

    Figures are drawn by Agg, without a display.
    """
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path, undated in zip(paths[:2], ("Software", "Date"), strict=True):
        with atomic_path(path) as temporary:
            figure.savefig(temporary, facecolor="white", dpi=160, metadata={undated: None})
    with atomic_path(paths[2]) as temporary:
        numbers.to_csv(temporary, index=False, float_format="%.6g")
    return paths


def show_picture(axis: Axes, image: Tensor) -> None:
    """Draws an image (1 or 3, H, W) in [0, 1], pixels as pixels, on an axis without ticks."""
    axis.imshow(image.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    no_ticks(axis)


def no_ticks(axis: Axes) -> None:
    """An axis for a picture: neither ticks nor frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
