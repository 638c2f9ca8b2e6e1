"""A trained student with its base model, found and checked without loading weights.

A LoRA of another family, size or layout, a damaged file and a missing prompt are refused here at once, before loading
would refuse them: the architecture is built on tensors without data, and only the headers of files are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tsd.config import recommended_settings
from tsd.errors import UserError
from tsd.export.model_card import Base, known_base
from tsd.model.backbone import build_backbone
from tsd.model.family import Family
from tsd.model.loading import read_configs, resolve_model, weight_files
from tsd.model.lora import VAE_FILE, check_student, denoiser_file, load_student
from tsd.model.prompt import PromptEmbeds, load_prompts
from tsd.restore.student import find_student, is_merged, student_prompts

_HEADER_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Student:
    """A student and all its facts, without its weights.

    Attributes:
        model: the base model as given.
        folder: the base model's local folder.
        base: the known facts of the base model.
        lora: folder of the LoRA files.
        prompts: fp32 prompts by name, including `default`.
        settings: the settings to restore with, by the student's `restore.json` or its training run.
        ranks: LoRA ranks by part (`transformer` or `unet`, and `vae`).
        dtypes: stored precision of the base's weights, by part; `lora_dtypes` is that of the LoRA files.
        sizes: numbers of values in the base's weights, by part.
    """

    model: str | Path
    folder: Path
    base: Base
    family: Family
    lora: Path
    prompts: dict[str, PromptEmbeds]
    settings: dict[str, object]
    ranks: dict[str, int]
    dtypes: dict[str, torch.dtype]
    lora_dtypes: dict[str, torch.dtype]
    sizes: dict[str, int]

    @property
    def parts(self) -> tuple[str, str]:
        """The parts that carry adapters."""
        return self.family.denoiser_folder, "vae"

    @property
    def lora_files(self) -> dict[str, Path]:
        """LoRA files by part."""
        return {self.parts[0]: self.lora / denoiser_file(self.family), "vae": self.lora / VAE_FILE}


def open_student(
    model: str | Path | None = None,
    lora: str | Path | None = None,
    prompt_embeds: str | Path | None = None,
    *,
    base_model: str | None = None,
    settings: Mapping[str, object] | None = None,
) -> Student:
    """Finds a student and checks it, every LoRA key and shape against the base's architecture.

    Args:
        model: base model, a folder in diffusers layout or a hub id; the mini model by default.
        lora: folder with the student in the released layout; by default the model folder's `lora/tsdsr`.
        prompt_embeds: folder with the student's prompt tensors; by default those beside its weights, else the model
            folder's `prompts/`.
        base_model: hub id of the base model, if `model` is a local folder; it is recorded in the export.
        settings: the settings to restore with that follow from its training run; its own `restore.json` wins.

    Raises:
        UserError: something is missing, damaged or does not fit; says what to give.
    """
    model, found = find_student(model, lora)
    if is_merged(found):
        raise UserError(f"{model} is an exported student already; export needs the base model and the LoRA (--lora)")
    folder = resolve_model(model)
    family, configs = read_configs(folder)
    check_student(found, family)
    prompt_embeds = student_prompts(found) if prompt_embeds is None else prompt_embeds
    prompts = load_prompts(folder, prompt_embeds, family.prompt_widths(configs["denoiser"]))
    if "default" not in prompts:
        raise UserError(
            f"neither {model} nor --prompt-embeds has the student's prompt (`default`), which belongs to the export: "
            f"name a folder with it (--prompt-embeds DIR)"
        )
    parts = (family.denoiser_folder, "vae")
    backbone = build_backbone(family, configs, prompts, str(model))
    sizes = {
        part: sum(tensor.numel() for tensor in module.state_dict().values())
        for part, module in zip(parts, (backbone.denoiser, backbone.vae), strict=True)
    }
    load_student(backbone, found, merge=False)  # strict, and without weights: checks names and shapes
    ranks = check_student(found, family)
    files = (found / denoiser_file(family), found / VAE_FILE)
    return Student(
        model=model,
        folder=folder,
        base=known_base(model, base_model),
        family=family,
        lora=found,
        prompts=prompts,
        settings=dict(settings or {}) | recommended_settings(found),
        ranks=dict(zip(parts, ranks, strict=True)),
        dtypes={part: _stored_dtype(weight_files(folder / part)) for part in parts},
        lora_dtypes={part: _stored_dtype([file]) for part, file in zip(parts, files, strict=True)},
        sizes=sizes,
    )


def _stored_dtype(files: list[Path]) -> torch.dtype:
    """The precision of weight files by their headers; fp32 if there are several, since fp32 holds them all."""
    found = set()
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    return _HEADER_DTYPES.get(next(iter(found)), torch.float32) if len(found) == 1 else torch.float32
