"""Plain tensors and those that FSDP has sharded (`DTensor`), by the same verbs."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full value of a tensor; for a sharded one a collective that all processes must join."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def has_dtensors(module: nn.Module) -> bool:
    """Whether a module's weights are gathered from all processes at every forward pass, which all must then enter."""
    return isinstance(next(module.parameters()), DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory: for what is done element by element."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole value, the same in all processes, in the dtype, device and sharding of `like`."""
    if not isinstance(like, DTensor):
        return value.to(like)
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements, src_data_rank=None)
