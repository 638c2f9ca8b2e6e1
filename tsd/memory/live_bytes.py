"""How many bytes of tensors are alive, and at most were: a meter for devices that keep no count of their own.

CUDA's allocator counts itself (`torch.cuda.max_memory_allocated`); the CPU's does not, and on tensors without data
(fake or on the meta device) there is nothing to allocate. Here every operation's outputs are noted by their storage,
so views and tensors saved for backward count once, and leave the count when Python and autograd let go of them.
What a kernel allocates and frees inside itself is not seen.
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
        held: modules and tensors that exist beforehand and belong to the account (weights, optimiser state, a batch).
    """

    def __init__(self, *held: nn.Module | Tensor) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for item in held:
            self.hold(item)

    def hold(self, item: nn.Module | Tensor) -> None:
        """Counts a module's parameters, their gradients and its buffers, or a tensor, from now on."""
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
