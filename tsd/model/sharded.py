"""The same operations on plain tensors and on those that FSDP has sharded (`DTensor`)."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full value of a tensor; for a sharded one this is a collective, which all processes must call."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def has_dtensors(module: nn.Module) -> bool:
    """Whether a module's weights are sharded; all processes must then run every forward pass, which gathers them."""
    return isinstance(next(module.parameters()), DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory; for element-wise operations."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """A full value, the same in all processes, in the dtype, device and sharding of `like`."""
    if not isinstance(like, DTensor):
        return value.to(like)
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements, src_data_rank=None)
