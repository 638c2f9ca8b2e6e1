"""What every family shares: the form of a prompt, and what a family must know about its own denoiser."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tsd.process import FlowMatching


@dataclass(frozen=True)
class PromptEmbeds:
    """A prompt as the denoiser reads it: token embeddings (B, L, D) and a pooled vector (B, P)."""

    embeds: Tensor
    pooled: Tensor

    def expand(self, batch: int) -> "PromptEmbeds":
        """The same prompt for `batch` samples; a prompt that already has that batch size is returned as it is."""
        if self.embeds.shape[0] == batch:
            return self
        return PromptEmbeds(self.embeds.expand(batch, -1, -1), self.pooled.expand(batch, -1))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "PromptEmbeds":
        return PromptEmbeds(self.embeds.to(device=device, dtype=dtype), self.pooled.to(device=device, dtype=dtype))

    @staticmethod
    def cat(*prompts: "PromptEmbeds") -> "PromptEmbeds":
        return PromptEmbeds(torch.cat([p.embeds for p in prompts]), torch.cat([p.pooled for p in prompts]))


class Family(Protocol):
    """What a model family knows about its own denoiser (`tsd/backbones/<family>.py`)."""

    @property
    def name(self) -> str: ...

    @property
    def denoiser_folder(self) -> str: ...

    @property
    def student_targets(self) -> tuple[str, ...]: ...

    @property
    def critic_targets(self) -> tuple[str, ...]: ...

    def load_denoiser(self, source: str, dtype: torch.dtype) -> Any: ...

    def process(self, scheduler_config: dict[str, object]) -> FlowMatching: ...

    def predict(self, denoiser: Any, z_t: Tensor, timestep: Tensor, prompt: PromptEmbeds) -> Tensor: ...

    def prompt_widths(self, denoiser: Any) -> tuple[int, int]: ...

    def patch_size(self, denoiser: Any) -> int: ...
