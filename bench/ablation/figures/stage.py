"""What the figures need of a domain: a training looked at in several moments, by its predictions and latents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.ablation.domain import Measure
from tsd.algorithm.dasm import Predict
from tsd.model.process import NoiseProcess
from tsd.seeds import generator_for


@dataclass(frozen=True)
class Stage:
    """A moment of a training, on latents that are the same at every moment.

    Attributes:
        step: how many of the student's steps were done.
        seed: the run's; seeds the noise that figures add.
        process: the noise process.
        teacher: ψ.
        critic: φ of this moment; None where it is not known, e.g. of a finished student.
        z_L, z_hat, z: the degraded latents, the student's and the true ones, (B, C, h, w) in fp32. Latents with two
            values are drawn as points of the plane.
        images: latents → (B, 1 or 3, H, W) in [0, 1]; None where latents are points.
        scores: of the outputs, unrounded; figures write them below.
    """

    step: int
    seed: int
    process: NoiseProcess
    teacher: Predict
    critic: Predict | None
    z_L: Tensor
    z_hat: Tensor
    z: Tensor
    images: Callable[[Tensor], Tensor] | None = None
    scores: Mapping[Measure, float] = field(default_factory=dict)

    @property
    def rows(self) -> Tensor:
        """(B,) the third argument of `Predict` for the whole batch."""
        return torch.arange(len(self.z))

    def times(self, t: float) -> Tensor:
        """(B,) the same time for every sample."""
        return torch.full((len(self.z),), float(t), device=self.z.device)

    def noise(self, t: float) -> Tensor:
        """ε for a time, (B, C, h, w): the same at every moment, so that moments differ by the training alone."""
        generator = generator_for(self.seed, "noise of a figure", f"{t:g}")
        return torch.randn(self.z.shape, generator=generator).to(self.z)


@dataclass(frozen=True)
class Strategy:
    """A way to train; `overrides` are settings that differ from the domain's defaults, as those of a sweep's arm."""

    label: str
    overrides: Mapping[str, Any]


class Subject(Protocol):
    """A domain, or a real model, of which figures are drawn.

    Attributes:
        name: "mixture", "text", or that of the model; part of the default output folder.
    """

    name: str

    def moments(self, wanted: Sequence[float]) -> list[float]:
        """The moments that can be shown of those wanted, rising fractions of the run in [0, 1]: 0 start, 1 end."""
        ...

    def strategies(self, wanted: Sequence[Strategy]) -> list[Strategy]:
        """The strategies that can be shown in place of those wanted."""
        ...

    def stages(self, overrides: Mapping[str, Any], seed: int, moments: Sequence[float]) -> Iterator[Stage]:
        """A run, looked at in some moments.

        Args:
            overrides: those of a strategy.
            moments: as `moments` gives them; one stage for each.

        Raises:
            UserError: the subject cannot be trained with these settings, or not at all.
        """
        ...
