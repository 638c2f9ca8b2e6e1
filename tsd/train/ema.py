"""Exponential moving averages of the adapters.

The student's is validated and saved, while the raw values are trained. The critic's predicts inside L_reg, while the
raw values follow the student.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from tsd.model.sharded import local
from tsd.train.checkpoint import TrainState

STUDENT_GROUPS = ("student.denoiser", "student.vae")
CRITIC_GROUPS = ("critic.denoiser",)


def start_ema(state: TrainState, groups: Sequence[str] = STUDENT_GROUPS) -> None:
    """Adds the average of some groups to the resumable state, equal to their current values."""
    for name in groups:
        state.tensors[f"ema.{name}"] = {key: value.detach().clone() for key, value in state.tensors[name].items()}


def update_ema(state: TrainState, decay: float, steps: int) -> None:
    """Moves the student's average towards the current student; does nothing if none was started.

    It is shorter over the first steps, so it does not lag at B = 0.

    Args:
        steps: steps of the student before this one.
    """
    _move(state, STUDENT_GROUPS, min(decay, (1 + steps) / (10 + steps)))


def update_critic_ema(state: TrainState, decay: float) -> None:
    """Moves the critic's average towards the current critic; at decay 0 it becomes equal. Does nothing without one.

    The decay is the configured one from the first update on: the average starts equal to the critic.
    """
    _move(state, CRITIC_GROUPS, decay)


def _move(state: TrainState, groups: Sequence[str], decay: float) -> None:
    for name in groups:
        if average := state.tensors.get(f"ema.{name}"):
            now = state.tensors[name]
            parts = [local(value) for value in average.values()]  # elementwise: shards need not be gathered
            torch._foreach_lerp_(parts, [local(now[key]) for key in average], 1 - decay)


@contextmanager
def averaged(state: TrainState, groups: Sequence[str] = STUDENT_GROUPS) -> Iterator[None]:
    """Inside the block the adapters of `groups` hold their averages (if there are any), afterwards their own values.

    The two change places, so no third copy is held; inside the block the state must be neither saved nor updated.
    """
    names = [name for name in groups if f"ema.{name}" in state.tensors]
    try:
        for name in names:
            _exchange(state.tensors[f"ema.{name}"], state.tensors[name])
        yield
    finally:
        for name in names:
            _exchange(state.tensors[f"ema.{name}"], state.tensors[name])


def _exchange(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for key, tensor in b.items():
        kept = local(tensor).clone()
        local(tensor).copy_(local(a[key]))
        local(a[key]).copy_(kept)
