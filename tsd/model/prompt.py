"""A prompt as the denoiser reads it, and the folders that prompts are read from.

Nothing that could run code is loaded: safetensors, or `torch.load(weights_only=True)` for the released `.pt` files.
`tsd.prompts.folder` writes such folders.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tsd.errors import UserError


@dataclass(frozen=True)
class PromptEmbeds:
    """A prompt as the denoiser reads it: token embeddings (B, L, D) and, for SD3, a pooled vector (B, P)."""

    embeds: Tensor
    pooled: Tensor | None = None

    def expand(self, batch: int) -> "PromptEmbeds":
        """The same prompt for `batch` samples; a prompt that already has that batch size is returned as it is."""
        if self.embeds.shape[0] == batch:
            return self
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return PromptEmbeds(self.embeds.expand(batch, -1, -1), pooled)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "PromptEmbeds":
        pooled = None if self.pooled is None else self.pooled.to(device=device, dtype=dtype)
        return PromptEmbeds(self.embeds.to(device=device, dtype=dtype), pooled)

    @staticmethod
    def cat(*prompts: "PromptEmbeds") -> "PromptEmbeds":
        pooled = [p.pooled for p in prompts if p.pooled is not None]
        return PromptEmbeds(torch.cat([p.embeds for p in prompts]), torch.cat(pooled) if pooled else None)


def load_prompts(
    model_folder: Path, prompt_embeds: str | Path | None, widths: tuple[int, int | None]
) -> dict[str, PromptEmbeds]:
    """Prompts by name: those of the model folder's `prompts/`, replaced by those of `prompt_embeds` where it has them.

    Args:
        widths: widths of the token embeddings and of the pooled vector, None where the family has none.
    """
    prompts: dict[str, PromptEmbeds] = {}
    if (model_folder / "prompts").is_dir():
        prompts |= read_prompts(model_folder / "prompts", widths)
    if prompt_embeds is not None:
        prompts |= read_prompts(Path(prompt_embeds).expanduser(), widths)
    return prompts


def read_prompts(folder: Path, widths: tuple[int, int | None]) -> dict[str, PromptEmbeds]:
    """The prompts of one folder, in fp32: `default` if the tensors lie in it, else one named after each sub-folder.

    Raises:
        UserError: no such folder, no tensors in it, or tensors that are damaged or of another width.
    """
    if not folder.is_dir():
        raise UserError(f"no prompt folder at {folder}; expected prompt_embeds.pt (and, for SD3, pool_embeds.pt)")
    if _tensor_file(folder, "prompt_embeds") is not None or _tensor_file(folder, "pool_embeds") is not None:
        return {"default": _prompt(folder, widths)}
    named = {entry.name: _prompt(entry, widths) for entry in sorted(folder.iterdir()) if entry.is_dir()}
    if not named:
        raise UserError(f"{folder} holds neither prompt_embeds.pt and pool_embeds.pt nor sub-folders with them")
    return named


def _prompt(folder: Path, widths: tuple[int, int | None]) -> PromptEmbeds:
    embeds = _tensor(folder, "prompt_embeds")
    # The release stores (1, L, D) and (1, P); per-image training files drop the leading 1.
    embeds = embeds[None] if embeds.ndim == 2 else embeds
    if embeds.ndim != 3 or embeds.shape[-1] != widths[0]:
        raise UserError(f"{folder}: prompt_embeds is {tuple(embeds.shape)}; this model reads (1, L, {widths[0]})")
    if widths[1] is None:
        return PromptEmbeds(embeds)
    pooled = _tensor(folder, "pool_embeds")
    pooled = pooled[None] if pooled.ndim == 1 else pooled
    if pooled.ndim != 2 or pooled.shape[-1] != widths[1]:
        raise UserError(f"{folder}: pool_embeds is {tuple(pooled.shape)}; this model reads (1, {widths[1]})")
    return PromptEmbeds(embeds, pooled)


def _tensor_file(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}.safetensors", folder / f"{name}.pt")
    return next((path for path in candidates if path.is_file()), None)


def _tensor(folder: Path, name: str) -> Tensor:
    path = _tensor_file(folder, name)
    if path is None:
        raise UserError(f"{folder} has no {name}.pt (or .safetensors); the released folder `default/` holds it")
    try:
        if path.suffix == ".safetensors":
            (tensor,) = load_file(path).values()
        else:
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise anything from EOFError to UnpicklingError
        raise UserError(f"{path} could not be read as one tensor: {error}") from error
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path} holds a {type(tensor).__name__}; expected one tensor")
    return tensor.float()
