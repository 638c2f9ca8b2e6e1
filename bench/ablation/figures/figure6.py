"""Figure 6: the method in one picture, where latents are points of the plane.

Six panels: the points; the fields of teacher and critic at one time, as directions to the data that each believes in;
their difference, which is VSD; TSD for one pair; and the path of one pair down the trajectory (Eq. 6), beside the
points that noising ẑ anew would give. Gradients are drawn as the student follows them: downhill.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from bench.ablation.figures.points import EXTENT, are_points, window, xy
from bench.ablation.figures.stage import Stage, Subject
from bench.ablation.figures.style import (
    CRITIC,
    DEGRADED,
    GRADIENT,
    STUDENT,
    TEACHER,
    TRUTH,
    drawing,
    save,
)
from tsd.algorithm.dasm import Point, Predict, trajectory
from tsd.algorithm.objective import in_residual_form, tsd_gradient, vsd_gradient
from tsd.config import Residual
from tsd.errors import UserError

MOMENT = 0.3
"""Early enough in training for the student to be wrong, late enough for the critic to know how."""
T_FIELD = 400
LAMBDA = 0.7
RESIDUAL: Residual = "epsilon"
"""The equations as printed; with it TSM points to z."""
T_START, POINTS, STRIDE = 450, 5, 100
"""Of the path: longer strides than in training, so that they can be seen."""
FIELD, ARROWS = 61, 19
"""Positions along a side of the window: of a field's grid, and of the grid of single arrows."""


@dataclass(frozen=True)
class Pair:
    """One sample of the batch: the trajectory's points, with ε and its latents."""

    points: list[Point]
    naive: list[Tensor]
    descent: list[Tensor]
    z_hat: Tensor
    z: Tensor


@dataclass(frozen=True)
class Fields:
    """The moment, the fields at T_FIELD on a square grid of latents, and one pair's path.

    Attributes:
        grid, arrows: latents on grids of FIELD² and ARROWS² positions, (n, 2, 1, 1).
        to_data: x0 − x_t on `grid` by teacher and critic.
        vsd, tsd: descent directions −g on `arrows`, without w(t); TSD with the z_t of `pair`.
        z_hat_t: the student's noised samples.
        tsd_at: z_t that the field of TSD is drawn for, (1, 2, 1, 1).
    """

    stage: Stage
    grid: Tensor
    arrows: Tensor
    to_data: dict[str, Tensor]
    vsd: Tensor
    tsd: Tensor
    z_hat_t: Tensor
    tsd_at: Tensor
    pair: Pair


def measure(subject: Subject, seeds: Sequence[int], progress: Callable[[str], None]) -> tuple[pd.DataFrame, Fields]:
    """The fields and the path of the first seed, and the path's points as numbers.

    Raises:
        UserError: the latents are not points of the plane, or there is no critic.
    """
    (stage,) = subject.stages({}, seeds[0], [MOMENT])
    progress(f"seed {seeds[0]}, step {stage.step}")
    if not are_points(stage.z):
        shape = "x".join(str(size) for size in stage.z.shape[1:])
        raise UserError(f"figure 6 is drawn in the plane, and latents of {subject.name} are {shape}; use mixture")
    fields = compute(stage)
    return pd.DataFrame(_rows(fields.pair)), fields


@torch.no_grad()
def compute(stage: Stage) -> Fields:
    """All that is drawn of a stage; see `Fields`."""
    if stage.critic is None:
        raise UserError("figure 6 needs the critic, and a finished student has none")
    process = stage.process
    grid, arrows = square(FIELD), square(ARROWS)
    predicts = {"teacher": stage.teacher, "critic": stage.critic}

    def at(predict: Predict, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction in the residual's form, and the clean latent that it implies."""
        t = torch.full((len(latents),), float(T_FIELD))
        prediction = predict(latents, t, torch.zeros(len(latents), dtype=torch.long))
        return in_residual_form(process, prediction, latents, t, RESIDUAL), process.x0(latents, prediction, t)

    to_data = {name: at(predict, grid)[1] - grid for name, predict in predicts.items()}
    psi, phi = (at(predict, arrows)[0] for predict in predicts.values())
    noise, t = stage.noise(T_FIELD), stage.times(T_FIELD)
    chosen = choose(stage)
    z_t = process.add_noise(stage.z, noise, t)[chosen : chosen + 1]
    psi_z, _ = at(stage.teacher, z_t)
    return Fields(
        stage,
        grid,
        arrows,
        to_data,
        vsd=-vsd_gradient(psi, phi),
        tsd=-tsd_gradient(psi, psi_z.expand_as(psi), phi, LAMBDA),
        z_hat_t=process.add_noise(stage.z_hat, noise, t),
        tsd_at=z_t,
        pair=path_of(stage, chosen),
    )


def square(count: int) -> Tensor:
    """(count², 2, 1, 1) latents on a grid over the window."""
    axis = torch.linspace(-EXTENT, EXTENT, count)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)[:, :, None, None]


def choose(stage: Stage) -> int:
    """The sample whose path is drawn: ẑ is as far from z as for most of those that the student got wrong.

    Among samples whose ẑ lies between the modes: the one whose distance |ẑ − z| is nearest to 1.8.
    """
    distance = (stage.z_hat - stage.z).flatten(1).norm(dim=1)
    return int((distance - 1.8).abs().argmin())


@torch.no_grad()
def path_of(stage: Stage, index: int) -> Pair:
    """The trajectory of one sample by `tsd.algorithm`, what noising ẑ anew gives, and −TSD at each point."""
    if stage.critic is None:
        raise UserError("figure 6 needs the critic, and a finished student has none")
    z_hat, z = stage.z_hat[index : index + 1], stage.z[index : index + 1]
    noise = stage.noise(T_START)[index : index + 1]
    start = torch.full((1,), float(T_START))
    process = stage.process
    points = list(
        trajectory(process, stage.teacher, stage.critic, z_hat, z, noise, start, points=POINTS, stride=STRIDE)
    )
    descent = []
    for point in points:
        if point.teacher_z is None or point.critic_hat is None:
            raise AssertionError("without λ, a trajectory evaluates every prediction")
        places = ((point.teacher_hat, point.z_hat_t), (point.teacher_z, point.z_t), (point.critic_hat, point.z_hat_t))
        forms = [in_residual_form(process, prediction, x_t, point.t, RESIDUAL) for prediction, x_t in places]
        descent.append(-tsd_gradient(*forms, LAMBDA))
    naive = [process.add_noise(z_hat, noise, point.t) for point in points]
    return Pair(points, naive, descent, z_hat, z)


def _rows(pair: Pair) -> list[dict[str, float]]:
    rows = []
    for point, naive, descent in zip(pair.points, pair.naive, pair.descent, strict=True):
        row = {"t": point.t.item()}
        latents = {"z_hat_t": point.z_hat_t, "z_t": point.z_t, "renoised": naive, "minus_tsd": descent}
        for name, latent in latents.items():
            row |= dict(zip((f"{name}_x", f"{name}_y"), latent.flatten().tolist(), strict=True))
        rows.append(row)
    return rows


def draw(measured: tuple[pd.DataFrame, Fields], folder: Path) -> list[Path]:
    """The six panels."""
    numbers, fields = measured
    with drawing(10.2, 7.3) as figure:
        (points, teacher, critic), (vsd, tsd, path) = figure.subplots(2, 3)
        _draw_points(points, fields)
        _draw_field(teacher, fields, "teacher", TEACHER, r"b  teacher $\psi$: to the data, by the prior")
        _draw_field(critic, fields, "critic", CRITIC, r"c  critic $\phi$: to the student's outputs")
        _draw_arrows(vsd, fields, fields.vsd)
        vsd.set_title(r"d  VSD: $\epsilon_\phi(\hat z_t) - \epsilon_\psi(\hat z_t)$", loc="left")
        _draw_arrows(tsd, fields, fields.tsd)
        tsd.plot(*xy(fields.tsd_at), "*", color=TRUTH, markersize=15, mec="white", mew=1.2, zorder=6)
        tsd.annotate(
            "$z_t$", xy(fields.tsd_at)[:, 0], xytext=(8, 6), textcoords="offset points", path_effects=HALO, zorder=7
        )
        tsd.set_title(r"e  TSD for one $z_t$, $\lambda$ = " + f"{LAMBDA:g}", loc="left")
        _draw_path(path, fields.pair)
        return save(figure, numbers, folder, "figure6")


IN_PLACE = {"angles": "xy", "scale_units": "xy", "scale": 1}
"""Arrows as long as what they stand for."""
HALO = [withStroke(linewidth=2.5, foreground="white")]


def _draw_points(axis: Axes, fields: Fields) -> None:
    stage, shown = fields.stage, slice(0, 300)
    axis.scatter(*xy(stage.z[shown]), s=7, color=TRUTH, lw=0)
    axis.scatter(*xy(stage.z_L[shown]), s=5, color=DEGRADED, lw=0, alpha=0.7)
    start, end = xy(stage.z_L[:60]), xy(stage.z_hat[:60])
    axis.quiver(*start, *(end - start), **IN_PLACE, width=0.0028, headwidth=4, color="#aaaaaa", zorder=1)
    axis.scatter(*xy(stage.z_hat[shown]), s=8, color=STUDENT, lw=0)
    window(axis)
    axis.set_title(f"a  the points, step {stage.step}", loc="left")
    names = ((TRUTH, "$z$, the prior"), (DEGRADED, "$z_L$, degraded"), (STUDENT, r"$\hat z$, the student's"))
    handles = [Line2D([], [], marker="o", ls="", ms=4, color=colour, label=label) for colour, label in names]
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.03, 1.0), handletextpad=0.1, borderpad=0.1)


def _draw_field(axis: Axes, fields: Fields, name: str, colour: str, title: str) -> None:
    """Streamlines over where the field leads: the clean latents that it predicts for the student's noised samples."""
    x = np.linspace(-EXTENT, EXTENT, FIELD)
    u, v = (part.reshape(FIELD, FIELD) for part in xy(fields.to_data[name]))
    speed = np.hypot(u, v)
    axis.scatter(*xy(fields.z_hat_t), s=3, color=STUDENT, lw=0, alpha=0.25, zorder=1)
    axis.streamplot(
        x, x, u, v, color=colour, density=1.25, linewidth=0.4 + 1.5 * speed / speed.max(), arrowsize=0.8, zorder=2
    )
    target = fields.stage.z if name == "teacher" else fields.stage.z_hat
    mark = TRUTH if name == "teacher" else STUDENT
    axis.scatter(*xy(target[:300]), s=6, color=mark, lw=0, zorder=3)
    window(axis)
    axis.set_title(title, loc="left")


def _draw_arrows(axis: Axes, fields: Fields, descent: Tensor) -> None:
    """A gradient field where the student's noised samples are; elsewhere no gradient is ever taken."""
    cloud = fields.z_hat_t.flatten(1)
    near = torch.cdist(fields.arrows.flatten(1), cloud).topk(6, largest=False).values[:, -1] < 0.75
    u, v = xy(descent[near])
    size = np.hypot(u, v)
    length = np.minimum(size, np.quantile(size, 0.95)) / size
    axis.scatter(*xy(fields.stage.z[:300]), s=6, color=TRUTH, lw=0, alpha=0.5)
    axis.scatter(*xy(fields.z_hat_t), s=3, color=STUDENT, lw=0, alpha=0.3)
    longest = float(np.quantile(size, 0.95)) / 0.9
    axis.quiver(
        *xy(fields.arrows[near]), u * length, v * length, color=GRADIENT, angles="xy", scale_units="xy", scale=longest,
        width=0.0048, headwidth=4, headlength=4.5, zorder=4, pivot="tail",
    )  # fmt: skip
    window(axis)


def _draw_path(axis: Axes, pair: Pair) -> None:
    hats, trues, naives = (
        np.concatenate([xy(latent) for latent in latents], axis=1)
        for latents in ([p.z_hat_t for p in pair.points], [p.z_t for p in pair.points], pair.naive)
    )
    everything = np.concatenate([hats, trues, naives, xy(pair.z_hat), xy(pair.z)], axis=1)
    axis.plot(*naives, ls=":", lw=1, color=DEGRADED, zorder=1)
    axis.scatter(*naives[:, 1:], s=34, facecolors="white", edgecolors=DEGRADED, linewidths=1.2, zorder=2)
    for track, colour in ((hats, STUDENT), (trues, TRUTH)):
        steps = np.diff(track, axis=1)
        axis.quiver(*track[:, :-1], *steps, angles="xy", scale_units="xy", scale=1, color=colour, width=0.006, zorder=3)
        axis.scatter(*track, s=34, color=colour, edgecolors="white", linewidths=0.9, zorder=4)
    arrows = np.concatenate([xy(descent) for descent in pair.descent], axis=1)
    scale = np.hypot(*arrows).max() / (0.28 * _span(everything))
    axis.quiver(
        *hats,
        *arrows,
        angles="xy",
        scale_units="xy",
        scale=scale,
        color=GRADIENT,
        width=0.0075,
        headwidth=3.6,
        zorder=5,
    )
    for latent, colour, label in ((pair.z_hat, STUDENT, r"$\hat z$"), (pair.z, TRUTH, "$z$")):
        axis.scatter(*xy(latent), s=120, marker="*", color=colour, edgecolors="white", linewidths=1, zorder=6)
        axis.annotate(label, xy(latent)[:, 0], xytext=(8, -3), textcoords="offset points", path_effects=HALO, zorder=7)
    for track, label in ((hats, r"$\hat z_t$"), (trues, "$z_t$")):
        axis.annotate(
            label, track[:, 0], xytext=(-4, 8), textcoords="offset points", ha="right", path_effects=HALO, zorder=7
        )
    centre = (everything.max(axis=1) + everything.min(axis=1)) / 2
    window(axis, 0.62 * _span(everything), (float(centre[0]), float(centre[1])))
    end = T_START - (POINTS - 1) * STRIDE
    axis.set_title(f"f  one trajectory, $t$ = {T_START} to {end}", loc="left")
    handles = [
        Line2D([], [], marker="o", color=STUDENT, ms=5, label=r"$\hat z_t$, moved by the critic"),
        Line2D([], [], marker="o", color=TRUTH, ms=5, label="$z_t$, moved by the teacher"),
        Line2D([], [], marker="o", color=DEGRADED, mfc="white", ls=":", ms=5, label=r"$\hat z$ noised anew"),
        Line2D([], [], color=GRADIENT, lw=2, label="TSD, downhill"),
    ]
    axis.legend(handles=handles, loc="best", fontsize=7.5, handlelength=1.6)


def _span(points: NDArray[np.float32]) -> float:
    return float((points.max(axis=1) - points.min(axis=1)).max())
