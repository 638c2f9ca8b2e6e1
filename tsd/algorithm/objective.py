"""The objectives of the paper as pure functions of tensors, Eq. 3–5 and 7–9.

Nothing here knows a model. Gradients (Eq. 3–5) are values to be pushed into the student through ẑ alone, with no
Jacobian of teacher or critic; `surrogate_loss` turns one into a loss. Predictions come in as the network gave them
and are compared in one of two parameterisations:

- `epsilon`: noise predictions, as the equations are printed;
- `velocity`: the network's own output, as the released code does it: a flow's velocity; of a DDPM its noise or v.

For VSD both inputs are the same ẑ_t and the two differ by the factor (1 − σ) alone. For TSM they do not:
ε = z_t + (1 − σ) v, so the velocity difference lacks the direct term ẑ_t − z_t. At low noise, where the teacher's
estimate x0 ≈ z_t, it even points *away* from z: v(ẑ_t) − v(z_t) = [(1−σ)(ẑ−z) − (x0(ẑ_t) − x0(z_t))] / σ.
"""

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tsd.config import Residual, Weighting
from tsd.model.process import NoiseProcess


def in_residual_form(process: NoiseProcess, prediction: Tensor, z_t: Tensor, t: Tensor, residual: Residual) -> Tensor:
    """A network's prediction at z_t in the parameterisation in which residuals are taken."""
    if residual == "velocity":
        return prediction
    if residual == "epsilon":
        return process.epsilon(z_t, prediction, t)
    raise ValueError(f"residual is {residual!r}; expected 'velocity' (the release) or 'epsilon' (as printed)")


def time_weight(process: NoiseProcess, t: Tensor, weighting: Weighting) -> Tensor:
    """w(t), shape (B, 1, 1, 1): σ_t² as released, σ_t² α_t, or 1. The paper calls it "time-aware" and states no more.

    α_t is 1 − σ_t on a flow: there σ²(1 − σ) on velocities is σ² on noise predictions for VSD, see above.
    """
    if weighting == "sigma2":
        return process.sigma(t).square().view(-1, 1, 1, 1)
    if weighting == "sigma2_one_minus_sigma":
        return (process.sigma(t).square() * process.alpha(t)).view(-1, 1, 1, 1)
    if weighting == "uniform":
        return torch.ones_like(t).view(-1, 1, 1, 1)
    raise ValueError(f"weighting is {weighting!r}; expected one of {', '.join(get_args(Weighting))}")


def vsd_gradient(teacher_hat: Tensor, critic_hat: Tensor, w: Tensor | float = 1.0) -> Tensor:
    """Eq. 3: w(t) (ε_ψ(ẑ_t) − ε_φ(ẑ_t)), the variational score distillation gradient on ẑ."""
    return w * (teacher_hat - critic_hat)


def tsm_gradient(teacher_hat: Tensor, teacher_z: Tensor, w: Tensor | float = 1.0) -> Tensor:
    """Eq. 4: w(t) (ε_ψ(ẑ_t) − ε_ψ(z_t)), target score matching; both samples carry the same noise."""
    return w * (teacher_hat - teacher_z)


def tsd_gradient(
    teacher_hat: Tensor,
    teacher_z: Tensor | None,
    critic_hat: Tensor | None,
    lambda_tsd: float,
    w: Tensor | float = 1.0,
) -> Tensor:
    """Eq. 5: w(t) [ε_ψ(ẑ_t) − ε_ψ(z_t) + λ(ε_ψ(z_t) − ε_φ(ẑ_t))] = (1 − λ)·TSM + λ·VSD.

    `teacher_z` may be None where λ = 1 and `critic_hat` where λ = 0: Eq. 5 does not contain them there.

    Raises:
        ValueError: a prediction that has a weight is missing.
    """
    if teacher_z is None and critic_hat is not None and lambda_tsd == 1:
        return vsd_gradient(teacher_hat, critic_hat, w)
    if critic_hat is None and teacher_z is not None and lambda_tsd == 0:
        return tsm_gradient(teacher_hat, teacher_z, w)
    if teacher_z is None or critic_hat is None:
        raise ValueError(f"λ is {lambda_tsd}; Eq. 5 needs ε_ψ(z_t) unless λ = 1 and ε_φ(ẑ_t) unless λ = 0")
    return w * (teacher_hat - teacher_z + lambda_tsd * (teacher_z - critic_hat))


def surrogate_loss(z_hat: Tensor, gradient: Tensor) -> Tensor:
    """0.5·mse(ẑ, stopgrad(ẑ − g)): a scalar whose gradient on ẑ is g / numel(ẑ)."""
    target = (z_hat - gradient).detach()
    return 0.5 * F.mse_loss(z_hat.float(), target.float())


def reconstruction_loss(
    pixel: Tensor | None, z_hat: Tensor, z: Tensor, gamma1: float, latent_mse: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 7: γ1·pixel + MSE(ẑ, z), where `pixel` is LPIPS in the paper; `latent_mse` switches the second term.

    `pixel` may be None where γ1 = 0: it has no weight then, and is not logged.

    Raises:
        ValueError: `pixel` is missing although it has a weight.
    """
    mse = F.mse_loss(z_hat.float(), z.float())
    logs = {"latent_mse": mse.detach()}
    if pixel is None:
        if gamma1 != 0:
            raise ValueError(f"γ1 is {gamma1}; Eq. 7 needs the pixel loss unless γ1 = 0")
        return latent_mse * mse, logs
    return gamma1 * pixel + latent_mse * mse, {"pixel": pixel.detach()} | logs


def student_loss(reconstruction: Tensor, regularisation: Tensor, gamma2: float) -> Tensor:
    """Eq. 8: L_rec + γ2·L_reg."""
    return reconstruction + gamma2 * regularisation


def critic_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Eq. 9: ‖ε_φ(ẑ_t) − ε'‖², the mean over all elements; `target` is the process's own (flow: ε' − ẑ)."""
    return F.mse_loss(prediction.float(), target.float())
