"""Noise processes as pure functions: how a latent is noised, read back and moved along its trajectory.

Two processes have the same methods, so that their callers need no `if`: `FlowMatching` (SD3) and `DDPM` (SD2).

Time. `t` is the time of Algorithm 1: a float tensor of shape (B,), one time for each sample. Any real time is allowed,
so strides never have to be clipped or rounded.

- Flow: t in [0, 1000], drawn uniformly in training. A schedule may be *shifted* (SD3: 3.0), so the noise level is not
  t/1000:

      p = t / 1000,   σ(t) = shift · p / (1 + (shift − 1) · p)

  and the network is conditioned on 1000·σ(t). This is the table of diffusers' `FlowMatchEulerDiscreteScheduler` (its
  entry of index i is t = 1000 − i), without the table. With shift 1 both times agree.
- DDPM: t in [0, 999], the index into the scheduler's table of ᾱ; between two entries ᾱ is interpolated linearly. The
  network is conditioned on t itself.

Symbols are the paper's: z data latent, ε Gaussian noise, z_t = α_t z + σ_t ε noised latent; all latents are
(B, C, h, w) floats.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]


class NoiseProcess(Protocol):
    """The methods of a process that training, restoring and sampling use."""

    @property
    def num_train_timesteps(self) -> int: ...

    @property
    def last_time(self) -> float:
        """The largest time: where the student takes its one step."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level σ_t in [0, 1]; same shape as `t`."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level α_t in [0, 1]; same shape as `t`."""
        ...

    def time_from_sigma(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`."""
        ...

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is conditioned on."""
        ...

    def add_noise(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t (Algorithm 1, lines 8 and 9)."""
        ...

    def x0(self, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a prediction implies."""
        ...

    def epsilon(self, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction implies."""
        ...

    def step(self, z_t: Tensor, prediction: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """One deterministic step from t to t_next (Eq. 6)."""
        ...

    def target(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to predict (Eq. 9)."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """Rectified flow: z_t = (1 − σ_t) z + σ_t ε, and the network predicts the velocity v = ε − z.

    Args:
        shift: the schedule's timestep shift (SD3-medium: 3.0), > 0.
        num_train_timesteps: the end of the time axis, 1000 for every released model.
    """

    shift: float
    num_train_timesteps: int = 1000

    @property
    def last_time(self) -> float:
        return float(self.num_train_timesteps)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level σ_t in [0, 1] for times `t` in [0, 1000]; same shape and dtype as `t`."""
        p = t / self.num_train_timesteps
        return self.shift * p / (1 + (self.shift - 1) * p)

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level α_t = 1 − σ_t; same shape and dtype as `t`."""
        return 1 - self.sigma(t)

    def time_from_sigma(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`: times in [0, 1000] for noise levels in [0, 1]."""
        return self.num_train_timesteps * sigma / (self.shift - (self.shift - 1) * sigma)

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is conditioned on: 1000·σ_t, as diffusers passes it."""
        return self.num_train_timesteps * self.sigma(t)

    def add_noise(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = (1 − σ_t) z + σ_t ε (Algorithm 1, lines 8 and 9)."""
        sigma = _per_sample(self.sigma(t), z)
        return (1 - sigma) * z + sigma * noise

    def x0(self, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a velocity implies: z = z_t − σ_t v."""
        return z_t - _per_sample(self.sigma(t), z_t) * prediction

    def epsilon(self, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The noise that a velocity implies: ε = z_t + (1 − σ_t) v."""
        return z_t + (1 - _per_sample(self.sigma(t), z_t)) * prediction

    def step(self, z_t: Tensor, prediction: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """One Euler step of the probability flow from t to t_next: z_t + (σ_next − σ_t) v (Eq. 6)."""
        return z_t + _per_sample(self.sigma(t_next) - self.sigma(t), z_t) * prediction

    def target(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to predict (Eq. 9): the velocity ε − z, whatever t is."""
        return noise - z


@dataclass(frozen=True, eq=False)
class DDPM:
    """Variance-preserving diffusion: z_t = √ᾱ_t z + √(1 − ᾱ_t) ε; α_t = √ᾱ_t, σ_t = √(1 − ᾱ_t).

    Args:
        alphas_cumprod: ᾱ, (1000,) float32, falling; diffusers' schedulers compute it from their configuration.
        prediction_type: what the network predicts, as diffusers names it: `epsilon` (SD2-base, SD2.1-base), or
            `v_prediction`, v = α_t ε − σ_t z (SD2.1 at 768 pixels).
    """

    alphas_cumprod: Tensor
    prediction_type: Prediction

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def last_time(self) -> float:
        return float(self.num_train_timesteps - 1)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        """ᾱ at real times, float32; exactly the table's entry at integers."""
        table = self.alphas_cumprod.to(t.device)
        t = t.float().clamp(0, self.last_time)
        below = t.floor().long()
        return torch.lerp(table[below], table[(below + 1).clamp(max=len(table) - 1)], t - below)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level σ_t in [0, 1] for times `t` in [0, 999]; float32."""
        return (1 - self._alpha_bar(t)).sqrt()

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level α_t = √ᾱ_t for times `t` in [0, 999]; float32."""
        return self._alpha_bar(t).sqrt()

    def time_from_sigma(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`; a level outside the table is clamped to the table's range."""
        rising = 1 - self.alphas_cumprod.to(sigma.device)
        level = sigma.float().square().clamp(rising[0], rising[-1])
        above = torch.searchsorted(rising, level).clamp(1, len(rising) - 1)
        low, high = rising[above - 1], rising[above]
        return above - 1 + (level - low) / (high - low)

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is conditioned on: t itself."""
        return t

    def add_noise(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = α_t z + σ_t ε (Algorithm 1, lines 8 and 9)."""
        alpha, sigma = self._levels(t, z)
        return alpha * z + sigma * noise

    def x0(self, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a prediction implies: (z_t − σ_t ε) / α_t, or α_t z_t − σ_t v.

        At t = 999 SD2's 1/α is 14.6, so call it in fp32: rounding errors of half precision would be visible.
        """
        alpha, sigma = self._levels(t, z_t)
        if self.prediction_type == "epsilon":
            return (z_t - sigma * prediction) / alpha
        return alpha * z_t - sigma * prediction

    def epsilon(self, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction implies: itself, or α_t v + σ_t z_t."""
        if self.prediction_type == "epsilon":
            return prediction
        alpha, sigma = self._levels(t, z_t)
        return alpha * prediction + sigma * z_t

    def step(self, z_t: Tensor, prediction: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """One DDIM step (η = 0) from t to t_next: α_next x0 + σ_next ε (Eq. 6 for this process)."""
        alpha_next, sigma_next = self._levels(t_next, z_t)
        return alpha_next * self.x0(z_t, prediction, t) + sigma_next * self.epsilon(z_t, prediction, t)

    def target(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to predict (Eq. 9): the noise, or v = α_t ε − σ_t z."""
        if self.prediction_type == "epsilon":
            return noise
        alpha, sigma = self._levels(t, z)
        return alpha * noise - sigma * z

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(α_t, σ_t), broadcastable against `like`."""
        alpha_bar = self._alpha_bar(t)
        return _per_sample(alpha_bar.sqrt(), like), _per_sample((1 - alpha_bar).sqrt(), like)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) or (1,) values in a shape that broadcasts against `like`, one value for each sample."""
    return values.to(like.dtype).view(-1, *([1] * (like.ndim - 1)))
