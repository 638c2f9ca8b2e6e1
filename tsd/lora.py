"""LoRA adapters: which modules, which role, and the released file layout, read and written strictly.

Student, critic and teacher are adapters on **one** copy of the base weights; `role` says which of them is active.
The released layout is two files, `transformer.safetensors` and `vae.safetensors`, with keys
`transformer.<module path>.lora_A.weight` / `.lora_B.weight` in *both* (the prefix is the same in the VAE's file).
The scale alpha / rank is 1 in the release, and here.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tsd.atomic import write_safetensors
from tsd.backbone import Backbone
from tsd.errors import UserError

Role = Literal["student", "critic", "teacher"]
STUDENT: Role = "student"
DENOISER_FILE = "transformer.safetensors"
VAE_FILE = "vae.safetensors"
PREFIX = "transformer."
_KEY = re.compile(rf"^{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
# The release lists its VAE targets one by one for SD3's four-block encoder; these are the ones it leaves out.
_VAE_OPTIONAL = re.compile(r"^encoder\.down_blocks\.(0|3)\.resnets\.\d+\.conv_shortcut$")


def denoiser_targets(denoiser: nn.Module, suffixes: tuple[str, ...]) -> list[str]:
    """Full names of the linear and convolution layers whose name ends with one of `suffixes`, in module order."""
    return [name for name in _layers(denoiser) if any(name == s or name.endswith(f".{s}") for s in suffixes)]


def vae_targets(vae: nn.Module) -> list[str]:
    """Every encoder convolution, the mid-block attention, and `quant_conv` where present; the decoder is frozen."""
    return [name for name in _layers(vae) if name.startswith("encoder.") or name == "quant_conv"]


def _layers(module: nn.Module) -> list[str]:
    """Linear and convolution layers by their original names, whether adapters already wrap them or not."""
    return [
        name.removesuffix(".base_layer")
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name
    ]


def attach(module: Any, role: Role, targets: list[str], rank: int, seed: int) -> None:
    """Adds a LoRA adapter named after its role to a diffusers model; B = 0, so the function is unchanged at first.

    A is Gaussian with standard deviation 1 / rank, as released (`init_lora_weights="gaussian"`), drawn from `seed`
    alone. Adapter weights are fp32 whatever the base's precision.

    Raises:
        ValueError: the role already has an adapter here, or there are no targets.
    """
    if role in getattr(module, "peft_config", {}):
        raise ValueError(f"{type(module).__name__} already has a '{role}' adapter")
    if not targets:
        raise ValueError(f"{type(module).__name__} has no module to adapt; expected attention or convolution layers")
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
    trained_before = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several roles are the point
        torch.manual_seed(seed)
        module.add_adapter(config, adapter_name=role)
    for parameter in trained_before:
        parameter.requires_grad_(True)  # peft freezes everything but the newest adapter
    for parameter in adapter_parameters(module, role).values():
        parameter.data = parameter.data.float()


def adapter_parameters(module: nn.Module, role: Role) -> dict[str, nn.Parameter]:
    """The adapter's parameters under their released names without prefix: `<module path>.lora_A.weight`."""
    middle = f".{role}."
    return {
        name.replace(middle, "."): parameter
        for name, parameter in module.named_parameters()
        if ".lora_" in name and middle in name
    }


@contextmanager
def role(module: nn.Module, active: Role) -> Iterator[None]:
    """Makes one role's adapter the active one; a role without an adapter is the bare base.

    Only which weights the forward pass reads is changed: `requires_grad` is left as it was, so switching roles can
    neither unfreeze a frozen adapter nor freeze a trained one (peft's own `set_adapter` does both).
    """
    layers: list[Any] = [
        layer for layer in module.modules() if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")
    ]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter = [active] if active in layer.lora_A else []
        layer._disable_adapters = active not in layer.lora_A
    try:
        yield
    finally:
        for layer, (adapter, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = adapter, disabled


def read_lora(path: Path) -> dict[str, Tensor]:
    """The tensors of a released LoRA file by `<module path>.lora_A.weight`, in fp32.

    Raises:
        UserError: no such file, not safetensors, or a key that is not of the released layout.
    """
    if not path.is_file():
        raise UserError(f"no LoRA file at {path}; expected {DENOISER_FILE} and {VAE_FILE} in the folder {path.parent}")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    foreign = [key for key in state if not _KEY.match(key)]
    if foreign:
        raise UserError(
            f"{path}: {_some(foreign)} is not of the released layout {PREFIX}<module path>.lora_(A|B).weight"
        )
    return {key.removeprefix(PREFIX): tensor.float() for key, tensor in state.items()}


def load_adapter(
    module: nn.Module, role: Role, path: Path, allowed: list[str], optional: re.Pattern[str] | None = None
) -> int:
    """Attaches a role's adapter from a file, strictly; returns its rank.

    Args:
        allowed: every module that may be adapted; all of them must be, except those `optional` matches.

    Raises:
        UserError: a missing, extra or misshapen key, named; or adapters of several ranks.
    """
    state = read_lora(path)
    adapted = {name.rsplit(".lora_", 1)[0] for name in state}
    required = {name for name in allowed if optional is None or not optional.match(name)}
    _refuse(path, "adapts modules this model does not have or does not adapt", sorted(adapted - set(allowed)))
    targets = [name for name in allowed if name in adapted or name in required]
    expected = {f"{name}.lora_{side}.weight" for name in targets for side in "AB"}
    _refuse(path, "lacks", sorted(expected - set(state)))
    ranks = {tensor.shape[0] for name, tensor in state.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise UserError(f"{path} mixes the ranks {sorted(ranks)}; expected one rank for all modules")
    rank = ranks.pop()
    attach(module, role, targets, rank, seed=0)
    parameters = adapter_parameters(module, role)
    for name, parameter in parameters.items():
        if state[name].shape != parameter.shape:
            raise UserError(
                f"{path}: {PREFIX}{name} has shape {tuple(state[name].shape)}; this model at rank {rank} needs "
                f"{tuple(parameter.shape)}"
            )
        parameter.data.copy_(state[name])
        parameter.requires_grad_(False)
    return rank


def load_initial(module: nn.Module, path: Path) -> None:
    """Copies a released LoRA file into the student adapter that is already attached, strictly, for further training.

    Raises:
        UserError: its modules or its rank are not those of the attached adapter.
    """
    state, parameters = read_lora(path), adapter_parameters(module, STUDENT)
    _refuse(path, "lacks", sorted(set(parameters) - set(state)))
    _refuse(path, "adapts modules this run does not", sorted(set(state) - set(parameters)))
    odd = [name for name in parameters if parameters[name].shape != state[name].shape]
    _refuse(path, "has another rank than this run (--rank, --vae-rank), or shape, at", odd)
    for name, parameter in parameters.items():
        parameter.data.copy_(state[name])


def load_student(backbone: Backbone, folder: str | Path, *, merge: bool = True) -> None:
    """Loads a student (released layout) onto a backbone; merged into the weights, it costs nothing at inference.

    Raises:
        UserError: see `load_adapter`; the backbone is left unusable then, load it again.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no LoRA folder at {folder}; expected one with {DENOISER_FILE} and {VAE_FILE}")
    allowed = denoiser_targets(backbone.denoiser, backbone.family.student_targets)
    load_adapter(backbone.denoiser, STUDENT, folder / DENOISER_FILE, allowed)
    load_adapter(backbone.vae, STUDENT, folder / VAE_FILE, vae_targets(backbone.vae), _VAE_OPTIONAL)
    for module in (backbone.denoiser, backbone.vae):
        if merge:
            merge_adapter(module, STUDENT)
        else:
            module.to(backbone.device)


def merge_adapter(module: Any, role: Role) -> None:
    """Adds B·A to the base weights and removes the adapter; in fp32 per layer, rounded to the base's dtype once."""
    module.fuse_lora(adapter_names=[role])
    module.unload_lora()


def save_student(backbone: Backbone, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes the student's adapters in the released layout, atomically, as the two files named above."""
    for module, file in ((backbone.denoiser, DENOISER_FILE), (backbone.vae, VAE_FILE)):
        state = {
            f"{PREFIX}{name}": parameter.detach().to("cpu", dtype).contiguous()
            for name, parameter in adapter_parameters(module, STUDENT).items()
        }
        write_safetensors(Path(folder) / file, state)


def _refuse(path: Path, what: str, names: list[str]) -> None:
    if names:
        raise UserError(f"{path} {what}: {_some(names)}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
