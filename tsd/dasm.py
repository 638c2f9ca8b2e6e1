"""Distribution-Aware Sampling: the trajectory of Algorithm 1, lines 15–23, and the TSD gradient along it.

From one noised pair (ẑ_t, z_t) both samples are moved down by Euler steps (Eq. 6) — ẑ with the critic's prediction,
z with the teacher's — and Eq. 5 is evaluated at every point t, t − s, …; the earlier points cost noise, the later
ones see the two distributions closer to the data. Every sample of a batch follows its **own** time; a point that
would lie at or below t = 0 is left out for that sample (its weight is 0), strides are never squeezed to fit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsd.config import Residual, Weighting
from tsd.objective import in_residual_form, time_weight, tsd_gradient, tsm_gradient, vsd_gradient
from tsd.process import NoiseProcess

Predict = Callable[[Tensor, Tensor], Tensor]
"""(z_t, t) → the network's prediction, guidance included; t has the batch size of z_t."""


@dataclass(frozen=True)
class Point:
    """One point of the trajectory; predictions as the networks gave them.

    Attributes:
        t: (B,) times; may be ≤ 0, where `inside` is False.
        inside: (B,) whether the point counts for that sample.
        z_hat_t, z_t: the student's and the real sample at this point, (B, C, h, w).
        teacher_hat, teacher_z, critic_hat: ψ at ẑ_t, ψ at z_t and φ at ẑ_t.
    """

    t: Tensor
    inside: Tensor
    z_hat_t: Tensor
    z_t: Tensor
    teacher_hat: Tensor
    teacher_z: Tensor
    critic_hat: Tensor


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
) -> Iterator[Point]:
    """Yields `points` points at t, t − s, t − 2s, …, each with the three predictions Eq. 5 needs.

    Args:
        teacher, critic: predictions of ψ and φ. The teacher sees ẑ_t and z_t in one batch.
        z_hat, z: the student's latents and the encoded ground truth, (B, C, h, w).
        noise: ε, the same for both, (B, C, h, w).
        t: (B,) starting times, each sample's own.
        points: how many, ≥ 1; the paper's N means N + 1 points, the release's 4 means 4.
        stride: s, a number or (B,) (the release jitters it per iteration, here per sample).
    """
    if points < 1:
        raise ValueError(f"points is {points}; a trajectory has at least its starting point")
    stride = torch.as_tensor(stride, device=t.device, dtype=t.dtype).expand_as(t)
    z_hat_t, z_t = process.add_noise(z_hat, noise, t), process.add_noise(z, noise, t)
    for index in range(points):
        t_i = t - index * stride
        t_safe = t_i.clamp(min=0)
        teacher_hat, teacher_z = teacher(torch.cat([z_hat_t, z_t]), t_safe.repeat(2)).chunk(2)
        critic_hat = critic(z_hat_t, t_safe)
        yield Point(t_i, t_i > 0, z_hat_t, z_t, teacher_hat, teacher_z, critic_hat)
        t_next = (t_i - stride).clamp(min=0)
        z_hat_t = process.step(z_hat_t, critic_hat, t_safe, t_next)  # Eq. 6: the critic moves ẑ …
        z_t = process.step(z_t, teacher_z, t_safe, t_next)  # … and the teacher moves z


def trajectory_gradient(
    process: NoiseProcess,
    path: Iterator[Point],
    *,
    point_weights: Sequence[float],
    lambda_tsd: float,
    residual: Residual,
    weighting: Weighting,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ_i weight_i · TSD(t − i·s): the gradient on ẑ of L_reg, and the size of its two parts for the log.

    Returns:
        The gradient, (B, C, h, w), and `vsd_rms` / `tsm_rms` / `tsd_rms`, root mean squares over the batch.
    """
    gradient = vsd = tsm = torch.zeros(())
    for point, point_weight in zip(path, point_weights, strict=True):
        t = point.t.clamp(min=0)
        teacher_hat = in_residual_form(process, point.teacher_hat, point.z_hat_t, t, residual)
        teacher_z = in_residual_form(process, point.teacher_z, point.z_t, t, residual)
        critic_hat = in_residual_form(process, point.critic_hat, point.z_hat_t, t, residual)
        w = point_weight * time_weight(process, t, weighting) * point.inside.view(-1, 1, 1, 1)
        w = w.to(teacher_hat.dtype)
        gradient = gradient + tsd_gradient(teacher_hat, teacher_z, critic_hat, lambda_tsd, w)
        vsd = vsd + vsd_gradient(teacher_hat, critic_hat, w)
        tsm = tsm + tsm_gradient(teacher_hat, teacher_z, w)
    parts = {"tsd_rms": gradient, "vsd_rms": vsd, "tsm_rms": tsm}
    return gradient, {name: part.float().square().mean().sqrt() for name, part in parts.items()}
