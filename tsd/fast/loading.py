"""Loads a student for restoration alone: merged and rewritten while its weights are read, part by part.

Of SD3's denoiser one block at a time is read, gets its LoRA, and is folded; what folding makes superfluous is given
back before the next block is read. So the peak of memory is that of the folded model and one block.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tsd.config import FOLDED_FILE, FastPath
from tsd.errors import UserError
from tsd.fast import sd2, sd3
from tsd.fast.attention import takes_fp32
from tsd.fast.upsampling import use_fast_upsampling
from tsd.model.backbone import Backbone, build_backbone, load_backbone, load_vae, require_prompt
from tsd.model.loading import read_configs, resolve_model, weight_files
from tsd.model.lora import (
    check_adapter,
    check_student,
    denoiser_file,
    denoiser_targets,
    load_student,
    merge_vae_adapter,
    merged_weight,
)
from tsd.model.prompt import PromptEmbeds, load_prompts

_REWRITES = {"sd3": sd3.rewrite, "sd2": sd2.rewrite}


def load_fast(
    model: str | Path,
    lora: Path | None,
    prompt_embeds: str | Path | None,
    fast: FastPath,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Backbone, FastPath]:
    """Loads a student with its LoRA merged and its denoiser rewritten.

    Args:
        model: folder in diffusers layout or hub id.
        lora: folder of the student's LoRA; None if it is merged into the model's weights already.
        prompt_embeds: folder with the student's prompt; None for the model folder's own.
        fast: what to rewrite.

    Returns:
        The backbone, and what was done: a model that a measure does not fit keeps its plain form.

    Raises:
        UserError: as `load_backbone` and `load_student`.
    """
    backbone, done = _load(model, lora, prompt_embeds, fast, torch.device(device), dtype)
    return backbone, replace(done, attention=done.attention and takes_fp32(torch.device(device), dtype))


def _load(
    model: str | Path,
    lora: Path | None,
    prompt_embeds: str | Path | None,
    fast: FastPath,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Backbone, FastPath]:
    folder = resolve_model(model)
    family, configs = read_configs(folder)
    prompts = load_prompts(folder, prompt_embeds, family.prompt_widths(configs["denoiser"]))
    backbone = build_backbone(family, configs, prompts, str(model))
    if (folder / family.denoiser_folder / FOLDED_FILE).is_file():
        _require_own_prompt(folder, prompts["default"], family.prompt_widths(configs["denoiser"]))
        return _load_folded(backbone, folder, fast, device, dtype)
    files = _tensor_files(weight_files(folder / family.denoiser_folder))
    if family.name not in _REWRITES or not _is_streamable(backbone.denoiser, files):
        backbone = load_backbone(model, device=device, dtype=dtype, prompt_embeds=prompt_embeds)
        if lora is not None:
            load_student(backbone, lora, merge=True)
        return backbone, rewrite(backbone, fast)
    state: dict[str, Tensor] = {}
    vae = load_vae(folder, dtype)
    if lora is not None:
        check_student(lora, family)
        allowed = denoiser_targets(backbone.denoiser, family.student_targets)
        _, state = check_adapter(backbone.denoiser, lora / denoiser_file(family), family, allowed)
        merge_vae_adapter(vae, lora, family)
    backbone.vae = vae.eval().requires_grad_(False).to(device)
    backbone.prompts = {name: prompt.to(device, dtype) for name, prompt in prompts.items()}
    return backbone, rewrite(backbone, fast, _Weights(backbone.denoiser, files, state, device, dtype))


def rewrite(backbone: Backbone, fast: FastPath, load: Any = lambda part: None) -> FastPath:
    """Rewrites a backbone's denoiser, whose student is merged, in place; returns what was done.

    Args:
        load: called with the name of each part of the denoiser before its weights are read.
    """
    if backbone.family.name not in _REWRITES:
        raise NotImplementedError(backbone.family.name)
    prompt = require_prompt(backbone, "default")
    embeds = prompt.embeds
    time = torch.full((1,), backbone.process.last_time, device=embeds.device)
    with torch.no_grad():
        done = _REWRITES[backbone.family.name](backbone.denoiser, prompt, backbone.process.timestep(time), fast, load)
    backbone.denoiser.eval().requires_grad_(False)
    backbone.folded = done.fold
    return done


class _Weights:
    """Puts tensors of files, with the LoRA merged, in the place of those on `meta`, when a part is asked for."""

    def __init__(
        self,
        denoiser: nn.Module,
        files: dict[str, Path],
        lora: dict[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.denoiser, self.files, self.lora, self.device, self.dtype = denoiser, files, lora, device, dtype

    def __call__(self, part: str) -> None:
        module = self.denoiser.get_submodule(part)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_meta:
                self._fill(module, name, f"{part}.{name}" if part else name)

    def _fill(self, module: nn.Module, name: str, full_name: str) -> None:
        path = self.files[full_name]
        try:
            with safe_open(path, framework="pt") as file:
                value = file.get_tensor(full_name)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        # Cloned where nothing converts it: a mapped file must not change under a running model.
        value = value.to(self.device, self.dtype, copy=True)
        value = merged_weight(value, self.lora, full_name.removesuffix(".weight"))
        place, _, leaf = name.rpartition(".")
        owner = module.get_submodule(place)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        else:
            owner._buffers[leaf] = value


def _require_own_prompt(folder: Path, given: PromptEmbeds, widths: tuple[int, int | None]) -> None:
    own = load_prompts(folder, None, widths)["default"]
    same = given.embeds.shape == own.embeds.shape and torch.equal(given.embeds, own.embeds)
    if not same or (own.pooled is not None and not torch.equal(own.pooled, given.pooled)):  # pyright: ignore
        raise UserError(
            f"{folder} is a student folded for its own prompt, and another was given; leave --prompt-embeds away, or "
            f"use the base model with the LoRA"
        )


def _load_folded(
    backbone: Backbone, folder: Path, fast: FastPath, device: torch.device, dtype: torch.dtype
) -> tuple[Backbone, FastPath]:
    """Loads what `tsd export --fold` wrote: the rewritten network is built without data, then filled."""
    if not fast.fold:
        raise UserError(
            f"{folder} is a folded student and has no plain form; use the base model with the LoRA, or a student "
            f"exported without --fold"
        )
    denoiser, prompts = backbone.denoiser, backbone.prompts
    backbone.prompts = {name: prompt.to("meta") for name, prompt in prompts.items()}
    done = rewrite(backbone, replace(fast, text=True, qkv=True, upsample=False))
    files = _tensor_files([folder / backbone.family.denoiser_folder / FOLDED_FILE])
    if set(files) != set(denoiser.state_dict()):
        raise UserError(f"{folder} was folded by another version of this program; export it anew")
    _Weights(denoiser, files, {}, device, dtype)("")
    if fast.upsample:
        use_fast_upsampling(denoiser)
    backbone.vae = load_vae(folder, dtype).eval().requires_grad_(False).to(device)
    backbone.prompts = {name: prompt.to(device, dtype) for name, prompt in prompts.items()}
    return backbone, replace(done, upsample=fast.upsample)


def _tensor_files(paths: list[Path]) -> dict[str, Path]:
    """The file of every tensor of a network on disk, by the tensor's name."""
    found: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    return found


def _is_streamable(denoiser: nn.Module, files: dict[str, Path]) -> bool:
    """Whether the files hold exactly the tensors of the network; diffusers renames some of older files."""
    tensors = {name for name, _ in [*denoiser.named_parameters(), *denoiser.named_buffers()]}
    return tensors == set(files)
