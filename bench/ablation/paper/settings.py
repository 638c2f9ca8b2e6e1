"""The settings of the paper's arms, flat, and the run that they describe; standard library only."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bench.ablation.flat_settings import typed
from tsd.config import Phase, TrainConfig
from tsd.errors import UserError
from tsd.presets import PAPER

BASE = dataclasses.replace(PAPER, gradient_accumulation=8)
"""The paper's run in one process: the eight GPUs with two samples each become eight micro-batches of two."""

RUN_SETTINGS = ("seed", "phases", "validate_every")
"""Fields of `TrainConfig` that no experiment sets: the sweep sets the seed, the phases are written flat, and nothing is
validated."""

PHASES: dict[str, Any] = {
    "steps": sum(phase.steps for phase in BASE.phases),
    "first_share": 0.5,
    "first_latent_mse": BASE.phases[0].latent_mse,
    "first_gamma2": BASE.phases[0].gamma2,
    "first_point_weights": BASE.phases[0].point_weights,
    "latent_mse": BASE.phases[1].latent_mse,
    "gamma2": BASE.phases[1].gamma2,
    "point_weights": BASE.phases[1].point_weights,
}
"""The two phases: `steps` in all, of which the first phase has the share `first_share`, rounded."""

SCORING: dict[str, Any] = {"color": "adain", "process_size": 512, "student": ""}
"""How all arms restore the test sets (fields of `RestoreConfig`; the paper's figures are with AdaIN), and the hashes of
a finished student that replaces the training; the command line sets the last."""


def default_settings() -> dict[str, Any]:
    """All settings with their defaults, those of the paper."""
    flat = {name: value for name, value in dataclasses.asdict(BASE).items() if name not in RUN_SETTINGS}
    return flat | PHASES | SCORING


def config_of(settings: Mapping[str, Any], seed: int) -> TrainConfig:
    """The run of an arm with a seed.

    Raises:
        UserError: an unknown setting, one of another type, or an impossible value.
    """
    values = typed(settings, default_settings(), "paper")
    phases = {name: values.pop(name) for name in PHASES}
    for name in SCORING:
        values.pop(name)
    steps, share = phases["steps"], phases["first_share"]
    if steps < 1 or not 0 <= share <= 1:
        raise UserError(f"steps = {steps}, first_share = {share}; expected 1 step or more and a share from 0 to 1")
    first = round(steps * share)
    return dataclasses.replace(
        BASE,
        **values,
        seed=seed,
        phases=(
            Phase(first, phases["first_latent_mse"], phases["first_gamma2"], phases["first_point_weights"]),
            Phase(steps - first, phases["latent_mse"], phases["gamma2"], phases["point_weights"]),
        ),
    )


def restoration_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the `restore.json` with which all arms are scored."""
    return {
        "color": settings["color"],
        "process_size": settings["process_size"],
        "posterior": settings["posterior"],
    }
