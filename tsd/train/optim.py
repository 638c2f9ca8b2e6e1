"""The adapters' optimisers: how they are made, one update, their resumable state, and the check for divergence."""

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
"""So many fp16 steps skipped in a row count as divergence: the scale falls by 2^20 meanwhile."""


class DivergenceError(RuntimeError):
    """A number of the training is not finite or too large; the message names step, numbers and last good checkpoint."""


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
"""The optimiser of one role (student, critic or teacher) in the form that the launcher needs."""


def wrap_optimizer(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], config: RunConfig
) -> RoleOptimizer:
    """Wraps the optimiser for accelerate's loss scaling or for DeepSpeed. Make schedules from `optimizer` before."""
    if zero_requested() and accelerator.num_processes > 1:
        return ZeroOptimizer(optimizer, parameters, config)
    wrapped = accelerator.prepare_optimizer(optimizer)
    assert isinstance(wrapped, AcceleratedOptimizer)
    return wrapped


def backward(accelerator: Accelerator, optimizer: RoleOptimizer, loss: Tensor) -> None:
    """Runs the backward pass of one micro-batch of the turn that ends with `optimizer`'s step.

    The loss is divided by the number of micro-batches per step.
    """
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.backward(loss)
    else:
        accelerator.backward(loss)


def loss_scale(accelerator: Accelerator, config: RunConfig) -> float:
    """The factor by which `backward` multiplies the loss of a micro-batch, until the next `update`."""
    scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
    return scale / config.gradient_accumulation


def update(
    accelerator: Accelerator, optimizer: RoleOptimizer, parameters: list[nn.Parameter], max_norm: float
) -> dict[str, float]:
    """Averages gradients over processes, clips, steps, clears.

    Gradients are averaged before they are unscaled: an overflow in one process must make all of them skip the step.

    Returns:
        `grad_norm` before clipping. fp16's loss scaling finds its scale by overflows: the scaler skips such a step,
        and `overflow` is returned instead of a norm.
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


def check_divergence(
    logs: dict[str, float],
    overflows: int,
    config: RunConfig,
    step: int,
    last_good: Path | None,
    accelerator: Accelerator,
) -> None:
    """Raises at the first number that is not finite, a gradient norm beyond the limit, or 20 overflows in a row.

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
            f"Last good checkpoint: {last_good or 'none yet'}. Try smaller learning rates, or a smaller gamma2."
        )


class OptimizerState:
    """An optimiser's resumable state with unsharded moments, whether its parameters are sharded or not.

    So a checkpoint that N processes wrote, with FSDP or without, can be read by M processes.
    """

    def __init__(self, optimizer: RoleOptimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Returns the state; under FSDP and DeepSpeed all processes must call this together."""
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
    """Returns `value` with every tensor unsharded and on the CPU; bitsandbytes nests its quantised moments deeper."""
    if isinstance(value, dict):
        return {name: _gathered(inner) for name, inner in value.items()}
    return full_tensor(value).cpu() if isinstance(value, Tensor) else value
