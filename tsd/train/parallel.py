"""Several processes by accelerate: how they start, what is sharded, and how gradients and numbers are averaged.

The launcher's configuration (`tsd/assets/accelerate/`) chooses one of three ways:

- **DDP**: every process holds the frozen base and the adapters; the adapters' gradients are averaged explicitly, in
  one collective per turn. A base that plays three roles per step cannot be wrapped in `DistributedDataParallel`,
  whose reducer expects one forward per backward.
- **FSDP** (version 2, `fully_shard`): base and adapters of the denoiser and of the VAE's encoder are sharded, and so
  are the optimiser's moments; FSDP itself averages the gradients. Parameters are then `DTensor`s, and all processes
  together gather a full value (`tsd.model.sharded.full_tensor`).
- **DeepSpeed** ZeRO-2: parameters are replicated, gradients and moments are sharded, and each optimiser has its own
  engine (`tsd.train.zero`).

Nothing is broadcast: sample numbers are global (`tsd.train.feed`), and the adapters start from the same seeds in every
process.
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tsd.config import RunConfig
from tsd.errors import UserError
from tsd.model.sharded import full_tensor
from tsd.train.zero import SWITCH, zero_requested, zero_settings

BUCKET_BYTES = 2**30
"""Gradients are averaged in flat buckets of this size; the adapters of every known model fit into one."""


def check_launcher(config: RunConfig) -> None:
    """Refuses launcher settings that this code does not support, before a process group exists.

    Raises:
        UserError: FSDP's first version, parameters offloaded to the CPU, 8-bit moments under FSDP, or a DeepSpeed
            setting that `tsd.train.zero` does not support.
    """
    if zero_requested():
        zero_settings(config)
    if not fsdp_requested():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP version 1 cannot shard a base with several adapters; set fsdp_version: 2")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError("fsdp_offload_params is not supported; the frozen base is small once sharded: set it to false")
    if config.optimizer == "adamw8bit":
        raise UserError("FSDP shards the moments and --optimizer adamw8bit cannot; use --optimizer adamw")


def fsdp_requested() -> bool:
    """Whether the launcher asks for FSDP. accelerate ignores that on CPUs, but FSDP works there too (gloo)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def new_accelerator(config: RunConfig, output: Path, *, tracker: str, cpu: bool) -> Accelerator:
    """Makes the accelerator of this run; `tracker` is one of accelerate's names, or `none`."""
    AcceleratorState._reset_state()  # a singleton: a second run in this process may have another precision
    asked = os.environ.pop(SWITCH, None)  # accelerate's own DeepSpeed mode wants one engine for everything
    try:
        return Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation,
            log_with=None if tracker == "none" else tracker,
            project_config=ProjectConfiguration(str(output), logging_dir=str(output / "logs")),
            cpu=cpu,
        )
    finally:
        if asked is not None:
            os.environ[SWITCH] = asked


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether this run's models are sharded by FSDP."""
    several = accelerator.num_processes > 1
    return several and (accelerator.distributed_type == DistributedType.FSDP or fsdp_requested())


def shard(accelerator: Accelerator, *modules: nn.Module) -> None:
    """Shards each module over all processes and moves it to this process's device, block by block.

    Blocks are those of diffusers' `_no_split_modules`. FSDP's mixed precision stays off: autocast casts inside the
    layers, while FSDP would also round timesteps and average gradients in half precision. Attach the adapters before
    the call, and collect parameters after it, since sharding replaces the parameter objects.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for module in modules:
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP takes no other layout, channels-last included
        blocks = set(getattr(module, "_no_split_modules", None) or ())
        # Inner blocks first: a UNet's blocks contain others, and FSDP accepts no parameter that is sharded already.
        for block in reversed([inner for inner in module.modules() if type(inner).__name__ in blocks]):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)


def average_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Averages the gradients that FSDP has not averaged over processes, in one collective per `BUCKET_BYTES`."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        torch.distributed.all_reduce(flat)
        flat /= accelerator.num_processes
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """Groups the gradients, in order, by dtype and up to `BUCKET_BYTES` (a larger gradient gets its own group)."""
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        if not buckets or gradient.nbytes > room or gradient.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(gradient)
        room -= gradient.nbytes
    return buckets


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Clips to a total norm over all parameters and shards; returns the norm before, equal in all processes."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return float(full_tensor(norm))


def mean(accelerator: Accelerator, numbers: dict[str, float]) -> dict[str, float]:
    """Averages the numbers over processes in one collective; every process must pass the same names."""
    if accelerator.num_processes == 1 or not numbers:
        return numbers
    packed = torch.tensor(list(numbers.values()), dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(packed)
    return dict(zip(numbers, (packed / accelerator.num_processes).tolist(), strict=True))


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is set in any process, for decisions that all processes must take alike."""
    return mean(accelerator, {"flag": float(flag)})["flag"] > 0
