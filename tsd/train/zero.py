"""DeepSpeed's ZeRO-2 for the adapters' optimisers: gradients and moments are sharded over the processes.

DeepSpeed expects one engine to own a model and its optimiser. Here two optimisers, the student's and the critic's,
train adapters of one model, so each gets its own engine over its adapters' parameters only. This code runs the forward
pass, and the engine's hooks collect the gradients. Processes and autocast are accelerate's, as under DDP. Parameters
are replicated in every process, so checkpoints are the same as with every other launcher.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsd.config import RunConfig
from tsd.errors import UserError

SWITCH = "ACCELERATE_USE_DEEPSPEED"


def zero_requested() -> bool:
    """Whether `accelerate launch` was given a DeepSpeed configuration."""
    return os.environ.get(SWITCH, "false").lower() == "true"


def zero_settings(config: RunConfig) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization` section from the launcher's settings.

    Raises:
        UserError: a stage, an offload, a precision or an optimiser that is not supported; or deepspeed is missing.
    """
    settings: dict[str, Any] = {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file.lower() != "none":
        settings |= json.loads(Path(file).read_text()).get("zero_optimization", {})
    offloads = [
        os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{state}_DEVICE", "none") for state in ("OPTIMIZER", "PARAM")
    ]
    offloaded = any(device != "none" for device in offloads) or any("offload" in name for name in settings)
    if settings["stage"] not in (1, 2) or offloaded:
        raise UserError("of DeepSpeed, ZeRO stages 1 and 2 without offloading are covered; to shard the base use FSDP")
    if config.mixed_precision == "fp16" or config.optimizer == "adamw8bit":
        raise UserError("under DeepSpeed use --mixed-precision bf16 (or no) and --optimizer adamw")
    try:
        import deepspeed  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "the launcher asks for DeepSpeed: pip install deepspeed, or take the DDP or FSDP file"
        ) from error
    return settings


class ZeroOptimizer:
    """One engine: AdamW over some adapters, with sharded gradients and moments.

    Args:
        optimizer: an optimiser of `parameters`; learning-rate schedules made from it keep working.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], config: RunConfig) -> None:
        import deepspeed  # pyright: ignore[reportMissingImports]

        self.parameters = parameters
        self.engine: Any = deepspeed.initialize(
            model=nn.ParameterList(parameters),
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": config.batch_size,
                "gradient_accumulation_steps": config.gradient_accumulation,
                "gradient_clipping": config.max_grad_norm,
                "zero_optimization": zero_settings(config),
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 2**31,
            },
        )[0]
        self._open = False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.engine.optimizer.param_groups

    def backward(self, loss: Tensor) -> None:
        """Runs the backward pass of one micro-batch; DeepSpeed divides by the accumulation count itself."""
        if self._open:
            self.engine.step()  # counts the previous micro-batch; only the last one updates parameters
        self.engine.backward(loss)
        self._open = True

    def step(self) -> float:
        """Averages, clips, steps, clears; returns the gradient norm before clipping, the same in all processes."""
        self.engine.step()
        self._open = False
        return float(self.engine.get_global_grad_norm())

    def state_dict(self) -> dict[str, Any]:
        """Returns the state in the form of torch's AdamW over `parameters`, with unsharded moments; a collective."""
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        stepped = [part["step"] for part in self._inner.state.values()]  # none before the first step
        state = {
            number: {
                "step": torch.tensor(float(stepped[0])),
                **{name: safe_get_full_optimizer_state(parameter, name).cpu() for name in ("exp_avg", "exp_avg_sq")},
            }
            for number, parameter in enumerate(self.parameters if stepped else [])
        }
        group = {name: value for name, value in self.param_groups[0].items() if name != "params"}
        return {"state": state, "param_groups": [group | {"params": list(range(len(self.parameters)))}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the state of any launcher's checkpoint; the parameters must hold their values already."""
        from deepspeed.utils import safe_set_full_optimizer_state  # pyright: ignore[reportMissingImports]

        zero = self.engine.optimizer
        zero.refresh_fp32_params()  # DeepSpeed's own copy of this process's part
        if state["state"]:
            step = next(iter(state["state"].values()))["step"]
            (part,) = self.param_groups[0]["params"]
            moments = {name: torch.zeros_like(part) for name in ("exp_avg", "exp_avg_sq")}
            self._inner.state[part] = {"step": torch.as_tensor(float(step)), **moments}
            zero._lazy_init_hp_params_optimizer_state()  # maps each parameter to its part, as the first step does
            for number, saved in state["state"].items():
                for name in moments:
                    safe_set_full_optimizer_state(self.parameters[number], saved[name].to(part), name)
        self.param_groups[0].update({k: v for k, v in state["param_groups"][0].items() if k != "params"})

    @property
    def _inner(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer
