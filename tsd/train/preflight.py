"""Checks of a run before weights are loaded, and the record by which a run is recognised on resumption.

Models are built on the meta device from their configurations; only the headers of LoRA files are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from safetensors import safe_open
from torch import nn
from torch.utils.data import Dataset

from tsd.algorithm.regularisation import OwnRegularisation, load_regularisation
from tsd.config import RunConfig, TrainConfig
from tsd.data.pairs import PairDataset
from tsd.errors import UserError
from tsd.model.backbone import Backbone, build_backbone, require_prompt
from tsd.model.family import Family
from tsd.model.loading import FAMILIES, read_configs, resolve_model
from tsd.model.lora import VAE_FILE, check_lora, check_student, denoiser_file, denoiser_targets, vae_targets
from tsd.model.prompt import PromptEmbeds, load_prompts
from tsd.train import fingerprint
from tsd.train.checkpoint import check_same_run, checkpoint_folder, latest, recorded_unreadable
from tsd.train.feed import as_sources, data_record, degradation_of, open_data, prepared_folder
from tsd.train.optim import require_optimizer
from tsd.train.parallel import check_launcher
from tsd.train.paths import SCALE
from tsd.train.settings import RunSettings

TRACKERS = ("none", *sorted(LOGGER_TYPE_TO_CLASS))


@dataclass(frozen=True)
class Checked:
    """What the checks found.

    Attributes:
        folder: the model's local folder.
        data: the opened data set.
        record: what identifies this run in its checkpoints, see `tsd.train.checkpoint.check_same_run`.
        teacher_targets: modules that the given teacher's LoRA adapts; empty without one.
        regularisation: the function that replaces Eq. 5, if the settings name one.
        summary: lines to print.
    """

    folder: Path
    data: Dataset[dict[str, Any]]
    record: dict[str, Any]
    teacher_targets: list[str]
    regularisation: OwnRegularisation | None
    summary: list[str]


def check_run(settings: RunSettings, config: RunConfig, processes: int) -> Checked:
    """Checks launcher, packages, model, prompts, data, LoRA files and checkpoint against each other and `config`.

    Raises:
        UserError: names the first fault.
    """
    model = settings.model
    own = settings.data if isinstance(settings.data, Dataset) else None
    init_lora, teacher_lora = settings.init_lora, settings.teacher_lora
    if config.mixed_precision == "no" and config.base_dtype != "fp32":
        raise UserError(
            f"--mixed-precision no with --base-dtype {config.base_dtype}: without autocast the base must be fp32; use "
            f"--base-dtype fp32, or --mixed-precision bf16"
        )
    check_launcher(config)
    require_optimizer(config)
    require_tracker(settings.tracker)
    folder = resolve_model(model)
    family, configs = read_configs(folder)
    prompts = load_prompts(folder, settings.prompt_embeds, family.prompt_widths(configs["denoiser"]))
    backbone, distils = build_backbone(family, configs, prompts, str(model)), isinstance(config, TrainConfig)
    if not distils and (init_lora is not None or teacher_lora is not None):
        raise UserError(
            "--init-lora and --teacher-lora are for --stage student alone: the teacher starts from the base"
        )
    for part in (family.denoiser_folder, "vae"):
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(f"{folder / part} holds no .safetensors weights; the model folder is incomplete")
    needed = ["default"] if distils else ["null"]
    if isinstance(config, TrainConfig) and any(phase.gamma2 > 0 for phase in config.phases):
        needed.append("null")
    used = [require_prompt(backbone, name) for name in needed]
    lengths = {name: prompt.embeds.shape[1] for name, prompt in zip(needed, used, strict=True)}
    if own is None:
        _check_side(f"crop is {config.crop}", config.crop, backbone)
    regularisation = None
    if isinstance(config, TrainConfig):
        regularisation = load_regularisation(config, backbone.process, backbone.vae.config["latent_channels"])
    teacher_targets: list[str] = []
    if isinstance(config, TrainConfig) and init_lora is not None:
        _check_initial(Path(init_lora), backbone, config)
    if teacher_lora is not None:
        teacher_targets = _check_teacher(Path(teacher_lora), backbone)
    newest = None if settings.output is None else latest(checkpoint_folder(settings.output))
    data = open_data(settings.data, config, processes, None if settings.output is None else Path(settings.output))
    if newest is not None and isinstance(data, PairDataset):
        data.rejoin(recorded_unreadable(newest))
    prepared = None if isinstance(settings.data, Dataset) else prepared_folder(as_sources(settings.data))
    if own is not None:
        lengths |= _check_item(own[0], type(own).__name__, backbone, family.prompt_widths(configs["denoiser"]))
    if prepared is not None:
        data.require(  # pyright: ignore[reportAttributeAccessIssue]
            folder,
            crop=config.crop,
            usm=config.usm,
            degradation=degradation_of(config) if isinstance(config, TrainConfig) and not config.degrade_anew else None,
            scale=SCALE if distils else None,
        )
        shapes = data.settings["prompt_shapes"]  # pyright: ignore[reportAttributeAccessIssue]
        if shapes:
            lengths["captions"] = shapes["prompt_embeds"][-2]
    if distils and len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(
            f"prompts of different lengths in tokens ({found}) cannot share a batch: make them alike with "
            f"`tsd prompts` (with T5 or without, for all of them)"
        )
    record = {
        "stage": "student" if distils else "teacher",
        "global_batch": config.global_batch(processes),
        "model": fingerprint.of_folder(folder, (family.denoiser_folder, "vae", "scheduler")),
        "prompts": fingerprint.of_tensors([t for prompt in used for t in _tensors(prompt)]),
        **data_record(data, prepared),
        "init_lora": None if init_lora is None else fingerprint.of_folder(Path(init_lora)),
        "teacher_lora": None if teacher_lora is None else fingerprint.of_folder(Path(teacher_lora)),
    }
    if isinstance(config, TrainConfig):
        record["regularisation"] = config.regularisation if regularisation is None else regularisation.identity
    if isinstance(data, PairDataset) and data.listing():
        record["unreadable"] = data.listing()
    if newest is not None:
        check_same_run(newest, config, record)
    count = sum(parameter.numel() for parameter in backbone.denoiser.parameters())
    found = f"{len(data.images):,} images, " if isinstance(data, PairDataset) else ""
    if prepared is not None:
        found = f"{data.record['counts']['crops']:,} prepared crops, "  # pyright: ignore[reportAttributeAccessIssue]
    summary = [
        f"model: {family.name.upper()} family, denoiser of {count:,} parameters, crops of multiples of "
        f"{backbone.pixel_multiple} pixels",
        f"data: {found}{config.total_steps:,} steps of {record['global_batch']} samples "
        f"({processes} process{'es' * (processes > 1)} x {config.gradient_accumulation} micro-batches x "
        f"{config.batch_size})",
        f"student to start from: {init_lora or 'none (B = 0)'}; teacher's LoRA: {teacher_lora or 'none'}",
        f"resuming: {f'{newest} fits' if newest is not None else 'nothing to resume'}",
    ]
    return Checked(folder, data, record, teacher_targets, regularisation, summary)


def require_tracker(name: str) -> None:
    """Refuses a tracker that accelerate does not know, or whose package is missing.

    Raises:
        UserError: lists the trackers that there are.
    """
    if name not in TRACKERS:
        raise UserError(f"there is no tracker {name!r}; choose one of {', '.join(TRACKERS)}")
    available = {str(found) for found in get_available_trackers()}
    if name != "none" and name not in available:
        raise UserError(
            f"the tracker {name!r} needs its package: pip install {name}; on this machine there are "
            f"{', '.join(sorted(available)) or 'no trackers'} (--tracker NAME, or --tracker none)"
        )


def _check_side(described: str, side: int, backbone: Backbone) -> None:
    """Checks a side of the ground truth in pixels against the model."""
    if side % backbone.pixel_multiple:
        raise UserError(f"{described}; this model needs a multiple of {backbone.pixel_multiple}")
    longest = backbone.family.longest_side(backbone.denoiser) * backbone.vae_factor
    if side > longest:
        raise UserError(f"{described}; this model has positions for {longest:g} pixels at most")


def _check_item(item: dict[str, Any], name: str, backbone: Backbone, widths: tuple[int, int | None]) -> dict[str, int]:
    """Checks an item of the caller's own data set against the model; returns the length of its captions, if any."""
    channels, height, width = item["hr"].shape
    for side in (height, width):
        _check_side(f"images of {name} are {width}x{height}", side, backbone)
    if channels != backbone.vae.config["in_channels"]:
        raise UserError(
            f"images of {name} have {channels} channels; this model reads {backbone.vae.config['in_channels']}"
        )
    if "prompt_embeds" not in item:
        return {}
    tokens, *found = item["prompt_embeds"].shape
    pooled = item["pool_embeds"].shape[-1] if "pool_embeds" in item else None
    if (*found, pooled) != widths:
        raise UserError(f"captions of {name} have the widths {(*found, pooled)}; this model reads {widths}")
    return {"captions": tokens}


def _check_initial(folder: Path, backbone: Backbone, config: TrainConfig) -> None:
    """Checks that the student to start from has this family and these ranks, and adapts the modules of this run."""
    family = backbone.family
    ranks = check_student(folder, family)
    for file, flag, found, wanted in (
        (denoiser_file(family), "--rank", ranks[0], config.rank),
        (VAE_FILE, "--vae-rank", ranks[1], config.vae_rank),
    ):
        if found != wanted:
            raise UserError(f"{folder / file} has another rank than this run: {found}, not {wanted} ({flag} {found})")
    denoiser = denoiser_targets(backbone.denoiser, family.student_targets)
    _check_shapes(folder / denoiser_file(family), backbone.denoiser, family, denoiser)
    _check_shapes(folder / VAE_FILE, backbone.vae, family, vae_targets(backbone.vae))


def _check_teacher(folder: Path, backbone: Backbone) -> list[str]:
    """Checks a teacher's LoRA and returns the modules it adapts: any of the denoiser's."""
    family = backbone.family
    path = folder / denoiser_file(family)
    others = [f for f in FAMILIES.values() if (folder / denoiser_file(f)).is_file()]
    if others and family not in others:
        raise UserError(
            f"the teacher's LoRA in {folder} is of another family: it holds {denoiser_file(others[0])}, and this "
            f"{family.name.upper()} model needs {denoiser_file(family)}"
        )
    if not path.is_file():
        raise UserError(f"no teacher's LoRA at {path}; `tsd train --stage teacher` writes one")
    check_lora(path, family)
    return _check_shapes(path, backbone.denoiser, family, None)


def _check_shapes(path: Path, module: nn.Module, family: Family, targets: list[str] | None) -> list[str]:
    """Checks that a LoRA file fits the module and adapts exactly `targets` (None: any); returns the adapted modules."""
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if not key.endswith(".alpha")]  # noqa: SIM118
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
    prefix = f"{family.denoiser_folder}."
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    adapted = sorted({key.removeprefix(prefix).rsplit(".lora_", 1)[0] for key in shapes})
    foreign = [name for name in adapted if name not in layers]
    if foreign:
        raise UserError(f"{path} adapts modules this model does not have, e.g. {foreign[0]}")
    if targets is not None and set(targets) != set(adapted):
        odd = sorted(set(targets) ^ set(adapted))
        raise UserError(f"{path} does not adapt the {len(targets)} modules this run adapts; they differ in {odd[0]}")
    for name in adapted:
        layer, keys = layers[name], [f"{prefix}{name}.lora_{side}.weight" for side in "AB"]
        if any(key not in shapes for key in keys):
            raise UserError(f"{path} lacks one half of the adapter at {name}")
        (rank, *inputs), outputs = shapes[keys[0]], shapes[keys[1]]
        weight = tuple(layer.weight.shape)
        one = (1,) * (len(weight) - 2)
        if tuple(inputs) != weight[1:] or outputs != (weight[0], rank, *one):
            raise UserError(
                f"{path}: the adapter at {name} has shapes {shapes[keys[0]]} and {outputs}, for a weight of {weight}; "
                f"it belongs to another model"
            )
    return adapted


def _tensors(prompt: PromptEmbeds) -> list[torch.Tensor]:
    return [prompt.embeds] if prompt.pooled is None else [prompt.embeds, prompt.pooled]
