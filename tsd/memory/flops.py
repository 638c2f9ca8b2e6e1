"""The floating-point operations of a distillation, counted before any weight is loaded.

The turns of `tsd.algorithm.turns` run, forward and backward, on tensors without data under torch's counter. It counts
matrix products, convolutions and attention, a multiplication with its addition as two; norms, activations and the
optimiser are small beside them and are not counted, nor is the network of LPIPS.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tsd.algorithm.pixel_loss import charbonnier
from tsd.algorithm.turns import Batch, critic_turn, regularisation_gradient, student_latents, student_turn
from tsd.config import Phase, TrainConfig
from tsd.memory.plan import WithoutData, build_planned, make_fake, model_configs
from tsd.model.gradient_checkpointing import enable_gradient_checkpointing

COUNTED: dict[str, Any] = {"base_dtype": "fp32", "mixed_precision": "no"}
"""Precisions do not change the count."""


@dataclass(frozen=True)
class SampleFlops:
    """FLOPs for one sample of the global batch, in one step or in a whole run.

    Attributes:
        data: the student's encoder, its step, and the decoder, forward and backward.
        trajectory: predictions of teacher and critic, with guidance, at every point of the trajectory.
        critic: the critic's turn, forward and backward, and the teacher's passes that measure its gain.
    """

    data: float
    trajectory: float
    critic: float

    @property
    def total(self) -> float:
        return self.data + self.trajectory + self.critic

    def times(self, count: float) -> "SampleFlops":
        return SampleFlops(self.data * count, self.trajectory * count, self.critic * count)

    def plus(self, other: "SampleFlops") -> "SampleFlops":
        return SampleFlops(self.data + other.data, self.trajectory + other.trajectory, self.critic + other.critic)


class FlopCounter:
    """Counts for a base model with the adapters, crop and checkpointing of `config`; each kind of pass is run once.

    Targets are taken to come with their latents' distribution, as `tsd prepare` stores it. Every point of a trajectory
    counts, also one that a sample leaves out because it would lie below t = 0: an upper bound, the same for every s.

    Args:
        model: a folder in diffusers layout (the `config.json` files are enough), or one of `PUBLIC_CONFIGS`.

    Raises:
        UserError: the model's configuration is neither on disk nor known; or the crop does not fit the model.
    """

    def __init__(self, model: str | Path, config: TrainConfig) -> None:
        family, configs = model_configs(model)
        config = dataclasses.replace(config, **COUNTED)
        self.backbone = build_planned(family, configs, config, str(model), family.prompt_tokens)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.backbone.denoiser, self.backbone.vae)
        side = config.crop // self.backbone.vae_factor
        channels = self.backbone.vae.config["latent_channels"]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake:
            make_fake(self.backbone)
            x, moments = torch.zeros(1, 3, config.crop, config.crop), torch.zeros(1, 2 * channels, side, side)
            self.z = torch.zeros(1, channels, side, side)
            self.batch = Batch(x, x.clone(), [0], self.backbone.prompts["default"], moments)
        self.known: dict[tuple[Any, ...], float] = {}

    def run(self, config: TrainConfig) -> SampleFlops:
        """A sample's FLOPs over all steps of the run, divided by nothing: multiply by the global batch."""
        found = self.warm_up(config).times(config.critic_warmup_steps)
        for phase in config.phases:
            if phase.steps:
                found = found.plus(self.step(config, phase).times(phase.steps))
        return found

    def step(self, config: TrainConfig, phase: Phase) -> SampleFlops:
        """A step of the student, with the critic's turns that belong to it."""
        config = dataclasses.replace(config, **COUNTED)
        data = self._data(config)
        if phase.gamma2 == 0:
            return SampleFlops(data, 0.0, 0.0)
        first, further = self._trajectory(config, 1), 0.0
        if len(phase.point_weights) > 1:
            further = self._trajectory(config, 2) - first
        return SampleFlops(data, first + further * (len(phase.point_weights) - 1), self._critic(config))

    def warm_up(self, config: TrainConfig) -> SampleFlops:
        """A step of the critic's warm-up: the student's output without its graph, and one turn of the critic."""
        if not config.critic_warmup_steps:
            return SampleFlops(0.0, 0.0, 0.0)
        config = dataclasses.replace(config, **COUNTED, critic_steps=1)

        def forward() -> None:
            with torch.no_grad():
                student_latents(self.backbone, self.batch, config)

        return SampleFlops(self._count(("warm-up",), forward), 0.0, self._critic(config))

    def _data(self, config: TrainConfig) -> float:
        phase = Phase(steps=1, latent_mse=1.0, gamma2=0.0, point_weights=(1.0,))
        gamma1 = float(config.has_pixel_loss)

        def turn() -> None:
            student_turn(self.backbone, self.batch, config, phase, gamma1, charbonnier).loss.backward()

        return self._count(("data", gamma1), turn)

    def _trajectory(self, config: TrainConfig, points: int) -> float:
        phase = Phase(steps=1, latent_mse=0.0, gamma2=1.0, point_weights=(1.0,) * points)
        everything = config.own_regularisation is not None  # a function of one's own sees every prediction
        lambda_tsd = 0.5 if everything or 0 < config.lambda_tsd < 1 else config.lambda_tsd
        config = dataclasses.replace(config, lambda_tsd=lambda_tsd, regularisation="tsd")
        key = ("trajectory", points, lambda_tsd, config.guidance_scale == 1)
        return self._count(
            key, lambda: regularisation_gradient(self.backbone, self.z, self.z, self.batch, config, phase)
        )

    def _critic(self, config: TrainConfig) -> float:
        def turn(measure_gain: bool) -> Callable[[], None]:
            return lambda: critic_turn(
                self.backbone, self.z, [0], config, self.batch.prompt, measure_gain=measure_gain
            ).loss.backward()

        one = self._count(("critic", False), turn(False))
        gain = self._count(("critic", True), turn(True)) - one
        return one * config.critic_steps + gain / config.gain_every

    def _count(self, key: tuple[Any, ...], work: Callable[[], Tensor | tuple[Any, ...] | None]) -> float:
        if key not in self.known:
            with self.fake, WithoutData(), FlopCounterMode(display=False) as counter:
                work()
            self.known[key] = float(counter.get_total_flops())
            for module in (self.backbone.denoiser, self.backbone.vae):
                module.zero_grad()
        return self.known[key]
