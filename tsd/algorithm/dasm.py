"""Distribution-Aware Sampling: the trajectory of Algorithm 1, lines 15–23, and the TSD gradient along it.

From one noised pair (ẑ_t, z_t) both samples are moved down by Euler steps (Eq. 6) — ẑ with the critic's prediction,
z with the teacher's — and Eq. 5 is evaluated at every point t, t − s, …; the earlier points cost noise, the later
ones see the two distributions closer to the data. Every sample of a batch follows its **own** time; a point that
would lie at or below t = 0 is left out for that sample (its weight is 0); strides are never shortened to fit.

Predictions that are not needed are not evaluated: samples that have left the trajectory, the real sample where λ = 1
leaves no TSM term, and the critic at the last point where λ = 0 leaves no VSD term.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tsd.algorithm.objective import in_residual_form, time_weight, tsd_gradient, tsm_gradient, vsd_gradient
from tsd.config import Residual, Weighting
from tsd.model.process import NoiseProcess

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_t, t, rows) → the network's prediction, guidance included.

`t` and `rows` have the batch size of z_t; `rows` says which sample of the batch each row belongs to (for its caption).
"""


@dataclass(frozen=True)
class Point:
    """One point of the trajectory; predictions as the networks gave them.

    Attributes:
        t: (B,) times; `inside` is False where they are ≤ 0.
        inside: (B,) whether the point counts for that sample.
        z_hat_t, z_t: the student's and the real sample at this point, (B, C, h, w).
        teacher_hat, teacher_z, critic_hat: ψ at ẑ_t, ψ at z_t and φ at ẑ_t; 0 for samples that are not inside, and
            None where λ makes the prediction irrelevant.
    """

    t: Tensor
    inside: Tensor
    z_hat_t: Tensor
    z_t: Tensor
    teacher_hat: Tensor
    teacher_z: Tensor | None
    critic_hat: Tensor | None


Regularise = Callable[[Point, Tensor], Tensor]
"""(point, w) → the gradient of L_reg on ẑ at a point of the trajectory, (B, C, h, w), in place of Eq. 5.

The point's predictions are in the configured residual form; w is (B, 1, 1, 1), the product of the point's weight, w(t)
and `inside`.
"""


def trajectory(
    process: NoiseProcess,
    teacher: Predict,
    critic: Predict,
    z_hat: Tensor,
    z: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    points: int,
    stride: Tensor | float,
    lambda_tsd: float | None = None,
    lockstep: bool = False,
) -> Iterator[Point]:
    """Yields `points` points at t, t − s, t − 2s, …, each with the predictions Eq. 5 needs.

    Args:
        teacher, critic: predictions of ψ and φ. The teacher sees ẑ_t and z_t in one batch; both see only the samples
            that are still inside the trajectory, and are not called where none is.
        z_hat, z: the student's latents and the encoded ground truth, (B, C, h, w).
        noise: ε, the same for both, (B, C, h, w).
        t: (B,) starting times, each sample's own.
        points: how many, ≥ 1; the paper's N means N + 1 points, the release's 4 means 4.
        stride: s, a number or (B,) (the release jitters it per iteration, here per sample).
        lambda_tsd: λ of Eq. 5, by which predictions without weight are left out; None evaluates all of them.
        lockstep: call the networks at every point, whatever the samples' times. Under FSDP a process that skipped a
            forward pass would keep the others waiting for its part of the weights.
    """
    if points < 1:
        raise ValueError(f"points is {points}; a trajectory has at least its starting point")
    t = t.cpu()  # t decides shapes below; on the CPU, reading it does not wait for the accelerator
    stride = torch.as_tensor(stride, dtype=t.dtype).cpu().expand_as(t)
    start = t.to(z.device)
    z_hat_t, z_t = process.add_noise(z_hat, noise, start), process.add_noise(z, noise, start)
    for index in range(points):
        t_i, last = t - index * stride, index == points - 1
        rows = (t_i > 0).nonzero().flatten().to(z.device)
        t_safe = t_i.clamp(min=0).to(z.device)
        teacher_z = critic_hat = None
        if lambda_tsd == 1:
            (teacher_hat,) = _at_rows(teacher, lockstep, rows, t_safe, z_hat_t)
        else:
            teacher_hat, teacher_z = _at_rows(teacher, lockstep, rows, t_safe, z_hat_t, z_t)
        if lambda_tsd != 0 or not last:
            (critic_hat,) = _at_rows(critic, lockstep, rows, t_safe, z_hat_t)
        inside = (t_i > 0).to(z.device)
        yield Point(t_i.to(z.device), inside, z_hat_t, z_t, teacher_hat, teacher_z, critic_hat)
        t_next = (t_i - stride).clamp(min=0).to(z.device)
        if critic_hat is not None:  # Eq. 6: the critic moves ẑ …
            z_hat_t = process.step(z_hat_t, critic_hat, t_safe, t_next)
        if teacher_z is not None:  # … and the teacher moves z
            z_t = process.step(z_t, teacher_z, t_safe, t_next)


def _at_rows(predict: Predict, lockstep: bool, rows: Tensor, t: Tensor, *latents: Tensor) -> tuple[Tensor, ...]:
    """The predictions at several latents of the batch in one call, for `rows` only; the others get 0."""
    copies, everything = len(latents), len(rows) == len(t)
    if len(rows) == 0:
        if lockstep:  # its result has no weight
            predict(torch.cat([latent[:1] for latent in latents]), t[:1].repeat(copies), rows.new_zeros(copies))
        return tuple(torch.zeros_like(latent) for latent in latents)
    if everything:
        found = predict(torch.cat(latents), t.repeat(copies), rows.repeat(copies))
        return found.chunk(copies)
    found = predict(torch.cat([latent[rows] for latent in latents]), t[rows].repeat(copies), rows.repeat(copies))
    return tuple(
        torch.zeros_like(latent).index_copy(0, rows, part)
        for latent, part in zip(latents, found.chunk(copies), strict=True)
    )


def trajectory_gradient(
    process: NoiseProcess,
    path: Iterator[Point],
    *,
    point_weights: Sequence[float],
    lambda_tsd: float,
    residual: Residual,
    weighting: Weighting,
    regularise: Regularise | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ_i weight_i · TSD(t − i·s): the gradient of L_reg on ẑ, and the size of its two parts for the log.

    Args:
        regularise: a gradient of one's own in place of Eq. 5; give it a path with all predictions.

    Returns:
        The gradient, (B, C, h, w), and `vsd_rms` / `tsm_rms` / `tsd_rms`, root mean squares over the batch; a part
        whose predictions were left out everywhere is not among them.
    """
    gradient = torch.zeros(())
    parts: dict[str, Tensor] = {}

    in_form = partial(in_residual_form, process, residual=residual)
    for point, point_weight in zip(path, point_weights, strict=True):
        t = point.t.clamp(min=0)
        teacher_hat = in_form(point.teacher_hat, point.z_hat_t, t)
        teacher_z = None if point.teacher_z is None else in_form(point.teacher_z, point.z_t, t)
        critic_hat = None if point.critic_hat is None else in_form(point.critic_hat, point.z_hat_t, t)
        w = point_weight * time_weight(process, t, weighting) * point.inside.view(-1, 1, 1, 1)
        w = w.to(teacher_hat.dtype)
        if regularise is None:
            gradient = gradient + tsd_gradient(teacher_hat, teacher_z, critic_hat, lambda_tsd, w)
        else:
            read = replace(point, teacher_hat=teacher_hat, teacher_z=teacher_z, critic_hat=critic_hat)
            gradient = gradient + regularise(read, w)
        if critic_hat is not None:
            parts["vsd_rms"] = parts.get("vsd_rms", 0) + vsd_gradient(teacher_hat, critic_hat, w)
        if teacher_z is not None:
            parts["tsm_rms"] = parts.get("tsm_rms", 0) + tsm_gradient(teacher_hat, teacher_z, w)
    parts["tsd_rms"] = gradient
    return gradient, {name: part.float().square().mean().sqrt() for name, part in parts.items()}
