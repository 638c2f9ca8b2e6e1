"""Exponential moving average of the student's adapters: it is validated and saved, the raw values are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tsd.model.sharded import local
from tsd.train.checkpoint import TrainState

STUDENT_GROUPS = ("student.denoiser", "student.vae")


def start_ema(state: TrainState) -> None:
    """Adds the average to the resumable state; it starts equal to the current student."""
    for name in STUDENT_GROUPS:
        state.tensors[f"ema.{name}"] = {key: value.detach().clone() for key, value in state.tensors[name].items()}


def update_ema(state: TrainState, decay: float) -> None:
    """Moves the average towards the current student. It is shorter over the first steps, so it does not lag at B = 0.

    Does nothing if no average was started.
    """
    decay = min(decay, (1 + state.step) / (10 + state.step))
    for name in STUDENT_GROUPS:
        if average := state.tensors.get(f"ema.{name}"):
            now = state.tensors[name]
            parts = [local(value) for value in average.values()]  # elementwise: shards need not be gathered
            torch._foreach_lerp_(parts, [local(now[key]) for key in average], 1 - decay)


@contextmanager
def averaged(state: TrainState) -> Iterator[None]:
    """Inside the block the adapters hold their average (if there is one), afterwards the trained values again."""
    names = [name for name in STUDENT_GROUPS if f"ema.{name}" in state.tensors]
    kept = {name: {key: value.detach().clone() for key, value in state.tensors[name].items()} for name in names}
    try:
        for name in names:
            _copy(state.tensors[f"ema.{name}"], state.tensors[name])
        yield
    finally:
        for name in names:
            _copy(kept[name], state.tensors[name])


def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    for key, tensor in target.items():
        local(tensor).copy_(local(source[key]))
