"""The training loop that the pre-training stages share: schedule, log, checkpoint, resumption.

A step's data and noise depend only on the stage's seed and the step number, so a run that was stopped and started again
passes through the same weights as one that was never stopped.
"""

import csv
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from tsd.console.progress import Progress
from tsd.files import atomic_path
from tsd.mini.optim import set_learning_rates


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Learning-rate factor: a linear rise over `warm_up` steps, then half a cosine down to 0 at `steps`."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def save_atomically(state: object, path: Path) -> None:
    """`torch.save` through a temporary file: `path` is never half written."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def append_row(path: Path, row: dict[str, object]) -> None:
    """Appends one row to a CSV log; the first row of a file also writes the header."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def run_stage(
    name: str,
    folder: Path,
    module: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    *,
    steps: int,
    warm_up: int,
    loss_at: Callable[[int], tuple[Tensor, dict[str, float]]],
    validate: Callable[[], dict[str, float]],
    validate_every: int,
    save_every: int = 250,
    max_norm: float | None = None,
) -> None:
    """Trains `module` for `steps` steps of `loss_at(step)`; resumes from `folder/<name>.pt` if that exists.

    Losses go to `folder/<name>.csv`, one row per validation.

    Raises:
        FloatingPointError: a loss is not finite; the last checkpoint still holds good weights.
    """
    checkpoint, log = folder / f"{name}.pt", folder / f"{name}.csv"
    base = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    start, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        start, seconds = int(state["step"]), float(state["seconds"])
        module.load_state_dict(state["module"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
    module.train()
    began = time.monotonic() - seconds
    averages: dict[str, float] = {}
    bar = Progress(range(start, steps), desc=name, initial=start, total=steps, mininterval=2.0)
    for step in bar:
        set_learning_rates(optimisers, base, schedule(step, steps, warm_up))
        loss, metrics = loss_at(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{name}: the loss is {loss.item()} at step {step}; {checkpoint} holds the last good state"
            )
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), max_norm)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for key, value in metrics.items():
            averages[key] = value if key not in averages else 0.98 * averages[key] + 0.02 * value
        bar.set_postfix({key: f"{value:.4f}" for key, value in averages.items()}, refresh=False)
        done = step + 1
        if done % validate_every == 0 or done == steps:
            module.eval()
            with torch.no_grad():
                measured = validate()
            module.train()
            row: dict[str, object] = {"step": done, "seconds": round(time.monotonic() - began, 1)}
            append_row(log, row | {key: round(value, 5) for key, value in (averages | measured).items()})
        if done % save_every == 0 or done == steps:
            state = {"step": done, "seconds": time.monotonic() - began, "module": module.state_dict()}
            save_atomically(state | {"optimisers": [optimiser.state_dict() for optimiser in optimisers]}, checkpoint)
    module.eval()


def psnr_luma(first: Tensor, second: Tensor) -> float:
    """Mean PSNR in dB of BT.601 luma over a batch (B, 3, H, W) in [-1, 1], clamped, without a border of 4 pixels."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=first.device).view(1, 3, 1, 1) / 255
    lumas = [((image.clamp(-1, 1) + 1) / 2 * weights).sum(1)[:, 4:-4, 4:-4] for image in (first, second)]
    error = (lumas[0] - lumas[1]).square().mean(dim=(1, 2))
    return float((-10 * torch.log10(error.clamp_min(1e-12))).mean())


def in_batches(function: Callable[[Tensor], Tensor], tensor: Tensor, batch: int) -> Tensor:
    """Applies `function` to `tensor` in batches along dimension 0, to limit memory."""
    parts: Iterable[Tensor] = tensor.split(batch)
    return torch.cat([function(part) for part in parts])
