"""Several processes by accelerate: how they start, what is sharded, and how gradients and numbers are averaged.

Three ways, chosen by the launcher's configuration alone (`tsd/assets/accelerate/`):

- **DDP**: every process holds the frozen base and the adapters; the adapters' gradients are averaged explicitly, in
  one collective per turn. A base that plays three roles per step cannot be wrapped in `DistributedDataParallel`,
  whose reducer expects one forward per backward.
- **FSDP** (version 2, `fully_shard`): base and adapters of the denoiser and of the VAE's encoder are sharded, so are
  the optimiser's moments; FSDP itself averages the gradients. Parameters are `DTensor`s then, and a whole value is
  gathered by all processes together (`tsd.model.sharded.full_tensor`).
- **DeepSpeed** ZeRO-2: whole parameters, divided gradients and moments, one engine per optimiser (`tsd.train.zero`).

Sample numbers are global (`tsd.train.feed`), the adapters start from the same seeds everywhere: nothing is broadcast.
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
"""Gradients are averaged in flat buckets of this size: one for every model in sight."""


def refuse_launcher(config: RunConfig) -> None:
    """Refuses, before a process group exists, what the launcher asks for and this code cannot do.

    Raises:
        UserError: FSDP's first version, parameters offloaded to the CPU, 8-bit moments under FSDP, or what
            `tsd.train.zero` does not cover of DeepSpeed.
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
    """Whether the launcher asks for FSDP. accelerate itself ignores that on CPUs, where it works as well (gloo)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def start(config: RunConfig, output: Path, *, tracker: str, cpu: bool) -> Accelerator:
    """The accelerator of this run; `tracker` is one of accelerate's names, or `none`."""
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

    Blocks are diffusers' own `_no_split_modules`. FSDP's mixed precision stays off: autocast casts inside the layers,
    while FSDP would also round timesteps and average gradients in half precision. Adapters must be attached before;
    collect parameters afterwards, they are other objects then.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for module in modules:
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP takes no other layout, channels-last included
        blocks = set(getattr(module, "_no_split_modules", None) or ())
        # Inner blocks first: a UNet's blocks hold others, and FSDP wants no parameter that is cut up already.
        for block in reversed([inner for inner in module.modules() if type(inner).__name__ in blocks]):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)


def average_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Averages over processes what FSDP has not averaged, flattened into one collective (per `BUCKET_BYTES`)."""
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
    """The gradients in their order, in groups of one dtype and at most `BUCKET_BYTES` (a larger gradient is alone)."""
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
    """Clips to a total norm over all parameters, shards included; returns the norm before, the same everywhere."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return float(full_tensor(norm))


def mean(accelerator: Accelerator, numbers: dict[str, float]) -> dict[str, float]:
    """The numbers' means over processes, in one collective; every process calls it with the same names."""
    if accelerator.num_processes == 1 or not numbers:
        return numbers
    packed = torch.tensor(list(numbers.values()), dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(packed)
    return dict(zip(numbers, (packed / accelerator.num_processes).tolist(), strict=True))


def anyone(accelerator: Accelerator, flag: bool) -> bool:
    """Whether any process says so: what one process must not decide alone."""
    return mean(accelerator, {"flag": float(flag)})["flag"] > 0
