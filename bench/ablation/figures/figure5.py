"""Figure 5: the prediction error of VSD, ψ(ẑ_t) − φ(ẑ_t), over t and training, and where it lies in both stages.

The paper splits sampling in two: stage 1, far from the data, where low frequencies are restored and the two predictions
agree; and stage 2, near the data, where details are missing and they diverge. For a flow the error of noise predictions
is (1 − σ) times that of velocities, so the form decides part of what is seen: both are drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

from bench.ablation.figures.points import are_points, window, xy
from bench.ablation.figures.stage import Stage, Subject
from bench.ablation.figures.style import ERRORS, MOMENTS, drawing, no_ticks, save, show_picture
from tsd.algorithm.dasm import Predict
from tsd.algorithm.objective import in_residual_form, vsd_gradient
from tsd.config import Residual
from tsd.errors import UserError
from tsd.model.process import NoiseProcess

TIMES = tuple(range(50, 951, 50))
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
STAGES = {"stage 1": 800, "stage 2": 150}
"""The times at which the errors' places are drawn: far from the data, and near."""
FORMS: dict[Residual, str] = {
    "epsilon": r"$\|\epsilon_\psi(\hat z_t) - \epsilon_\phi(\hat z_t)\|_{rms}$",
    "velocity": r"$\|v_\psi(\hat z_t) - v_\phi(\hat z_t)\|_{rms}$",
}
MOST_IMAGES = 3


@dataclass(frozen=True)
class ErrorMap:
    """Where the error lies: (B, h, w), root mean squares over channels, of the first seed's last moment."""

    name: str
    t: float
    error: Tensor
    stage: Stage


@torch.no_grad()
def prediction_error(
    process: NoiseProcess, teacher: Predict, critic: Predict, z_hat: Tensor, noise: Tensor, t: Tensor, form: Residual
) -> Tensor:
    """ψ(ẑ_t) − φ(ẑ_t), Eq. 3 without its weight, (B, C, h, w), as noise predictions or as the networks' own."""
    rows = torch.arange(len(t))
    z_hat_t = process.add_noise(z_hat, noise, t)
    predictions = (teacher(z_hat_t, t, rows), critic(z_hat_t, t, rows))
    psi, phi = (in_residual_form(process, prediction, z_hat_t, t, form) for prediction in predictions)
    return vsd_gradient(psi, phi)


def measure(
    subject: Subject, seeds: Sequence[int], progress: Callable[[str], None]
) -> tuple[pd.DataFrame, list[ErrorMap]]:
    """One row for each seed, moment, time and form; and the maps of both stages.

    Raises:
        UserError: the subject has no critic.
    """
    rows, maps = [], []
    moments = subject.moments(FRACTIONS)
    for seed in seeds:
        for stage, fraction in zip(subject.stages({}, seed, moments), moments, strict=True):
            progress(f"seed {seed}, step {stage.step}")
            for t in TIMES:
                for form in FORMS:
                    rms = _error(stage, t, form).square().mean().sqrt().item()
                    where = {"seed": seed, "fraction": fraction, "step": stage.step, "t": t}
                    rows.append({**where, "form": form, "error_rms": rms, "samples": len(stage.z)})
            if seed == seeds[0] and fraction == moments[-1]:
                maps = [
                    ErrorMap(name, t, _error(stage, t, "epsilon").square().mean(dim=1).sqrt(), stage)
                    for name, t in STAGES.items()
                ]
    return pd.DataFrame(rows), maps


def _error(stage: Stage, t: float, form: Residual) -> Tensor:
    if stage.critic is None:
        raise UserError(
            "figure 5 needs the critic, and a finished student has none; give the run's folder as --student"
        )
    return prediction_error(
        stage.process, stage.teacher, stage.critic, stage.z_hat, stage.noise(t), stage.times(t), form
    )


def draw(measured: tuple[pd.DataFrame, list[ErrorMap]], folder: Path) -> list[Path]:
    """The error over t in both forms, then the maps of the two stages, which share their colours."""
    numbers, maps = measured
    images = maps[0].stage.images
    with drawing(12.4, 3.3) as figure:
        halves = figure.add_gridspec(1, 2, width_ratios=(6.4, 6))
        curves, pictures = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
        for axis, (form, label) in zip(curves.subplots(1, 2), FORMS.items(), strict=True):
            for fraction in sorted(set(numbers.fraction)):
                moment = numbers.query(f"form == {form!r} and fraction == {fraction}")
                by_t = moment.groupby("t").error_rms
                colour = matplotlib.colormaps[MOMENTS](0.85 * fraction)
                axis.plot(by_t.mean(), color=colour, label=f"step {moment['step'].iloc[0]}")
                axis.fill_between(by_t.mean().index, by_t.min(), by_t.max(), color=colour, alpha=0.15, lw=0)
            for name, t in STAGES.items():
                axis.axvline(t, color="#cccccc", lw=0.8, zorder=0)
                axis.annotate(name, (t, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7.5)
            axis.set_xlabel("$t$")
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
        curves.axes[0].legend(loc="best")
        top = float(np.quantile(torch.cat([found.error.flatten() for found in maps]).cpu().numpy(), 0.99))
        scale = Normalize(0, top)
        count = 1 if images is None else min(MOST_IMAGES, len(maps[0].error))
        axes = pictures.subplots(count, len(maps) + (images is not None), squeeze=False)
        if images is not None:
            shown = images(maps[0].stage.z_hat[:count]).cpu()
            for row in range(count):
                show_picture(axes[row, 0], shown[row])
            axes[0, 0].set_title(r"$\hat z$")
        for column, found in enumerate(maps, start=images is not None):
            axes[0, column].set_title(f"{found.name}, $t$ = {found.t:g}")
            for row in range(count):
                _draw_map(axes[row, column], found, row, scale)
        colours = ScalarMappable(scale, ERRORS)
        pictures.colorbar(colours, ax=axes, label=r"$|\epsilon_\psi - \epsilon_\phi|$ at $\hat z_t$", extend="max")
        return save(figure, numbers, folder, "figure5")


def _draw_map(axis: Axes, found: ErrorMap, row: int, scale: Normalize) -> None:
    latents = found.stage.z_hat
    if are_points(latents):
        order = found.error.flatten().argsort()  # the largest errors on top
        x, y = xy(latents[order])
        axis.scatter(*xy(found.stage.z), s=2, color="#dddddd", lw=0)
        axis.scatter(x, y, s=7, c=found.error.flatten()[order].cpu(), cmap=ERRORS, norm=scale, lw=0)
        window(axis)
        return
    axis.imshow(found.error[row].cpu(), cmap=ERRORS, norm=scale, interpolation="nearest")
    no_ticks(axis)
