"""Any network spandrel can load: a path to its weights is enough (ESRGAN, Compact, SwinIR, HAT, DAT, ...).

spandrel recognises the architecture from the names and shapes in the state dict. The file is read here, not by
spandrel: once, so that the hashed bytes are the loaded bytes, and only as safetensors or with `weights_only=True`, so
that nothing in it can run. Architectures with restrictive licences are available if the user has installed
spandrel_extra_arches. The paper's GANs, which have cards, are in gan.py.
"""

import functools
import hashlib
import importlib.util
import io
import pickle
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.methods.base import MethodSpec
from bench.methods.spandrel.tiling import in_tiles
from bench.methods.stages import Boundary
from bench.options import SCALE, RunOptions
from bench.store.missing import Missing
from tsd.console.stages import TILES, Progress, silent
from tsd.errors import UserError

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor
    from torch import Tensor, nn


class SpandrelMethod:
    """The network in a file, under the method contract.

    The file is read and hashed at once; the network is built when it is first needed. Images that break the network's
    size rules are padded by reflection and cropped back by spandrel.

    Args:
        sha256: the hash the file must have; None accepts any.

    Raises:
        UserError: no such file, or another hash.
    """

    def __init__(self, path: Path, options: RunOptions, sha256: str | None = None) -> None:
        options.require_dtype()
        self.path = path
        self.options = options
        self.progress: Progress = silent
        self.data, self.sha256 = _read(path)
        if sha256 is not None and self.sha256 != sha256:
            raise UserError(
                f"{path} has sha256 {self.sha256}, expected {sha256}: the file is damaged or another one. Put the "
                f"right file there, or run this one under its own name with spandrel:{path}"
            )

    @functools.cached_property
    def network(self) -> "ImageModelDescriptor":
        """The network, in the precision and on the device asked for.

        Raises:
            UserError: not a plain state dict, an architecture spandrel does not know, not RGB x4, or no such device
                or precision for it.
        """
        self.options.require_device()
        require_spandrel()
        parameters = self.parameters(read_state_dict(self.path, self.data))
        network = build(self.path, parameters, None if self.options.any_scale else SCALE)
        self.check(network)
        self.data = b""
        return self.placed(network)

    def placed(self, network: "ImageModelDescriptor") -> "ImageModelDescriptor":
        """The network in the precision and on the device asked for.

        Raises:
            UserError: it cannot run in that precision.
        """
        dtype = self.options.dtype
        supported = {"fp32": True, "bf16": network.supports_bfloat16, "fp16": network.supports_half}
        if not supported[dtype]:
            able = ", ".join(name for name, runs in supported.items() if runs)
            raise UserError(f"{network.architecture.name} ({self.path.name}) cannot run in {dtype}, only in {able}")
        network.to(self.options.device, self.options.torch_dtype())
        network.model.eval().requires_grad_(False)
        return network

    def parameters(self, state_dict: dict[str, object]) -> dict[str, object]:
        """Takes the network's parameters out of the file; here spandrel guesses which they are."""
        from spandrel import canonicalize_state_dict

        return canonicalize_state_dict(state_dict)

    def check(self, network: "ImageModelDescriptor") -> None:
        """Raises UserError if it is not the expected network; here every network is accepted."""

    def enlarge(self, image: "Tensor") -> "Tensor":
        """Runs the network on one image that is on its device and in its precision."""
        return self.network(image)

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        tiles = self.options.tiles
        if tiles is None or max(lr.shape[-2:]) <= tiles.side or self.network.tiling.name == "INTERNAL":
            return self._restore(lr)
        core, told = tiles.side - 2 * tiles.context, functools.partial(self.progress, TILES)
        return in_tiles(self._restore, lr, scale=self.scale, core=core, context=tiles.context, progress=told)

    def _restore(self, lr: "Tensor") -> "Tensor":
        import torch

        # Copied, since an architecture may write into its input; cloned, since spandrel returns an inference tensor.
        image = lr.to(self.options.device, self.network.dtype, copy=True)
        return self.enlarge(image).to("cpu", torch.float32).clone()

    @property
    def scale(self) -> int:
        """How many times as large its results are. Loads the network."""
        return self.network.scale

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before large images, as spandrel says of the architecture."""
        if self.options.tiles is None or self.network.tiling.name == "SUPPORTED":
            return ()
        name = self.network.architecture.name
        if self.network.tiling.name == "INTERNAL":
            return (f"{name} makes tiles of its own: it gets photographs whole",)
        return (f"{name} looks at whole images: tiles may leave seams; --tile 0 takes photographs whole",)

    def boundaries(self) -> Sequence[Boundary]:
        assert self.network is not None  # loads it
        return [Boundary("denoise", self, "enlarge", "copy")]

    def networks(self) -> "dict[str, nn.Module]":
        return {"network": self.network.model}

    def provenance(self) -> dict[str, object]:
        facts = architecture_facts(self.network)
        return {"weights": {self.path.name: self.sha256}, **facts, "dtype": self.options.dtype}


def architecture_facts(network: "ImageModelDescriptor") -> dict[str, object]:
    """Describes the network that spandrel made of the weights, JSON-able."""
    rules = network.size_requirements
    return {
        "architecture": str(network.architecture.id),
        "tags": list(network.tags),
        "parameters": sum(p.numel() for p in network.model.parameters()),
        "scale": network.scale,
        "size_rules": {"minimum": rules.minimum, "multiple_of": rules.multiple_of, "square": rules.square},
    }


def require_spandrel() -> None:
    """Raises UserError where the package is not installed; imports nothing."""
    if importlib.util.find_spec("spandrel") is None:
        raise UserError("spandrel is not installed; `pip install spandrel` (it is in the extra `bench`)")


def build(path: Path, state_dict: dict[str, object], scale: int | None = SCALE) -> "ImageModelDescriptor":
    """Builds the network of a state dict that was read from `path`.

    Args:
        scale: how many times it must enlarge; None for any number.

    Raises:
        UserError: spandrel does not recognise it, tensors are missing or of another shape, it has another scale, or
            does not lead from RGB to RGB.
    """
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    _install_extra_architectures()
    try:
        network = ModelLoader().load_from_state_dict(state_dict)
    except UnsupportedModelError as error:
        raise UserError(
            f"spandrel does not recognise the network in {path} (its state dict fits no known architecture); some "
            "need the package spandrel_extra_arches"
        ) from error
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, AssertionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"spandrel recognises the network in {path} but cannot build it ({reason:.300}); the file is incomplete or "
            "of another version"
        ) from error
    if not isinstance(network, ImageModelDescriptor):
        raise UserError(f"{path} is a {network.architecture.name} for {network.purpose}; expected an upscaler")
    form = (network.scale, network.input_channels, network.output_channels)
    if form != (form[0] if scale is None else scale, 3, 3):
        command = f"bench apply {shlex.quote(f'spandrel:{path}')} photos/"
        raise UserError(
            f"{path} is a {network.architecture.name} network with scale x{form[0]}, {form[1]} input and {form[2]} "
            f"output channels; expected {'' if scale is None else f'x{scale} '}from RGB to RGB"
            f"{f'. For photographs it serves as it is: `{command}`' if form[1:] == (3, 3) else ''}"
        )
    return network


def spandrel_spec(path: Path, name: str, display: str) -> MethodSpec:
    """The row of `spandrel:PATH`."""

    def load(options: RunOptions) -> SpandrelMethod:
        return SpandrelMethod(path, options)

    def missing(options: RunOptions) -> list[Missing]:
        if path.is_file():
            return []
        return [Missing(path.name, str(path), "wherever its authors publish it", None, None, display)]

    return MethodSpec(
        name=name,
        display=display,
        steps=1,
        kind="gan",
        summary=f"network in {path.name}, loaded by spandrel",
        licence="that of the weights",
        load=load,
        missing=missing,
        tiles=True,
    )


def _read(path: Path) -> tuple[bytes, str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}; expected a .pth, .pt, .ckpt or .safetensors file") from error
    except OSError as error:
        raise UserError(f"{path} could not be read: {error}; expected a file of network weights") from error
    return data, hashlib.sha256(data).hexdigest()


def read_state_dict(path: Path, data: bytes) -> dict[str, object]:
    """Reads the state dict in `data` without running anything."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if path.suffix == ".safetensors":
            return dict(load(data))
        state_dict = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is not a plain state dict ({reason}); expected tensors only, as safetensors or as a .pth that "
            "loads with weights_only=True"
        ) from error
    if not isinstance(state_dict, dict):
        raise UserError(f"{path} holds a {type(state_dict).__name__}; expected a state dict of tensors")
    return state_dict


def _install_extra_architectures() -> None:
    """Adds spandrel_extra_arches to spandrel's registry, where that package is installed."""
    try:
        import spandrel_extra_arches  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    spandrel_extra_arches.install(ignore_duplicates=True)
