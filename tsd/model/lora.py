"""LoRA adapters: the modules they adapt, the roles they play, and the released file layout, read and written strictly.

Student, critic and teacher are adapters on **one** copy of the base weights; `role` says which of them is active.
The released layout is two files, `transformer.safetensors` and `vae.safetensors`, with keys
`transformer.<module path>.lora_A.weight` / `.lora_B.weight` in *both* (the prefix is the same in the VAE's file).
Nothing was released for the SD2 family; its files use `unet` in place of `transformer`.

The scale of an adapter, alpha / rank, is 1 in the release, and in what is trained here. A file of another scale says so
in its header, in keys `<module path>.alpha`, or in an `adapter_config.json` beside it (`tsd.model.lora_scale`). Reading
multiplies the scale into B, so that everything after it deals with a scale of 1.
"""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tsd.config import ADAPTER_CONFIG, TrainConfig
from tsd.errors import UserError, some
from tsd.files import write_safetensors, write_text
from tsd.model.backbone import Backbone
from tsd.model.family import Family
from tsd.model.loading import FAMILIES
from tsd.model.lora_scale import scale_of, stated_scale
from tsd.model.sharded import full_tensor
from tsd.seeds import seed_for

Role = Literal["student", "critic", "teacher"]
STUDENT: Role = "student"
VAE_FILE = "vae.safetensors"
_KEY = re.compile(r"^(?P<family>[a-z]+)\.(?P<module>.+)\.(lora_(?P<side>[AB])\.weight|alpha)$")
_VAE_MODULES = r"encoder\..*|quant_conv"
# The release lists its VAE targets one by one for SD3's four-block encoder; these are the ones it leaves out.
_VAE_OPTIONAL = re.compile(r"^encoder\.down_blocks\.(0|3)\.resnets\.\d+\.conv_shortcut$")


def denoiser_file(family: Family) -> str:
    """Name of the denoiser's LoRA file: `transformer.safetensors` or `unet.safetensors`."""
    return f"{family.denoiser_folder}.safetensors"


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
    from peft import LoraConfig  # it imports transformers: seconds that restoring does without

    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
    trained_before = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several roles are intended
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

    This changes only which weights the forward pass reads. `requires_grad` is left as it was, so switching roles can
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


def check_lora(path: Path, family: Family) -> int:
    """Checks that a LoRA file has the released layout and is of this family; returns its rank. Reads only the header.

    Raises:
        UserError: no such file, not safetensors, another layout or family, or several ranks.
    """
    if not path.is_file():
        raise UserError(
            f"no LoRA file at {path}; expected {denoiser_file(family)} and {VAE_FILE} in the folder {path.parent}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    prefix = family.denoiser_folder
    layout = f"{prefix}.<module path>.lora_(A|B).weight"
    stated_scale(path, header)  # refuses what is not supported, before its keys look merely foreign
    matches = {key: _KEY.match(key) for key in shapes}
    foreign = [key for key, match in matches.items() if match is None]
    if foreign or not shapes:
        raise UserError(f"{path}: {some(foreign, 5) or 'an empty file'} is not of the released layout {layout}")
    others = sorted({match["family"] for match in matches.values() if match} - {prefix})
    if others:
        raise UserError(
            f"{path} is a student of another family: its keys begin with {', '.join(others)}, those for this "
            f"{family.name.upper()} model with {prefix} ({layout})"
        )
    ranks = {shape[0] for key, shape in shapes.items() if key.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise UserError(f"{path} mixes the ranks {sorted(ranks)}; expected one rank for all modules")
    return ranks.pop()


def read_lora(path: Path, family: Family) -> dict[str, Tensor]:
    """The tensors of a LoRA file by `<module path>.lora_A.weight`, in fp32, with the scale multiplied into B.

    Raises:
        UserError: values that are NaN or infinite; see also `check_lora`.
    """
    rank = check_lora(path, family)
    with safe_open(path, framework="pt") as file:
        stated = stated_scale(path, file.metadata() or {})
    state = {key.removeprefix(f"{family.denoiser_folder}."): tensor.float() for key, tensor in load_file(path).items()}
    broken = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise UserError(
            f"{path} holds values that are NaN or infinite, at {some(broken)}: it comes from a run that diverged, or "
            f"was stored in a precision that cannot hold it; use an earlier checkpoint"
        )
    alphas = {name.removesuffix(".alpha"): float(state.pop(name)) for name in list(state) if name.endswith(".alpha")}
    for module in sorted({name.rsplit(".lora_", 1)[0] for name in state}):
        scale = scale_of(path, module, rank, stated, alphas.get(module))
        if scale != 1 and f"{module}.lora_B.weight" in state:
            state[f"{module}.lora_B.weight"] *= scale
    return state


def load_adapter(
    module: nn.Module,
    role: Role,
    path: Path,
    family: Family,
    allowed: list[str],
    optional: re.Pattern[str] | None = None,
) -> int:
    """Attaches a role's adapter from a file, strictly; returns its rank.

    Args:
        allowed: every module that may be adapted; the file must adapt all of them, except those `optional` matches.

    Raises:
        UserError: a key is missing, extra or of another shape (the message names it); see also `check_lora`.
    """
    rank, state = check_lora(path, family), read_lora(path, family)
    attach(module, role, _targets(path, state, allowed, optional), rank, seed=0)
    parameters = adapter_parameters(module, role)
    for name, parameter in parameters.items():
        _refuse_shape(path, f"{family.denoiser_folder}.{name}", state[name], tuple(parameter.shape), rank)
        parameter.data.copy_(state[name])
        parameter.requires_grad_(False)
    return rank


def check_adapter(
    module: nn.Module, path: Path, family: Family, allowed: list[str], optional: re.Pattern[str] | None = None
) -> tuple[int, dict[str, Tensor]]:
    """Checks a LoRA file against a module without adapters, as strictly as `load_adapter`; module may be on `meta`.

    Returns:
        Its rank, and its fp32 tensors by `<module path>.lora_A.weight`.

    Raises:
        UserError: see `load_adapter`.
    """
    rank, state = check_lora(path, family), read_lora(path, family)
    for name in _targets(path, state, allowed, optional):
        weight: Any = module.get_submodule(name).weight
        for side, shape in (
            ("A", (rank, *weight.shape[1:])),
            ("B", (weight.shape[0], rank, *(1 for _ in weight.shape[2:]))),
        ):
            key = f"{name}.lora_{side}.weight"
            _refuse_shape(path, f"{family.denoiser_folder}.{key}", state[key], shape, rank)
    return rank, state


def merged_weight(weight: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """The weight of the layer `name` with its LoRA added in fp32 and rounded once; unchanged if it has none.

    Args:
        state: LoRA tensors by `<module path>.lora_A.weight`.
    """
    if f"{name}.lora_A.weight" not in state:
        return weight
    a, b = (state[f"{name}.lora_{side}.weight"].to(weight.device).flatten(1) for side in "AB")
    return (weight.float() + (b @ a).view(weight.shape)).to(weight.dtype)


def _targets(path: Path, state: dict[str, Tensor], allowed: list[str], optional: re.Pattern[str] | None) -> list[str]:
    """The modules that a LoRA file adapts, in module order; refuses a file that adapts others or lacks some."""
    adapted = {name.rsplit(".lora_", 1)[0] for name in state}
    required = {name for name in allowed if optional is None or not optional.match(name)}
    _refuse(path, "adapts modules this model does not have or does not adapt", sorted(adapted - set(allowed)))
    targets = [name for name in allowed if name in adapted or name in required]
    expected = {f"{name}.lora_{side}.weight" for name in targets for side in "AB"}
    _refuse(path, "lacks", sorted(expected - set(state)))
    return targets


def load_initial(module: nn.Module, path: Path, family: Family) -> None:
    """Copies a LoRA file into the student adapter that is already attached, strictly, for further training.

    Raises:
        UserError: its modules or its rank are not those of the attached adapter.
    """
    state, parameters = read_lora(path, family), adapter_parameters(module, STUDENT)
    _refuse(path, "lacks", sorted(set(parameters) - set(state)))
    _refuse(path, "adapts modules this run does not", sorted(set(state) - set(parameters)))
    mismatched = [name for name in parameters if parameters[name].shape != state[name].shape]
    _refuse(path, "has another rank than this run (--rank, --vae-rank), or shape, at", mismatched)
    for name, parameter in parameters.items():
        parameter.data.copy_(state[name])


def attach_roles(
    backbone: Backbone,
    config: TrainConfig,
    init_lora: str | Path | None = None,
    teacher_lora: str | Path | None = None,
    teacher_targets: Sequence[str] = (),
) -> None:
    """Adds all adapters of the distillation to the base: the trained ones of student and critic, and a teacher's.

    Args:
        init_lora: folder of a student whose values the student's adapters start from; without one they start at B = 0.
        teacher_lora: folder of the teacher's LoRA, whose adapter is frozen; without one the teacher is the bare base.
        teacher_targets: the modules that the teacher's LoRA adapts.
    """
    denoiser, vae, family, seed = backbone.denoiser, backbone.vae, backbone.family, config.seed
    student_targets = denoiser_targets(denoiser, family.student_targets)
    attach(denoiser, "student", student_targets, config.rank, seed_for(seed, "student"))
    attach(vae, "student", vae_targets(vae), config.vae_rank, seed_for(seed, "student", "vae"))
    critic_targets = {
        "attention": denoiser_targets(denoiser, family.critic_targets),
        "student": student_targets,
    }
    attach(denoiser, "critic", critic_targets[config.critic_layers], config.critic_rank, seed_for(seed, "critic"))
    if init_lora is not None:
        load_initial(denoiser, Path(init_lora) / denoiser_file(family), family)
        load_initial(vae, Path(init_lora) / VAE_FILE, family)
    if teacher_lora is not None:
        load_adapter(denoiser, "teacher", Path(teacher_lora) / denoiser_file(family), family, list(teacher_targets))


def check_student(folder: Path, family: Family) -> tuple[int, int]:
    """The ranks of a student's two files (denoiser, VAE), from their headers: cheap, before anything heavy is loaded.

    Raises:
        UserError: no such folder, a file missing, damaged, or of another family.
    """
    if not folder.is_dir():
        raise UserError(f"no LoRA folder at {folder}; expected one with {denoiser_file(family)} and {VAE_FILE}")
    absent = [name for name in (denoiser_file(family), VAE_FILE) if not (folder / name).is_file()]
    other = next((file for f in FAMILIES.values() if (folder / (file := denoiser_file(f))).is_file()), None)
    if absent and other not in (None, denoiser_file(family)):
        raise UserError(
            f"the LoRA folder {folder} is a student of another family: it holds {other}, and this "
            f"{family.name.upper()} model needs {denoiser_file(family)}"
        )
    if absent:
        raise UserError(
            f"the LoRA folder {folder} has no {' and no '.join(absent)}; a student is {denoiser_file(family)} and "
            f"{VAE_FILE}, as in the folders tsdsr/ and tsdsr-mse/ that the TSD-SR authors publish"
        )
    return check_lora(folder / denoiser_file(family), family), check_lora(folder / VAE_FILE, family)


def load_student(backbone: Backbone, folder: str | Path, *, merge: bool = True) -> None:
    """Loads a student (released layout) onto a backbone; merged into the weights, it costs nothing at inference.

    Raises:
        UserError: see `check_student` and `load_adapter`; if the latter raises, the backbone must be loaded again.
    """
    folder = Path(folder).expanduser()
    family = backbone.family
    check_student(folder, family)
    allowed = denoiser_targets(backbone.denoiser, family.student_targets)
    if merge:
        merge_lora(backbone.denoiser, folder / denoiser_file(family), family, allowed)
        merge_vae_adapter(backbone.vae, folder, family)
        return
    load_adapter(backbone.denoiser, STUDENT, folder / denoiser_file(family), family, allowed)
    load_adapter(backbone.vae, STUDENT, folder / VAE_FILE, family, vae_targets(backbone.vae), _VAE_OPTIONAL)
    for module in (backbone.denoiser, backbone.vae):
        module.to(backbone.device)


def merge_vae_adapter(vae: Any, folder: Path, family: Family) -> None:
    """Merges the adapter of a student's VAE encoder; see `merge_lora`."""
    merge_lora(vae, folder / VAE_FILE, family, vae_targets(vae), _VAE_OPTIONAL)


def merge_lora(
    module: nn.Module, path: Path, family: Family, allowed: list[str], optional: re.Pattern[str] | None = None
) -> None:
    """Adds a LoRA file's B·A to the weights of a module without adapters, in fp32, each rounded once to its dtype.

    Raises:
        UserError: as `load_adapter`.
    """
    _, state = check_adapter(module, path, family, allowed, optional)
    for name in {key.rsplit(".lora_", 1)[0] for key in state}:
        weight: Any = module.get_submodule(name).weight
        weight.data = merged_weight(weight.data, state, name)


def save_student(
    backbone: Backbone, folder: str | Path, dtype: torch.dtype = torch.float32, *, write: bool = True
) -> None:
    """Writes the student's adapters atomically in the released layout, as `denoiser_file` and `VAE_FILE`.

    Args:
        write: False in all processes but one; if the adapters are sharded, all processes must call, to gather them.
    """
    family = backbone.family
    save_adapter(backbone.denoiser, STUDENT, Path(folder) / denoiser_file(family), family, dtype, write=write)
    save_adapter(backbone.vae, STUDENT, Path(folder) / VAE_FILE, family, dtype, write=write)


def save_adapter(
    module: nn.Module, role: Role, path: Path, family: Family, dtype: torch.dtype = torch.float32, *, write: bool = True
) -> None:
    """Writes the adapter of one role on one module atomically in the released layout; `write` as in `save_student`."""
    state = {
        f"{family.denoiser_folder}.{name}": full_tensor(parameter).to("cpu", dtype).contiguous()
        for name, parameter in adapter_parameters(module, role).items()
    }
    if write:
        write_safetensors(path, state)


def write_adapter_config(folder: Path, rank: int, vae_rank: int | None = None) -> None:
    """Writes the strength of a folder's adapters, a scale of 1, in peft's form: alpha is the rank.

    Args:
        rank: the rank of the denoiser's file.
        vae_rank: that of `VAE_FILE`, if the folder has one.
    """
    others = {_VAE_MODULES: vae_rank} if vae_rank not in (None, rank) else {}
    content = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others,
        "use_rslora": False, "use_dora": False, "bias": "none",
    }  # fmt: skip
    write_text(folder / ADAPTER_CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _refuse(path: Path, problem: str, names: list[str]) -> None:
    if names:
        raise UserError(f"{path} {problem}: {some(names, 5)}")


def _refuse_shape(path: Path, name: str, found: Tensor, wanted: tuple[int, ...], rank: int) -> None:
    if tuple(found.shape) != wanted:
        raise UserError(f"{path}: {name} has shape {tuple(found.shape)}; this model at rank {rank} needs {wanted}")
