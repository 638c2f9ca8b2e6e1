"""Figure 4: what the strategies do to the same inputs: VSD alone, MSE alone, ours.

The paper shows that VSD alone invents textures and that MSE alone smooths. Of points the former reads: outputs leave
their own truth for a mode that is not theirs; the latter: outputs lie between the modes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from torch import Tensor

from bench.ablation.domain import Measure
from bench.ablation.figures.points import are_points, window, xy
from bench.ablation.figures.stage import Stage, Strategy, Subject
from bench.ablation.figures.style import DEGRADED, INK, STUDENT, TRUTH, drawing, save, show_picture

MOST_IMAGES = 4


STRATEGIES = (
    Strategy("VSD alone", {"lambda_tsd": 1.0, "point_weights": [1.0], "latent_mse": 0.0}),
    Strategy("MSE alone", {"gamma2": 0.0}),
    Strategy("VSD and MSE", {"lambda_tsd": 1.0, "point_weights": [1.0]}),
    Strategy("ours", {}),
)


def measure(
    subject: Subject, seeds: Sequence[int], progress: Callable[[str], None]
) -> tuple[pd.DataFrame, list[tuple[Strategy, Stage]]]:
    """The last moment of every strategy: scores of all seeds, and the stages of the first."""
    rows, shown = [], []
    for seed in seeds:
        for strategy in subject.strategies(STRATEGIES):
            progress(f"seed {seed}, {strategy.label}")
            (stage,) = subject.stages(strategy.overrides, seed, subject.moments([1.0]))
            scores = {measure.title: value for measure, value in stage.scores.items()}
            rows.append({"strategy": strategy.label, "seed": seed, "step": stage.step, **scores})
            if seed == seeds[0]:
                shown.append((strategy, stage))
    return pd.DataFrame(rows), shown


def draw(measured: tuple[pd.DataFrame, list[tuple[Strategy, Stage]]], folder: Path) -> list[Path]:
    """Input, one column for each strategy, and the truth; scores of the first seed below."""
    numbers, shown = measured
    first = shown[0][1]
    columns: list[tuple[str, Tensor, Stage]] = [(r"input $z_L$", first.z_L, first)]
    columns += [(strategy.label, stage.z_hat, stage) for strategy, stage in shown]
    columns += [("truth $z$", first.z, first)]
    count = 1 if first.images is None else min(MOST_IMAGES, len(first.z))
    with drawing(2.05 * len(columns), 0.55 + 2.05 * count if first.images is None else 0.75 + 1.4 * count) as figure:
        axes = figure.subplots(count, len(columns), squeeze=False)
        for column, (label, latents, stage) in enumerate(columns):
            axes[0, column].set_title(label)
            for row in range(count):
                _draw_one(axes[row, column], latents, stage, row, column)
            if 0 < column < len(columns) - 1:
                scores = "\n".join(_written(measure, value) for measure, value in stage.scores.items())
                axes[-1, column].annotate(
                    scores, (0.5, -0.02), xycoords="axes fraction", ha="center", va="top", fontsize=7.5, color=INK
                )
        return save(figure, numbers, folder, "figure4")


def _written(measure: Measure, value: float) -> str:
    """Such as "PSNR 19.435 dB"."""
    return f"{measure.label} {value:.{measure.digits}f} {measure.unit}".rstrip()


def _draw_one(axis: Axes, latents: Tensor, stage: Stage, row: int, column: int) -> None:
    if are_points(latents):
        colour = DEGRADED if latents is stage.z_L else TRUTH if latents is stage.z else STUDENT
        axis.scatter(*xy(stage.z), s=2, color="#e3e3e3", lw=0)
        axis.scatter(*xy(latents), s=5, color=colour, lw=0, alpha=0.7)
        window(axis)
    elif stage.images is not None:
        show_picture(axis, stage.images(latents[row : row + 1]).cpu()[0])
