"""Noise processes as pure functions: how a latent is noised, read back and moved along its trajectory.

Time. `t` is the time of Algorithm 1: a float tensor of shape (B,) in [0, 1000], uniform draws of which are the
training distribution. A flow model's schedule may be *shifted* (SD3: 3.0), so the noise level is not t/1000:

    p = t / 1000,   σ(t) = shift · p / (1 + (shift − 1) · p)

and the network is conditioned on 1000·σ(t). This is the table of diffusers' `FlowMatchEulerDiscreteScheduler`
(its entry of index i is t = 1000 − i), without the table: any real t is allowed, so strides never have to be
clipped or rounded. With shift 1 both times agree.

Symbols are the paper's: z data latent, ε Gaussian noise, z_t noised latent, σ_t noise level; all latents are
(B, C, h, w) floats.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FlowMatching:
    """Rectified flow: z_t = (1 − σ_t) z + σ_t ε, and the network predicts the velocity v = ε − z.

    Args:
        shift: the schedule's timestep shift (SD3-medium: 3.0), > 0.
        num_train_timesteps: the end of the time axis, 1000 for every released model.
    """

    shift: float
    num_train_timesteps: int = 1000

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level σ_t in [0, 1] for times `t` in [0, 1000]; same shape and dtype as `t`."""
        p = t / self.num_train_timesteps
        return self.shift * p / (1 + (self.shift - 1) * p)

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


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) or (1,) → broadcastable against `like`, every sample at its own time."""
    return values.to(like.dtype).view(-1, *([1] * (like.ndim - 1)))
