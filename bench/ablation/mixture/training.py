"""Algorithm 1 on the mixture: the functions of `tsd.algorithm`, an exact teacher, and two heads to train.

The latents are points, (B, 2, 1, 1), so that everything but the networks is what real models are trained with:

- teacher ψ: the exact velocity of the noised prior;
- critic φ: the teacher plus a linear head on random features of (z_t, σ_t), zero at the start (as a LoRA is);
- student θ: ẑ = z_L plus a linear head on random features of z_L, zero at the start;
- the degraded latent: z_L = z + N(0, DEGRADATION²), wide enough to hide which mode z came from.

Every draw comes from a generator of its own that the seed, its purpose and the number of the step determine, never from
the settings of an arm: two arms with one seed see the same points, degradations, ε, t and start weights.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.ablation.mixture.networks import RandomFeatures, new_head
from bench.ablation.mixture.prior import Mixture
from bench.ablation.mixture.settings import MixtureSettings
from tsd.algorithm.dasm import Point, Predict, Regularise, trajectory, trajectory_gradient
from tsd.algorithm.objective import (
    critic_loss,
    reconstruction_loss,
    student_loss,
    surrogate_loss,
)
from tsd.errors import UserError
from tsd.files import load_function, no_exit
from tsd.model.process import FlowMatching
from tsd.seeds import generator_for

PRIOR = Mixture(components=8, radius=4.0, sd=0.15)
PROCESS = FlowMatching(shift=1.0)
DEGRADATION = 1.5
"""Standard deviation of z_L around z; the modes are 3.06 apart."""


def as_latents(points: Tensor) -> Tensor:
    """(B, 2) → (B, 2, 1, 1)."""
    return points.view(-1, 2, 1, 1)


def as_points(latents: Tensor) -> Tensor:
    """(B, 2, 1, 1) → (B, 2)."""
    return latents.view(-1, 2)


def teacher(z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """The `Predict` of ψ: the exact velocity at each latent's own time."""
    return as_latents(PRIOR.velocity(as_points(z_t), PROCESS.sigma(t)[:, None]))


def draw_pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of the prior and their degraded versions, both (count, 2)."""
    z = PRIOR.sample(count, generator)
    return z, z + DEGRADATION * torch.randn(count, 2, generator=generator)


class Distillation:
    """A student and a critic in training.

    Attributes:
        settings, seed: what the run depends on.
        step: number of the student's steps done.
    """

    def __init__(self, settings: MixtureSettings, seed: int) -> None:
        self.settings, self.seed, self.step = settings, seed, 0
        self._regularise = own_regularisation(settings)
        self._student_features = RandomFeatures.draw(2, generator_for(seed, "features of the student"))
        self._critic_features = RandomFeatures.draw(3, generator_for(seed, "features of the critic"))
        self._student_head, self._critic_head = new_head(), new_head()
        self._average = self._critic_head.detach()
        self._optimizer = torch.optim.Adam([self._student_head], settings.lr, fused=True)
        self._critic_optimizer = torch.optim.Adam([self._critic_head], settings.critic_lr, fused=True)

    def student(self, z_L: Tensor) -> Tensor:
        """ẑ of degraded points, both (B, 2)."""
        return z_L + self._student_features(z_L) @ self._student_head

    def critic(self, z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """The `Predict` of φ inside L_reg: the averaged head, where `critic_ema_decay` asks for one."""
        return self._predict(self._head_for_prediction(), z_t, t)

    def critic_now(self) -> Predict:
        """The same with the head of this moment, whatever is trained later."""
        head = self._head_for_prediction().detach().clone()
        return lambda z_t, t, rows: self._predict(head, z_t, t)

    def _head_for_prediction(self) -> Tensor:
        return self._average if self.settings.critic_ema_decay > 0 else self._critic_head

    def _predict(self, head: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        points, sigma = as_points(z_t), PROCESS.sigma(t)[:, None]
        return as_latents(PRIOR.velocity(points, sigma) + self._correction(points, sigma, head))

    def _correction(self, points: Tensor, sigma: Tensor, head: Tensor) -> Tensor:
        """What the critic adds to the teacher's velocity, (B, 2); φ is trained on it alone, ψ having no parameters."""
        return self._critic_features(torch.cat([points, sigma], dim=1)) @ head

    def train(self, log_every: int) -> Iterator[dict[str, float]]:
        """Trains to the end; yields after every student's step, with numbers to log after each `log_every`-th."""
        settings = self.settings
        if settings.gamma2 > 0:
            for index in range(settings.critic_warmup_steps):  # their pairs are none of the student's
                _, z_L = self._pairs(settings.steps + index)
                self._critic_turns(as_latents(self.student(z_L).detach()), settings.steps + index, log=False)
            self._average = self._critic_head.detach().clone()
        while self.step < settings.steps:
            log = (self.step + 1) % log_every == 0
            z_hat, logs = self._student_turn(self.step, log)
            if settings.gamma2 > 0:
                logs |= self._critic_turns(z_hat, self.step, log)
                self._average.lerp_(self._critic_head.detach(), 1 - settings.critic_ema_decay)
            self.step += 1
            yield {"step": self.step, **logs} if log else {}

    def _pairs(self, index: int) -> tuple[Tensor, Tensor]:
        return draw_pairs(self.settings.batch_size, generator_for(self.seed, "pairs", index))

    def _noise(self, purpose: str, index: int, *more: int) -> Tensor:
        generator = generator_for(self.seed, purpose, index, *more)
        return torch.randn(self.settings.batch_size, 2, 1, 1, generator=generator)

    def _times(self, purpose: str, index: int, low: float, high: float, *more: int) -> Tensor:
        generator = generator_for(self.seed, purpose, index, *more)
        return low + (high - low) * torch.rand(self.settings.batch_size, generator=generator)

    def _student_turn(self, index: int, log: bool) -> tuple[Tensor, dict[str, float]]:
        """Algorithm 1, lines 3–24; returns ẑ, detached and in the form of latents, and numbers to log."""
        settings = self.settings
        points, z_L = self._pairs(index)
        z, z_hat = as_latents(points), as_latents(self.student(z_L))
        loss, parts = reconstruction_loss(None, z_hat, z, 0.0, settings.latent_mse)
        gradient = None
        if settings.gamma2 > 0:
            gradient = self.regularisation_gradient(z_hat.detach(), z, index)
            loss = student_loss(loss, surrogate_loss(z_hat, gradient), settings.gamma2)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        z_hat = z_hat.detach()
        if not log:
            return z_hat, {}
        logs = {"student": loss.item(), "latent_mse": parts["latent_mse"].item()}
        return z_hat, logs | gradient_sizes(2 * settings.latent_mse * (z_hat - z), gradient, settings.gamma2)

    @torch.inference_mode()
    def regularisation_gradient(self, z_hat: Tensor, z: Tensor, index: int) -> Tensor:
        """Algorithm 1, lines 5–23: the gradient of L_reg on ẑ, (B, 2, 1, 1)."""
        settings, points = self.settings, len(self.settings.point_weights)
        stride = torch.full((settings.batch_size,), settings.stride)
        if settings.random_bias:  # [R]: the end of the trajectory moves by up to ± s/2
            half = settings.stride / 2
            stride = stride + self._times("bias", index, -half, half) / points
        path = trajectory(
            PROCESS,
            teacher,
            self.critic,
            z_hat,
            z,
            self._noise("noise of TSD", index),
            self._times("t of TSD", index, *settings.t_range),
            points=points,
            stride=stride,
            lambda_tsd=settings.lambda_tsd if self._regularise is None else None,
        )
        gradient, _ = trajectory_gradient(
            PROCESS,
            path,
            point_weights=settings.point_weights,
            lambda_tsd=settings.lambda_tsd,
            residual=settings.residual,
            weighting=settings.weighting,
            regularise=self._regularise,
        )
        return gradient

    def _critic_turns(self, z_hat: Tensor, index: int, log: bool) -> dict[str, float]:
        """Algorithm 1, lines 25–28, `critic_steps` times; the gain is that before the first update."""
        logs: dict[str, float] = {}
        for update in range(self.settings.critic_steps):
            more = (update,) if update else ()
            noise = self._noise("noise of the critic", index, *more)
            t = self._times("t of the critic", index, *self.settings.t_range, *more)
            z_t, target = PROCESS.add_noise(z_hat, noise, t), PROCESS.target(z_hat, noise, t)
            exact, sigma = teacher(z_t, t, t), PROCESS.sigma(t)[:, None]
            correction = as_latents(self._correction(as_points(z_t), sigma, self._critic_head))
            loss = critic_loss(exact + correction, target)
            if log and not update:
                logs = {"critic": loss.item(), "critic_gain": critic_loss(exact, target).item() - loss.item()}
            self._critic_optimizer.zero_grad()
            loss.backward()
            self._critic_optimizer.step()
        return logs


def own_regularisation(settings: MixtureSettings) -> Regularise | None:
    """The configured function, called as FUNCTION(point, w, settings); None for Eq. 5.

    Raises:
        UserError: here, if the file does not run or has no such function; when called, if the result has not the
            latents' shape or is not finite.
    """
    own = settings.function_file()
    if own is None:
        return None
    function, _ = load_function(*own)

    def regularise(point: Point, w: Tensor) -> Tensor:
        with no_exit(settings.regularisation):
            found, shape = function(point, w, settings), tuple(point.z_hat_t.shape)
        if not isinstance(found, Tensor) or tuple(found.shape) != shape or not bool(found.isfinite().all()):
            what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UserError(f"{settings.regularisation} returned {what}; expected a finite tensor {shape}")
        return found

    return regularise


def gradient_sizes(data: Tensor, tsd: Tensor | None, gamma2: float) -> dict[str, float]:
    """Root mean squares and cosine of the gradients on ẑ of the data terms and of γ2·L_reg.

    In units where losses are sums over elements, so that neither depends on the size of the batch.
    """
    sizes = {"data_grad_rms": data.square().mean().sqrt().item()}
    if tsd is None:
        return sizes
    weighted = gamma2 * tsd
    cosine = torch.nn.functional.cosine_similarity(data.flatten(), weighted.flatten(), dim=0)
    return sizes | {"tsd_grad_rms": weighted.square().mean().sqrt().item(), "grad_cosine": cosine.item()}
