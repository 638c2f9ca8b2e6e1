"""The mixture as a subject of figures: its latents are the points that are drawn."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from bench.ablation.experiment import measures_of
from bench.ablation.figures.stage import Stage, Strategy
from bench.ablation.mixture.domain import MixtureDomain, held_out
from bench.ablation.mixture.scores import set_scores
from bench.ablation.mixture.settings import MixtureSettings
from bench.ablation.mixture.training import PRIOR, PROCESS, Distillation, as_latents, teacher

SCORES = ("mse", "distance", "sliced_w2")


def open_subject() -> "MixtureSubject":
    return MixtureSubject()


class MixtureSubject:
    """A `Subject` that trains in a second or two, on the test points of the seed."""

    name = "mixture"

    def moments(self, wanted: Sequence[float]) -> list[float]:
        return list(wanted)

    def strategies(self, wanted: Sequence[Strategy]) -> list[Strategy]:
        return list(wanted)

    def stages(self, overrides: Mapping[str, Any], seed: int, moments: Sequence[float]) -> Iterator[Stage]:
        distillation = Distillation(MixtureSettings.from_mapping(overrides), seed)
        steps = distillation.settings.steps
        training = distillation.train(steps)
        z, z_L, fresh = held_out(seed)
        for moment in moments:
            while distillation.step < round(moment * steps):
                next(training)
            with torch.no_grad():
                z_hat = distillation.student(z_L)
            found = set_scores(PRIOR, z_hat, z, fresh)
            yield Stage(
                distillation.step,
                seed,
                PROCESS,
                teacher,
                distillation.critic_now(),
                z_L=as_latents(z_L),
                z_hat=as_latents(z_hat),
                z=as_latents(z),
                scores={measure: found[measure.name] for measure in measures_of(SCORES, MixtureDomain())},
            )
