"""Figure 3: does the teacher point to the data? Cosine of its direction with the true one, at ẑ_t and at z_t.

The teacher's direction at a noised latent x_t is x0_ψ(x_t) − x_t, from there to the clean latent that it predicts; the
true direction is z − x_t. For a flow both are −σ_t times a velocity. The paper shows t = 100 and two samples (.2 at ẑ_t
early in training, .88 at z_t); here it is the mean over samples, along training, and over t.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ablation.figures.stage import Stage, Subject
from bench.ablation.figures.style import INK, MOMENTS, STUDENT, TRUTH, drawing, save
from tsd.algorithm.dasm import Predict
from tsd.model.process import NoiseProcess

T_PAPER = 100
TIMES = tuple(range(50, 951, 50))
FRACTIONS = tuple(index / 10 for index in range(11))
SHOWN = (0.0, 0.2, 0.5, 1.0)
"""Moments whose cosines are drawn over t."""


@torch.no_grad()
def direction_cosine(
    process: NoiseProcess, teacher: Predict, latents: Tensor, z: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """(B,) cosine between the teacher's direction at the noised `latents` and the direction from there to z.

    Args:
        latents, z, noise: (B, C, h, w); `latents` is ẑ or z itself.
        t: (B,) times.
    """
    x_t = process.add_noise(latents, noise, t)
    toward = process.x0(x_t, teacher(x_t, t, torch.arange(len(t))), t) - x_t
    return F.cosine_similarity(toward.flatten(1), (z - x_t).flatten(1))


def measure(subject: Subject, seeds: Sequence[int], progress: Callable[[str], None]) -> pd.DataFrame:
    """One row for each seed, moment, time and place ("z_hat" or "z"), with mean and spread over samples."""
    rows = []
    moments = subject.moments(FRACTIONS)
    for seed in seeds:
        for stage, fraction in zip(subject.stages({}, seed, moments), moments, strict=True):
            progress(f"seed {seed}, step {stage.step}")
            for t in TIMES:
                rows += [{"seed": seed, "fraction": fraction, **row} for row in _at(stage, t)]
    return pd.DataFrame(rows)


def _at(stage: Stage, t: float) -> list[dict[str, object]]:
    noise, times = stage.noise(t), stage.times(t)
    rows: list[dict[str, object]] = []
    for place, latents in (("z_hat", stage.z_hat), ("z", stage.z)):
        cosine = direction_cosine(stage.process, stage.teacher, latents, stage.z, noise, times)
        spread = {"cosine": cosine.mean().item(), "sd_of_samples": cosine.std(correction=0).item()}
        rows.append({"step": stage.step, "t": t, "place": place, **spread, "samples": len(cosine)})
    return rows


def draw(numbers: pd.DataFrame, folder: Path) -> list[Path]:
    """Left: at t = 100 along training. Right: over t, at some moments. Bands span the seeds."""
    with drawing(7.6, 3.0) as figure:
        training, over_t = figure.subplots(1, 2, sharey=True)
        at_paper = numbers.query("t == @T_PAPER")
        for place, colour, label in (("z", TRUTH, r"at $z_t$"), ("z_hat", STUDENT, r"at $\hat z_t$")):
            by_step = at_paper.query(f"place == {place!r}").groupby("step").cosine
            training.plot(by_step.mean(), color=colour, marker="o", markersize=3, label=label)
            training.fill_between(by_step.mean().index, by_step.min(), by_step.max(), color=colour, alpha=0.2, lw=0)
        training.set_xlabel("training step of the student")
        training.set_ylabel(r"$\cos\,(\,x_0^\psi - x_t,\; z - x_t\,)$")
        training.set_title(f"t = {T_PAPER}", loc="left")
        training.legend(loc="best")
        colours = matplotlib.colormaps[MOMENTS]
        known = sorted(set(numbers.fraction))
        for fraction in sorted({min(known, key=lambda one: abs(one - wanted)) for wanted in SHOWN}):
            moment = numbers.query("place == 'z_hat' and fraction == @fraction")
            label = rf"at $\hat z_t$, step {moment['step'].iloc[0]}"
            over_t.plot(moment.groupby("t").cosine.mean(), color=colours(0.85 * fraction), label=label)
        over_t.plot(
            numbers.query("place == 'z'").groupby("t").cosine.mean(), color=INK, ls="--", label="at $z_t$", zorder=1
        )
        over_t.axvline(T_PAPER, color="#cccccc", lw=0.8, zorder=0)
        over_t.set_xlabel("$t$")
        over_t.legend(loc="best")
        return save(figure, numbers, folder, "figure3")
