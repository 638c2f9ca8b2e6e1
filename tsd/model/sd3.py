"""The SD3 family: MMDiT denoiser (`SD3Transformer2DModel`), flow matching, two-part prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsd.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tsd.model.process import FlowMatching
    from tsd.model.prompt import PromptEmbeds


@dataclass(frozen=True)
class SD3:
    """SD3-medium and every model of its architecture, whatever its size."""

    name: str = "sd3"
    denoiser_class: str = "SD3Transformer2DModel"
    denoiser_folder: str = "transformer"
    example: str = "stabilityai/stable-diffusion-3-medium-diffusers"
    prompt_files: tuple[str, ...] = ("prompt_embeds", "pool_embeds")
    prompt_tokens: int = 333  # 77 of the CLIPs and 256 of T5
    time_density: str = "logit_normal"
    # Suffix matches, as released: `proj` reaches pos_embed.proj and both feed-forwards' first layer, `linear` every
    # AdaLN modulation. `to_add_out` and the feed-forwards' second layer are *not* adapted in the release.
    student_targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "proj", "linear", "proj_out",
    )  # fmt: skip
    critic_targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj",
    )  # fmt: skip

    def load_denoiser(self, source: str, dtype: "torch.dtype") -> Any:
        from diffusers import SD3Transformer2DModel

        return SD3Transformer2DModel.from_pretrained(
            source, subfolder=self.denoiser_folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )

    def process(self, scheduler_config: Mapping[str, Any]) -> "FlowMatching":
        """The process of a `FlowMatchEulerDiscreteScheduler` configuration (static shift only)."""
        from tsd.model.process import flow_from_config

        found = scheduler_config.get("_class_name")
        if found != "FlowMatchEulerDiscreteScheduler":
            raise UserError(f"the scheduler is {found}; an SD3-family model needs FlowMatchEulerDiscreteScheduler")
        return flow_from_config(scheduler_config)

    def predict(self, denoiser: Any, z_t: "Tensor", timestep: "Tensor", prompt: "PromptEmbeds") -> "Tensor":
        assert prompt.pooled is not None  # `load_prompts` refuses a prompt without one for this family
        return denoiser(
            hidden_states=z_t,
            timestep=timestep,
            encoder_hidden_states=prompt.embeds.to(z_t.dtype),
            pooled_projections=prompt.pooled.to(z_t.dtype),
            return_dict=False,
        )[0]

    def prompt_widths(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Widths of the token embeddings and of the pooled vector (SD3-medium: 4096, 2048)."""
        return config["joint_attention_dim"], config["pooled_projection_dim"]

    def patch_size(self, denoiser: Any) -> int:
        return denoiser.config["patch_size"]

    def longest_side(self, denoiser: Any) -> float:
        """The position table's side, in latent positions."""
        return float(denoiser.config["pos_embed_max_size"] * self.patch_size(denoiser))
