"""The two turns of one iteration of Algorithm 1: the losses that the student and the critic minimise.

All draws are per sample, from generators seeded by the sample's own running number, so neither batch size nor order
nor resumption changes them. In the student's turn no gradient reaches the weights of teacher, critic and frozen
decoder; in the critic's turn none reaches the student.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from peft.helpers import disable_input_dtype_casting
from torch import Tensor

from tsd.algorithm.dasm import Predict, Regularise, trajectory, trajectory_gradient
from tsd.algorithm.objective import critic_loss, reconstruction_loss, student_loss, surrogate_loss
from tsd.algorithm.pixel_loss import PixelLoss
from tsd.config import Phase, RunConfig, TrainConfig
from tsd.model.backbone import Backbone
from tsd.model.lora import Role, role
from tsd.model.prompt import PromptEmbeds
from tsd.model.sampler import guided
from tsd.model.sharded import has_dtensors
from tsd.seeds import generator_for


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        x_L: the LR image resized x4, (B, 3, S, S) in [-1, 1].
        x_H: the ground truth, (B, 3, S, S) in [-1, 1].
        indices: the samples' running numbers, which seed everything drawn for them.
        prompt: captions of x_H for teacher and critic, batch B or 1; None for the model's default prompt.
        posterior: moments of q(z | x_H), mean and log-variance as `AutoencoderKL.encode` computes them before
            scaling, (B, 2C, h, w); None to encode x_H here.
    """

    x_L: Tensor
    x_H: Tensor
    indices: list[int]
    prompt: PromptEmbeds | None = None
    posterior: Tensor | None = None


@dataclass(frozen=True)
class StudentTurn:
    """Result of the student's turn.

    Attributes:
        loss: the loss to descend, a scalar.
        z_hat: ẑ, (B, C, h, w), detached for the critic's turn.
        logs: numbers to log.
        output: ẑ with its graph; the backward pass leaves the gradient of all terms in its `grad`.
        tsd: γ2 times the gradient of L_reg on ẑ, (B, C, h, w); None where γ2 = 0.
        has_data_terms: whether a data term (Eq. 7) has a weight.
    """

    loss: Tensor
    z_hat: Tensor
    logs: dict[str, Tensor]
    output: Tensor
    tsd: Tensor | None
    has_data_terms: bool

    def gradient_sizes(self, loss_scale: float) -> dict[str, Tensor]:
        """The sizes of the two parts of the gradient on ẑ, once the backward pass of `loss` has run.

        Both include their weights γ, and are in the unit of a loss that is a sum over the elements of ẑ, so that they
        do not depend on the batch: MSE alone has the gradient 2 (ẑ − z).

        Args:
            loss_scale: the factor that the loss was multiplied by for the backward pass.

        Returns:
            `data_grad_rms` and `tsd_grad_rms`, root mean squares, and `grad_cosine` between the two; a part without
            weight is not among them.
        """
        assert self.output.grad is not None, "gradient_sizes before the backward pass"
        tsd = 0 if self.tsd is None else self.tsd
        data = self.output.grad.float() * (self.output.numel() / loss_scale) - tsd
        sizes: dict[str, Tensor] = {}
        if self.has_data_terms:
            sizes["data_grad_rms"] = data.square().mean().sqrt()
        if self.tsd is not None:
            sizes["tsd_grad_rms"] = self.tsd.float().square().mean().sqrt()
        if self.has_data_terms and self.tsd is not None:
            sizes["grad_cosine"] = torch.cosine_similarity(data.flatten(), self.tsd.float().flatten(), dim=0)
        return sizes


@dataclass(frozen=True)
class CriticTurn:
    """Result of the critic's turn: the loss to descend, and numbers to log (`critic`, and `critic_gain` if asked)."""

    loss: Tensor
    logs: dict[str, Tensor]


def noise_for(seed: int, purpose: str, indices: list[int], like: Tensor) -> Tensor:
    """Standard normal noise in the shape of `like`, one generator per sample (on the CPU, so that devices agree)."""
    generators = [generator_for(seed, purpose, index) for index in indices]
    return randn_tensor(like.shape, generator=generators, device=like.device, dtype=torch.float32)


def times_for(seed: int, purpose: str, indices: list[int], low: float, high: float, device: torch.device) -> Tensor:
    """(B,) uniform draws in [low, high], one generator per sample."""
    draws = [torch.rand((), generator=generator_for(seed, purpose, index)) for index in indices]
    return (low + (high - low) * torch.stack(draws)).to(device)


def predictor(
    backbone: Backbone,
    active: Role,
    prompt: PromptEmbeds,
    null: PromptEmbeds,
    guidance_scale: float,
    chunk: int | None = None,
) -> Predict:
    """The `Predict` function of ψ or φ with guidance: the shared base with this role's adapters, without gradient.

    Args:
        prompt, null: batch size 1 or the batch's; expanded, never copied, where it is 1.
        chunk: the most latents in one forward pass, including those that guidance adds (≥ 2); bounds the memory of
            activations. None passes the whole batch at once.
    """
    if chunk is not None and has_dtensors(backbone.denoiser):
        raise ValueError("chunk under FSDP: processes would enter different numbers of forward passes")
    size = None if chunk is None else max(chunk // (1 if guidance_scale == 1 else 2), 1)

    @torch.no_grad()
    def predict(z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        pieces = zip(*(tensor.split(size or len(rows)) for tensor in (z_t, t, rows)), strict=True)
        with role(backbone.denoiser, active):
            return torch.cat(
                [
                    guided(backbone, z, at, _captions(prompt, row), _captions(null, row), guidance_scale).float()
                    for z, at, row in pieces
                ]
            )

    return predict


def _captions(prompt: PromptEmbeds, rows: Tensor) -> PromptEmbeds:
    """The prompts of these rows of the batch; one prompt for all stays one."""
    if prompt.embeds.shape[0] == 1:
        return prompt
    return PromptEmbeds(prompt.embeds[rows], prompt.pooled if prompt.pooled is None else prompt.pooled[rows])


@contextmanager
def no_input_upcast(*models: Any) -> Iterator[None]:
    """Inside autocast, adapters read their input as it is.

    peft casts it up to the adapters' fp32 first, and autocast casts it down again: the same numbers, but two copies of
    every adapted layer's input, one of which the graph keeps. Without autocast the first cast is needed.
    """
    with ExitStack() as stack:
        for model in models:
            if torch.is_autocast_enabled(model.device.type):
                stack.enter_context(disable_input_dtype_casting(model))
        yield


@torch.no_grad()
def ground_truth_latents(backbone: Backbone, batch: Batch, config: RunConfig) -> Tensor:
    """z = E_ψ(x_H), (B, C, h, w) in fp32, by the frozen encoder or from its stored moments; the draw is the same."""
    generators = [generator_for(config.seed, "posterior of x_H", index) for index in batch.indices]
    if batch.posterior is None:
        with role(backbone.vae, "teacher"):
            return backbone.encode(batch.x_H, posterior=config.posterior, generator=generators).float()
    gaussian = DiagonalGaussianDistribution(batch.posterior)
    z = gaussian.mode() if config.posterior == "mode" else gaussian.sample(generator=generators)  # pyright: ignore
    return (z * backbone.vae.config["scaling_factor"]).float()


def student_latents(backbone: Backbone, batch: Batch, config: RunConfig) -> Tensor:
    """ẑ, the student's one step from its encoding of x_L (Algorithm 1, line 3), (B, C, h, w) in that dtype."""
    posterior = [generator_for(config.seed, "posterior of x_L", index) for index in batch.indices]
    with (
        no_input_upcast(backbone.vae, backbone.denoiser),
        role(backbone.vae, "student"),
        role(backbone.denoiser, "student"),
    ):
        z_L = backbone.encode(batch.x_L, posterior=config.posterior, generator=posterior)
        return backbone.one_step(z_L)


def student_turn(
    backbone: Backbone,
    batch: Batch,
    config: TrainConfig,
    phase: Phase,
    gamma1: float,
    pixel_loss: PixelLoss | None,
    chunk: int | None = None,
    regularise: Regularise | None = None,
) -> StudentTurn:
    """Algorithm 1, lines 3–24: one step, reconstruction (Eq. 7), TSD along the trajectory (Eq. 5), Eq. 8.

    Args:
        gamma1: γ1; at 0 the decoder is not run, and `pixel_loss` may be None.
        chunk: see `predictor`; the teacher's batch is otherwise 4B (ẑ_t and z_t, with and without the prompt).
        regularise: a gradient of one's own in place of Eq. 5 (`tsd.algorithm.regularisation`).
    """
    z = ground_truth_latents(backbone, batch, config)  # before any graph is held: encoding has its own memory peak
    output = student_latents(backbone, batch, config)
    z_hat = output.float()
    if z_hat.requires_grad:
        z_hat.retain_grad()
    tsd = None
    if phase.gamma2 > 0:
        tsd = regularisation_gradient(backbone, z_hat.detach(), z, batch, config, phase, chunk, regularise)
    pixel = None
    if gamma1 != 0 and pixel_loss is not None:
        with role(backbone.vae, "teacher"):  # after the trajectory, so that the decoder's graph is not held during it
            x_hat = backbone.decode(z_hat.to(output.dtype))
        pixel = pixel_loss(x_hat, batch.x_H)
    loss, logs = reconstruction_loss(pixel, z_hat, z, gamma1, phase.latent_mse)
    weighted = None
    if tsd is not None:
        gradient, sizes = tsd
        regularisation = surrogate_loss(z_hat, gradient)
        loss = student_loss(loss, regularisation, phase.gamma2)
        logs |= {"tsd": regularisation.detach(), **sizes}
        weighted = phase.gamma2 * gradient
    has_data_terms = gamma1 != 0 or phase.latent_mse != 0
    return StudentTurn(loss, z_hat.detach(), {"student": loss.detach(), **logs}, z_hat, weighted, has_data_terms)


@torch.no_grad()
def regularisation_gradient(
    backbone: Backbone,
    z_hat: Tensor,
    z: Tensor,
    batch: Batch,
    config: TrainConfig,
    phase: Phase,
    chunk: int | None = None,
    regularise: Regularise | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Algorithm 1, lines 5–23: the gradient of L_reg on ẑ, (B, C, h, w), and numbers to log."""
    seed, cpu = config.seed, torch.device("cpu")
    prompt, null = batch.prompt or backbone.prompts["default"], backbone.prompts["null"]
    points = len(phase.point_weights)
    stride = torch.full((len(batch.indices),), config.stride)
    if config.random_bias:  # [R]: the end of the trajectory moves by up to ± s/2
        half = config.stride / 2
        stride = stride + times_for(seed, "bias", batch.indices, -half, half, cpu) / points
    with no_input_upcast(backbone.denoiser):
        path = trajectory(
            backbone.process,
            predictor(backbone, "teacher", prompt, null, config.guidance_scale, chunk),
            predictor(backbone, "critic", prompt, null, config.guidance_scale, chunk),
            z_hat,
            z,
            noise_for(seed, "noise of TSD", batch.indices, z),
            times_for(seed, "t of TSD", batch.indices, *config.t_range, cpu),
            points=points,
            stride=stride,
            lambda_tsd=config.lambda_tsd if regularise is None else None,
            lockstep=has_dtensors(backbone.denoiser),
        )
        return trajectory_gradient(
            backbone.process,
            path,
            point_weights=phase.point_weights,
            lambda_tsd=config.lambda_tsd,
            residual=config.residual,
            weighting=config.weighting,
            regularise=regularise,
        )


def critic_turn(
    backbone: Backbone,
    z_hat: Tensor,
    indices: list[int],
    config: TrainConfig,
    prompt: PromptEmbeds | None = None,
    *,
    update: int = 0,
    measure_gain: bool = False,
) -> CriticTurn:
    """Algorithm 1, lines 25–28: fresh ε and t, and Eq. 9 on the student's detached latents.

    Args:
        prompt: the batch's captions, as the student's turn had them; None for the model's default prompt.
        update: the number of this update within the step, from 0; each draws noise and times of its own.
        measure_gain: also run the teacher at the same ẑ_t, and log `critic_gain`: the teacher's loss minus the
            critic's, both Eq. 9 without guidance. It says how far the critic knows the student's outputs better than
            the teacher does; where it is below zero, VSD's difference of the two is noise.
    """
    seed, process, z_hat = config.seed, backbone.process, z_hat.detach()
    which = "the critic" if update == 0 else f"the critic, update {update}"
    noise = noise_for(seed, f"noise of {which}", indices, z_hat)
    t = times_for(seed, f"t of {which}", indices, *config.t_range, z_hat.device)
    z_t, target = process.add_noise(z_hat, noise, t), process.target(z_hat, noise, t)
    prompt = prompt or backbone.prompts["default"]
    teachers = None
    with no_input_upcast(backbone.denoiser):
        if measure_gain:  # before the critic's graph is held
            with torch.no_grad(), role(backbone.denoiser, "teacher"):
                teachers = critic_loss(backbone.predict(z_t, t, prompt), target)
        with role(backbone.denoiser, "critic"):
            loss = critic_loss(backbone.predict(z_t, t, prompt), target)
    logs = {"critic": loss.detach()}
    return CriticTurn(loss, logs if teachers is None else logs | {"critic_gain": teachers - loss.detach()})
