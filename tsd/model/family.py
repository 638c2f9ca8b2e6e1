"""The interface of a model family: everything that differs between SD3 and SD2.

Like the families themselves and `tsd.model.loading` it imports no torch: whether a folder is a model that this program
knows is found out before anything heavy is imported.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tsd.model.process import NoiseProcess
    from tsd.model.prompt import PromptEmbeds


class Family(Protocol):
    """What a model family knows about its own denoiser; `tsd.model.sd3` and `tsd.model.sd2` implement it.

    Attributes:
        name: `sd3` or `sd2`.
        denoiser_class: diffusers' class, as `config.json` names it.
        denoiser_folder: the denoiser's sub-folder in diffusers layout; LoRA files and their keys are named after it.
        example: hub id of a model of this family, for messages.
        student_targets, critic_targets: name endings of the layers that get adapters (the critic's unless the
            settings give it the student's).
        prompt_files: names of the tensors a prompt is stored as.
        prompt_tokens: length of the released models' prompts.
        time_density: how the base models drew t when they were trained, `logit_normal` or `uniform`.
    """

    @property
    def name(self) -> str: ...

    @property
    def denoiser_class(self) -> str: ...

    @property
    def denoiser_folder(self) -> str: ...

    @property
    def example(self) -> str: ...

    @property
    def student_targets(self) -> tuple[str, ...]: ...

    @property
    def critic_targets(self) -> tuple[str, ...]: ...

    @property
    def prompt_files(self) -> tuple[str, ...]: ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def time_density(self) -> str: ...

    def load_denoiser(self, source: str, dtype: "torch.dtype") -> Any: ...

    def process(self, scheduler_config: Mapping[str, Any]) -> "NoiseProcess": ...

    def predict(self, denoiser: Any, z_t: "Tensor", timestep: "Tensor", prompt: "PromptEmbeds") -> "Tensor": ...

    def prompt_widths(self, config: Mapping[str, Any]) -> tuple[int, int | None]:
        """Widths of the token embeddings and of the pooled vector, None without one; from the denoiser's `config`."""
        ...

    def patch_size(self, denoiser: Any) -> int:
        """Latent sides must be multiples of this."""
        ...

    def longest_side(self, denoiser: Any) -> float:
        """The largest latent side the denoiser has positions for; infinity without such a limit."""
        ...
