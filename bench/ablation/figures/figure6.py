"""Figure 6: the method in one picture, where latents are points of the plane.

Six panels: the points; the fields −ε of teacher and critic at one time, which lead to where each expects noised
latents; their difference, which is VSD; TSD for one pair; and the path of one pair down the trajectory (Eq. 6), beside
the points that noising ẑ anew would give. Gradients are drawn as the student follows them: downhill.
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

MOMENT = 0.5
OVERRIDES = {"critic_steps": 5}
"""A critic that follows the student closely, since the picture is of what the method means."""
T_FIELD = 200
LAMBDA = 0.7
RESIDUAL: Residual = "epsilon"
"""The equations as printed; with it TSM points to z."""
T_START, POINTS, STRIDE = 350, 5, 75
"""Of the path: longer strides than in training, so that they can be seen."""
FIELD, ARROWS = 121, 29
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
        downhill: −ε on `grid` by teacher and critic, the scores of noised data and noised outputs times σ.
        vsd, tsd: descent directions −g on `arrows`, without w(t); TSD with the z_t of `pair`.
        z_t, z_hat_t: the noised samples of data and student.
        tsd_at: z_t that the field of TSD is drawn for, (1, 2, 1, 1).
    """

    stage: Stage
    grid: Tensor
    arrows: Tensor
    downhill: dict[str, Tensor]
    vsd: Tensor
    tsd: Tensor
    z_t: Tensor
    z_hat_t: Tensor
    tsd_at: Tensor
    pair: Pair


def measure(subject: Subject, seeds: Sequence[int], progress: Callable[[str], None]) -> tuple[pd.DataFrame, Fields]:
    """The fields and the path of the first seed, and the path's points as numbers.

    Raises:
        UserError: the latents are not points of the plane, or there is no critic.
    """
    (stage,) = subject.stages(OVERRIDES, seeds[0], [MOMENT])
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

    def epsilon(predict: Predict, latents: Tensor) -> Tensor:
        t = torch.full((len(latents),), float(T_FIELD))
        prediction = predict(latents, t, torch.zeros(len(latents), dtype=torch.long))
        return in_residual_form(process, prediction, latents, t, RESIDUAL)

    downhill = {name: -epsilon(predict, grid) for name, predict in predicts.items()}
    psi, phi = (epsilon(predict, arrows) for predict in predicts.values())
    noise, t = stage.noise(T_FIELD), stage.times(T_FIELD)
    chosen = choose(stage)
    z_t = process.add_noise(stage.z, noise, t)
    tsd_at = z_t[chosen : chosen + 1]
    psi_z = epsilon(stage.teacher, tsd_at)
    return Fields(
        stage,
        grid,
        arrows,
        downhill,
        vsd=-vsd_gradient(psi, phi),
        tsd=-tsd_gradient(psi, psi_z.expand_as(psi), phi, LAMBDA),
        z_t=z_t,
        z_hat_t=process.add_noise(stage.z_hat, noise, t),
        tsd_at=tsd_at,
        pair=path_of(stage, chosen),
    )


def square(count: int) -> Tensor:
    """(count², 2, 1, 1) latents on a grid over the window."""
    axis = torch.linspace(-EXTENT, EXTENT, count)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)[:, :, None, None]


def choose(stage: Stage) -> int:
    """The sample whose path is drawn: of the outputs that are like many others, the one farthest from all data."""
    z_hat, z = stage.z_hat.flatten(1), stage.z.flatten(1)
    crowding = torch.cdist(z_hat, z_hat).topk(12, largest=False).values[:, -1]
    to_data = torch.cdist(z_hat, z).amin(dim=1)
    return int(torch.where(crowding <= crowding.median(), to_data, 0).argmax())


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
        psi, psi_z, phi = (in_residual_form(process, prediction, x_t, point.t, RESIDUAL) for prediction, x_t in places)
        descent.append(-tsd_gradient(psi, psi_z, phi, LAMBDA))
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
    with drawing(10.2, 7.8) as figure:
        (points, teacher, critic), (vsd, tsd, path) = figure.subplots(2, 3)
        _draw_points(points, fields)
        to_data = rf"b  teacher: $-\epsilon_\psi$, to the data's $z_t$; $t$ = {T_FIELD}"
        to_outputs = r"c  critic: $-\epsilon_\phi$, to the student's $\hat z_t$"
        _draw_field(teacher, fields, "teacher", TEACHER, to_data)
        _draw_field(critic, fields, "critic", CRITIC, to_outputs)
        _draw_arrows(vsd, fields, fields.vsd)
        vsd.set_title(r"d  VSD: $\epsilon_\phi(\hat z_t) - \epsilon_\psi(\hat z_t)$", loc="left")
        _draw_arrows(tsd, fields, fields.tsd)
        tsd.plot(*xy(fields.tsd_at), "*", color=TRUTH, markersize=15, mec="white", mew=1.2, zorder=6)
        tsd.annotate(
            "$z_t$", _place(fields.tsd_at), xytext=(8, 6), textcoords="offset points", path_effects=HALO, zorder=7
        )
        tsd.set_title(r"e  TSD for one $z_t$, $\lambda$ = " + f"{LAMBDA:g}", loc="left")
        _draw_path(path, fields)
        return save(figure, numbers, folder, "figure6")


IN_PLACE = {"angles": "xy", "scale_units": "xy", "scale": 1}
"""Arrows as long as what they stand for."""
HALO = [withStroke(linewidth=2.5, foreground="white")]


def _draw_points(axis: Axes, fields: Fields) -> None:
    stage, shown = fields.stage, slice(0, 300)
    inside = (stage.z_L.flatten(1).abs() < EXTENT).all(dim=1)
    z, z_L, z_hat = (latents[inside] for latents in (stage.z, stage.z_L, stage.z_hat))
    axis.scatter(*xy(z[shown]), s=7, color=TRUTH, lw=0, zorder=2)
    axis.scatter(*xy(z_L[shown]), s=5, color=DEGRADED, lw=0, alpha=0.7)
    start, end = xy(z_L[:60]), xy(z_hat[:60])
    axis.quiver(*start, *(end - start), **IN_PLACE, width=0.0028, headwidth=4, color="#aaaaaa", zorder=1)
    axis.scatter(*xy(z_hat[shown]), s=8, color=STUDENT, lw=0, zorder=3)
    window(axis)
    axis.set_title(f"a  the points, step {stage.step}", loc="left")
    names = ((TRUTH, "$z$, the prior"), (DEGRADED, "$z_L$, degraded"), (STUDENT, r"$\hat z$, the student's"))
    handles = [Line2D([], [], marker="o", ls="", ms=4, color=colour, label=label) for colour, label in names]
    axis.legend(handles=handles, loc="center", handletextpad=0.1, frameon=True, framealpha=0.85, edgecolor="none")


def _draw_field(axis: Axes, fields: Fields, name: str, colour: str, title: str) -> None:
    """Streamlines over the samples that the network was trained on."""
    x = np.linspace(-EXTENT, EXTENT, FIELD)
    u, v = (part.reshape(FIELD, FIELD) for part in xy(fields.downhill[name]))
    speed = np.hypot(u, v)
    if name == "critic":  # what it says where it was never trained means nothing
        untrained = (_distance_to_samples(fields.grid, fields) > 1.1).reshape(FIELD, FIELD)
        u, v = (np.ma.masked_where(untrained, part) for part in (u, v))
    axis.streamplot(
        x, x, u, v, color=colour, density=1.5, linewidth=0.4 + 1.5 * speed / speed.max(), arrowsize=0.8, zorder=2
    )
    samples, mark = (fields.z_t, TRUTH) if name == "teacher" else (fields.z_hat_t, STUDENT)
    axis.scatter(*xy(samples), s=4, color=mark, lw=0, alpha=0.5, zorder=1)
    window(axis)
    axis.set_title(title, loc="left")


def _draw_arrows(axis: Axes, fields: Fields, descent: Tensor) -> None:
    """A gradient field where the student's noised samples are; elsewhere no gradient is ever taken."""
    near = torch.from_numpy(_distance_to_samples(fields.arrows, fields) < 0.4)
    u, v = xy(descent[near])
    size = np.hypot(u, v)
    length = np.minimum(size, np.quantile(size, 0.95)) / size
    axis.scatter(*xy(fields.z_t), s=4, color=TRUTH, lw=0, alpha=0.5)
    axis.scatter(*xy(fields.z_hat_t), s=4, color=STUDENT, lw=0, alpha=0.3)
    longest = float(np.quantile(size, 0.95)) / 0.9
    axis.quiver(
        *xy(fields.arrows[near]), u * length, v * length, color=GRADIENT, angles="xy", scale_units="xy", scale=longest,
        width=0.0034, headwidth=4, headlength=4.5, zorder=4, pivot="tail",
    )  # fmt: skip
    window(axis)


def _distance_to_samples(latents: Tensor, fields: Fields) -> NDArray[np.float32]:
    """(n,) from each of the latents to the sixth nearest of the student's noised samples."""
    distances = torch.cdist(latents.flatten(1), fields.z_hat_t.flatten(1))
    return distances.topk(6, largest=False).values[:, -1].numpy()


def _draw_path(axis: Axes, fields: Fields) -> None:
    pair = fields.pair
    for latents, colour in ((fields.stage.z, TRUTH), (fields.stage.z_hat, STUDENT)):
        axis.scatter(*xy(latents), s=6, color=colour, lw=0, alpha=0.25, zorder=0)
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
    scale = np.hypot(*arrows).max() / (0.2 * _span(everything))
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
        axis.annotate(label, _place(latent), xytext=(8, -3), textcoords="offset points", path_effects=HALO, zorder=7)
    for track, label in ((hats, r"$\hat z_t$"), (trues, "$z_t$")):
        place = (track[0, 0], track[1, 0])
        axis.annotate(label, place, xytext=(7, 4), textcoords="offset points", path_effects=HALO, zorder=7)
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
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.02)}
    axis.legend(handles=handles, **below, ncols=2, fontsize=7.5, handlelength=1.6)


def _place(latent: Tensor) -> tuple[float, float]:
    """The coordinates of one latent."""
    x, y = latent.flatten().tolist()
    return x, y


def _span(points: NDArray[np.float32]) -> float:
    return float((points.max(axis=1) - points.min(axis=1)).max())
