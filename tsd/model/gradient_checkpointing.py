"""Gradient checkpointing with roles: the backward pass recomputes activations with the adapters of the forward pass.

Adapters are active inside `with role(…)`, but the backward pass, and the recomputation with it, runs after that block
has ended, when another role or none is active. Diffusers' own checkpointing would then recompute another function and
silently return wrong gradients. Here every checkpointed block records which adapter each of its layers used in the
forward pass, and the recomputation uses the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def enable_gradient_checkpointing(*models: Any) -> None:
    """Enables checkpointing in diffusers models, for every block that supports it (blocks of denoiser and VAE).

    Only passes that record a graph are affected. Results and gradients are the same as without it, bit for bit where
    the kernels are deterministic.
    """
    for model in models:
        model.enable_gradient_checkpointing(_checkpoint_in_role)


def _checkpoint_in_role(block: nn.Module, *args: Any) -> Any:
    layers = [layer for layer in block.modules() if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")]
    active = [_adapter_state(layer) for layer in layers]
    return checkpoint(
        block,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing inside is random: dropout is off in evaluation mode
        context_fn=lambda: (nullcontext(), _adapters_as_in(layers, active)),
    )


@contextmanager
def _adapters_as_in(layers: list[Any], active: list[tuple[Any, bool]]) -> Iterator[None]:
    before = [_adapter_state(layer) for layer in layers]
    _set_adapter_states(layers, active)
    try:
        yield
    finally:
        _set_adapter_states(layers, before)


def _adapter_state(layer: Any) -> tuple[Any, bool]:
    return layer._active_adapter, layer._disable_adapters


def _set_adapter_states(layers: list[Any], states: list[tuple[Any, bool]]) -> None:
    for layer, (adapter, disabled) in zip(layers, states, strict=True):
        layer._active_adapter, layer._disable_adapters = adapter, disabled
