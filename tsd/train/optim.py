"""Optimisers of the adapters: which, one update, what is saved of them, and when training has diverged."""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from tsd.config import RunConfig
from tsd.errors import UserError
from tsd.model.sharded import full_tensor, sharded_like
from tsd.train.parallel import average_gradients, clip_gradients
from tsd.train.zero import ZeroOptimizer, zero_requested

MAX_OVERFLOWS = 20
"""fp16 steps left out in a row before that counts as divergence: the scale falls by 2^20 meanwhile."""


class DivergenceError(RuntimeError):
    """Training left the finite or the reasonable; the message names step, numbers and the last good checkpoint."""


def require_optimizer(config: RunConfig) -> None:
    """Refuses an optimiser whose package is not installed.

    Raises:
        UserError: says what to install.
    """
    if config.optimizer == "adamw8bit":
        try:
            import bitsandbytes  # noqa: F401 # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                "--optimizer adamw8bit needs the package bitsandbytes: pip install bitsandbytes, or use "
                "--optimizer adamw"
            ) from error


def new_optimizer(config: RunConfig, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """AdamW with this run's constants, its moments in fp32 or in 8 bits."""
    settings: dict[str, Any] = {"lr": lr, "betas": config.adam_betas, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw8bit":
        require_optimizer(config)
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)


RoleOptimizer = AcceleratedOptimizer | ZeroOptimizer
"""One role's optimiser, student's, critic's or teacher's, as the launcher wants it."""


def accelerated(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], config: RunConfig
) -> RoleOptimizer:
    """The optimiser behind accelerate's loss scaling, or DeepSpeed's. Schedules are made from the bare one, before."""
    if zero_requested() and accelerator.num_processes > 1:
        return ZeroOptimizer(optimizer, parameters, config)
    wrapped = accelerator.prepare_optimizer(optimizer)
    assert isinstance(wrapped, AcceleratedOptimizer)
    return wrapped


def backward(accelerator: Accelerator, optimizer: RoleOptimizer, loss: Tensor) -> None:
    """The backward pass of one micro-batch of the turn that `optimizer` ends; divides by the accumulation count."""
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.backward(loss)
    else:
        accelerator.backward(loss)


def update(
    accelerator: Accelerator, optimizer: RoleOptimizer, parameters: list[nn.Parameter], max_norm: float
) -> dict[str, float]:
    """Averages gradients over processes, clips, steps, clears.

    Averaged first, unscaled second: an overflow in one process must make all of them leave the step out.

    Returns:
        `grad_norm` before clipping. Under fp16's loss scaling an overflow is how the scale is found: such a step is
        left out by the scaler, and counted as `overflow` instead of a norm.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return {"grad_norm": optimizer.step()}
    average_gradients(accelerator, parameters)
    accelerator.unscale_gradients(optimizer)
    norm = clip_gradients(parameters, max_norm)
    scaled = accelerator.scaler is not None
    if scaled or math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"overflow": 1.0} if scaled and not math.isfinite(norm) else {"grad_norm": norm}


def refuse_divergence(
    logs: dict[str, float], overflows: int, config: RunConfig, step: int, good: Path | None, accelerator: Accelerator
) -> None:
    """Stops at the first number that is not finite, a gradient norm beyond the limit, or 20 overflows in a row.

    The numbers are the same in all processes, so all of them stop together.
    """
    odd = {name: value for name, value in logs.items() if not math.isfinite(value)}
    odd |= {n: v for n, v in logs.items() if n.endswith("grad_norm") and v > config.abort_grad_norm}
    if overflows >= MAX_OVERFLOWS:
        odd["fp16 overflows in a row"] = float(overflows)
    if odd:
        accelerator.end_training()
        numbers = ", ".join(f"{name} = {value:g}" for name, value in odd.items())
        raise DivergenceError(
            f"training diverged at step {step}: {numbers} (limit of gradient norms: {config.abort_grad_norm:g}). "
            f"Last good checkpoint: {good or 'none yet'}. Try smaller learning rates, or a smaller gamma2."
        )


class OptimizerState:
    """An optimiser's resumable state with whole moments, whether its parameters are sharded or not.

    So a checkpoint written by N processes, under FSDP or not, is read by M.
    """

    def __init__(self, optimizer: RoleOptimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """A collective under FSDP and DeepSpeed."""
        state = self.optimizer.state_dict()
        return {"state": _gathered(state["state"]), "param_groups": state["param_groups"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.optimizer, ZeroOptimizer):
            return self.optimizer.load_state_dict(state)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {
                name: sharded_like(value, parameters[number])
                if isinstance(value, Tensor) and value.shape == parameters[number].shape and value.is_floating_point()
                else value
                for name, value in moment.items()
            }
            for number, moment in state["state"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def _gathered(value: Any) -> Any:
    """Every tensor inside, whole and on the CPU; bitsandbytes nests its quantised moments one level deeper."""
    if isinstance(value, dict):
        return {name: _gathered(inner) for name, inner in value.items()}
    return full_tensor(value).cpu() if isinstance(value, Tensor) else value
