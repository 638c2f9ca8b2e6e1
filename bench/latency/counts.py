"""Operations and parameters of a method, counted while it restores an image.

Two conventions stand side by side. FLOPs are torch's: matrix products, convolutions and attention by `FlopCounterMode`,
a multiplication with its addition as two; operators that it has no formula for are listed by name, so that nothing is
silently zero. MACs are those of the published tables: what hooks on linear and convolution layers see, without the
products of attention, a multiplication with its addition as one.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

# fmt: off
FREE = frozenset((
    "arange", "cat", "clone", "constant_pad_nd", "contiguous", "copy_", "detach", "empty", "empty_like",
    "empty_permuted", "empty_strided", "expand", "fill_", "full", "full_like", "index", "lift_fresh", "new_empty",
    "new_zeros", "ones", "pixel_shuffle", "repeat", "scalar_tensor", "slice", "stack", "split", "split_with_sizes",
    "unbind", "upsample_nearest2d", "_local_scalar_dense", "_to_copy", "_unsafe_view", "zero_", "zeros",
    "zeros_like", "replication_pad2d", "is_pinned", "rand", "randn", "normal_", "native_dropout", "alias",
    "lift_fresh_copy",
))
# fmt: on
"""Operators that only make or move data."""
FLASH_ON_CPU = "_scaled_dot_product_flash_attention_for_cpu"
PACKED_LINEAR = "_linear_pointwise"


@dataclass(frozen=True)
class Operations:
    """What one image takes.

    Attributes:
        flops, macs: by stage.
        uncounted: how often each operator without a formula was called.
        attention: the operators that computed attention: torch's choice of a back end.
    """

    flops: dict[str, int]
    macs: dict[str, int]
    uncounted: dict[str, int]
    attention: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """What a method holds in memory.

    Attributes:
        parameters: of all networks, each once, with weights that lie packed in the processor's own order.
        adapters: those of LoRA adapters that are not merged.
        bytes: of parameters and buffers.
    """

    parameters: int
    adapters: int
    bytes: int


def size_of(networks: Mapping[str, nn.Module]) -> Size:
    """Counts what an image needs loaded."""
    parameters = {id(p): (name, p) for module in networks.values() for name, p in module.named_parameters()}
    buffers = {id(b): b for module in networks.values() for b in module.buffers()}
    packed = [layer.weight for layer in _layers_of(networks) if not isinstance(layer.weight, nn.Parameter)]
    tensors = [*(p for _, p in parameters.values()), *buffers.values(), *packed]
    return Size(
        parameters=sum(p.numel() for p in [*(p for _, p in parameters.values()), *packed]),
        adapters=sum(p.numel() for name, p in parameters.values() if "lora_" in name),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def count_operations(networks: Mapping[str, nn.Module], work: Callable[[Callable[[str], None]], Any]) -> Operations:
    """Runs `work(begin)`, which calls `begin(stage)` where a stage begins, and counts by stage."""
    names = _Names()
    flops: dict[str, int] = {}
    macs: dict[str, int] = {}
    stage, flops_before, macs_before = "", 0, 0
    with (
        _layers_counted(networks) as layers,
        names,
        FlopCounterMode(display=False, custom_mapping=_further()) as counter,
    ):

        def begin(following: str) -> None:
            nonlocal stage, flops_before, macs_before
            now, products = counter.get_total_flops(), layers.total
            if stage:
                flops[stage] = flops.get(stage, 0) + now - flops_before
                macs[stage] = macs.get(stage, 0) + products - macs_before
            stage, flops_before, macs_before = following, now, products

        work(begin)
        begin("")
    return Operations(flops, macs, names.uncounted, tuple(sorted(names.attention)))


class _Names(TorchDispatchMode):
    """Sees the operators that remain once torch has taken composite ones apart."""

    def __init__(self) -> None:
        super().__init__()
        self.uncounted: dict[str, int] = {}
        self.attention: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "attention" in name:
            self.attention.add(name)
        known = func.overloadpacket in flop_registry or name in (FLASH_ON_CPU, PACKED_LINEAR)
        if not known and not _is_free(func, name):
            self.uncounted[name] = self.uncounted.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def _is_free(func: Any, name: str) -> bool:
    return name in FREE or func.is_view


def _further() -> dict[Any, Any]:
    """Formulas that torch, or an older version of it, lacks."""

    def flash(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def packed_linear(x: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    formulas: dict[Any, Any] = {getattr(torch.ops.aten, FLASH_ON_CPU): flash}
    if hasattr(torch.ops.mkldnn, PACKED_LINEAR):
        formulas[getattr(torch.ops.mkldnn, PACKED_LINEAR)] = packed_linear
    return {operator: formula for operator, formula in formulas.items() if operator not in flop_registry}


class _Layers:
    """Multiply-adds that hooks on layers have seen."""

    total = 0

    def saw(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if _is_linear(layer):
            assert isinstance(layer.in_features, int)
            self.total += output.numel() * layer.in_features
        elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
            self.total += inputs[0].numel() * layer.weight[0].numel()
        else:
            assert isinstance(layer, nn.modules.conv._ConvNd)
            self.total += output.numel() * layer.weight[0].numel()


def _layers_of(networks: Mapping[str, nn.Module]) -> list[Any]:
    """Every linear and convolution layer once; those that a LoRA wraps, not the wrapper."""
    found = {id(m): m for network in networks.values() for m in network.modules()}
    return [m for m in found.values() if _is_linear(m) or isinstance(m, nn.modules.conv._ConvNd)]


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, torch's or one whose weight is packed (`tsd.fast.packing`)."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and not list(module.children()))


@contextmanager
def _layers_counted(networks: Mapping[str, nn.Module]) -> Iterator[_Layers]:
    layers = _Layers()
    handles = [layer.register_forward_hook(layers.saw) for layer in _layers_of(networks)]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
