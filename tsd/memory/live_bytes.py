"""A meter of the bytes of live tensors and of their peak, for devices that do not count them.

CUDA's allocator counts (`torch.cuda.max_memory_allocated`); the CPU's does not, and tensors without data (fake or on
the meta device) allocate nothing. The meter registers the storage of every operation's outputs, so views and tensors
saved for backward count once, and leave the count when Python and autograd release them. It does not see what a kernel
allocates and frees internally.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside `with LiveBytes(...) as meter`, `meter.live` and `meter.peak` are bytes of distinct tensor storages.

    Args:
        held: modules and tensors that exist before and count too (weights, optimiser state, a batch).
    """

    def __init__(self, *held: nn.Module | Tensor) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for item in held:
            self.hold(item)

    def hold(self, item: nn.Module | Tensor) -> None:
        """Counts from now on a tensor, or a module's parameters, their gradients and its buffers."""
        tensors: Iterable[Tensor] = [item] if isinstance(item, Tensor) else [*item.parameters(), *item.buffers()]
        for tensor in tensors:
            self._note(tensor)
            if tensor.grad is not None:
                self._note(tensor.grad)

    def reset_peak(self) -> None:
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def forget(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)
