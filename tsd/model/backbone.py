"""A backbone: VAE, denoiser, noise process and prompts, behind one small interface.

`load_backbone` turns a folder in diffusers layout (`transformer/` or `unet/`, `vae/`, `scheduler/`), or the hub id of
one, into a `Backbone`. The mini models shipped in the package, SD3-medium and SD2.1-base on disk are such folders: same
classes, same code path. `tsd.model.sd3` and `tsd.model.sd2` hold what differs between the families.

Latents are **scaled but not shifted**: z = encode(x) · scaling_factor. SD3's VAE also has a shift factor (0.0609),
but TSD-SR's released weights were trained without it, so adding it would move every latent.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tsd.config import FOLDED_FILE, Posterior
from tsd.errors import UserError
from tsd.model.family import Family
from tsd.model.loading import read_configs, resolve_model
from tsd.model.process import NoiseProcess
from tsd.model.prompt import PromptEmbeds, load_prompts

Generators = torch.Generator | list[torch.Generator] | None


class Backbone:
    """VAE + denoiser + process + prompts. Which adapters are active on the denoiser decides the role it plays.

    Attributes:
        vae: diffusers' `AutoencoderKL` (typed Any: its annotations hide what it returns).
        denoiser: the family's denoiser (`SD3Transformer2DModel`, `UNet2DConditionModel`), shared by all roles.
        process: the noise process read from the scheduler's own configuration.
        prompts: by name; `default` is the student's fixed prompt, `null` the empty prompt of guidance.
        family: what is particular to the denoiser's model family.
        source: where it was loaded from, for records and messages.
        folded: the denoiser was rewritten for the `default` prompt and the last time, and can do nothing else
            (`tsd.fast`).
    """

    folded = False

    def __init__(
        self,
        vae: Any,
        denoiser: Any,
        process: NoiseProcess,
        prompts: dict[str, PromptEmbeds],
        family: Family,
        source: str,
    ) -> None:
        self.vae = vae
        self.denoiser = denoiser
        self.process = process
        self.prompts = prompts
        self.family = family
        self.source = source

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position along one side (8 for SD3)."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be multiples of this for the VAE and the denoiser's patches."""
        return self.vae_factor * self.family.patch_size(self.denoiser)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Backbone":
        """Moves everything, prompts included; returns self."""
        for module in (self.vae, self.denoiser):
            module.to(device)
            if dtype is not None and dtype != module.dtype:  # diffusers warns on every cast, needed or not
                module.to(dtype)
        self.prompts = {name: prompt.to(device, dtype) for name, prompt in self.prompts.items()}
        return self

    def encode(self, x: Tensor, *, posterior: Posterior, generator: Generators = None) -> Tensor:
        """Images to latents: z = q(x) · scaling_factor, without shift.

        Args:
            x: (B, 3, H, W) in [-1, 1], sides multiples of `vae_factor`.
            posterior: `sample` draws from the encoder's Gaussian (as the release does), `mode` takes its mean.
            generator: source of that draw, one for all or one per sample; drawn on the generator's own device,
                so CPU and CUDA agree.

        Returns:
            (B, C, H / vae_factor, W / vae_factor).
        """
        gaussian = self.vae.encode(x).latent_dist
        if posterior == "mode":
            z = gaussian.mode()
        elif posterior == "sample":
            z = gaussian.sample(generator=generator)
        else:
            raise ValueError(f"posterior is {posterior!r}; expected 'sample' or 'mode'")
        return z * self.vae.config["scaling_factor"]

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images (B, 3, H, W), nominally in [-1, 1] but not clamped."""
        return self.vae.decode(z / self.vae.config["scaling_factor"], return_dict=False)[0]

    def predict(self, z_t: Tensor, t: Tensor, prompt: PromptEmbeds) -> Tensor:
        """The network's own prediction (velocity, noise or v) for noised latents, with the currently active adapters.

        Args:
            z_t: (B, C, h, w).
            t: Algorithm 1's time, (B,) or (1,), in [0, `process.last_time`].
            prompt: batch size B or 1.

        Raises:
            UserError: the denoiser is folded, and this is another time or another prompt.
        """
        if self.folded:
            self._require_folded_prompt(prompt)
            if not bool((t == self.process.last_time).all()):
                raise UserError(
                    f"the student {self.source} is folded for t = {self.process.last_time:.0f} and asked for t = "
                    f"{t.tolist()}; load it unfolded (fast=PLAIN)"
                )
        return self._predict(z_t, t, prompt)

    def _require_folded_prompt(self, prompt: PromptEmbeds) -> None:
        own = self.prompts["default"]
        if prompt is not own and not (
            prompt.embeds.shape[1:] == own.embeds.shape[1:] and bool((prompt.embeds == own.embeds).all())
        ):
            raise UserError(
                f"the student {self.source} is folded for its own prompt and asked for another; load it unfolded "
                f"(fast=PLAIN), or with the other prompt (--prompt-embeds)"
            )

    def _predict(self, z_t: Tensor, t: Tensor, prompt: PromptEmbeds) -> Tensor:
        batch = z_t.shape[0]
        timestep = self.process.timestep(t.to(z_t.device)).expand(batch)
        return self.family.predict(self.denoiser, z_t, timestep, prompt.expand(batch))

    def one_step(self, z_L: Tensor, prompt: PromptEmbeds | None = None) -> Tensor:
        """The student's single step from the last time (Algorithm 1, line 4): the x0 that its prediction implies.

        SD3 (t = 1000): ẑ = z_L − v_θ. SD2 (t = 999): ẑ = (z_L − σ ε_θ) / α. The latent of the degraded image stands
        where the teacher would expect pure noise. The step is computed in fp32, since 1/α magnifies rounding errors;
        the result has z_L's dtype.
        """
        t = torch.full((1,), self.process.last_time, device=z_L.device)
        prompt = prompt if prompt is not None else self.prompts["default"]
        if self.folded:
            self._require_folded_prompt(prompt)
        prediction = self._predict(z_L, t, prompt)
        return self.process.x0(z_L.float(), prediction.float(), t).to(z_L.dtype)


def load_backbone(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    prompt_embeds: str | Path | None = None,
) -> Backbone:
    """Loads a folder in diffusers layout, or a hub id, as a backbone in evaluation mode with frozen weights.

    Args:
        source: a folder with `transformer/` (SD3) or `unet/` (SD2), `vae/` and `scheduler/`, or a hub id such as
            `stabilityai/stable-diffusion-3-medium-diffusers`.
        device, dtype: where and in what precision the weights are held.
        prompt_embeds: a folder with the student's fixed prompt, as released (`prompt_embeds.pt` and
            `pool_embeds.pt`, SD2 without the latter), or with sub-folders `default/` and `null/` of that form.
            Without it, the model folder's own `prompts/` is used, if there is one.

    Raises:
        UserError: the folder, a part of it or the prompts are missing, damaged or of another family.
    """
    folder = resolve_model(source)
    # Small files show whether prompts, VAE and denoiser fit together; they are read before gigabytes of weights.
    family, configs = read_configs(folder)
    if (folder / family.denoiser_folder / FOLDED_FILE).is_file():
        raise UserError(
            f"{folder} is a folded student, with what it needs for restoring in one step and no more; name the base "
            f"model it was exported from"
        )
    process = family.process(configs["scheduler"])
    prompts = load_prompts(folder, prompt_embeds, family.prompt_widths(configs["denoiser"]))
    vae = load_vae(folder, dtype)
    try:
        denoiser = family.load_denoiser(str(folder), dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"the model in {folder} could not be loaded: {error}") from error
    for module in (vae, denoiser):
        module.eval().requires_grad_(False)
    return Backbone(vae, denoiser, process, prompts, family, str(source)).to(device, dtype)


def load_vae(folder: Path, dtype: torch.dtype) -> Any:
    """The VAE of a model folder on the CPU, not yet frozen.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return AutoencoderKL.from_pretrained(
            str(folder), subfolder="vae", torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"the model in {folder} could not be loaded: {error}") from error


def build_backbone(
    family: Family,
    configs: Mapping[str, Mapping[str, Any]],
    prompts: dict[str, PromptEmbeds],
    source: str,
) -> Backbone:
    """A backbone without weights: modules on the meta device, frozen and in evaluation mode, for shapes and names.

    Args:
        configs: the configurations of `denoiser`, `vae` and `scheduler`, see `tsd.model.loading.read_configs`.

    Raises:
        UserError: the configurations are not those of a model that can be built.
    """
    try:
        with torch.device("meta"):
            denoiser = getattr(diffusers, family.denoiser_class).from_config(dict(configs["denoiser"]))
            vae: Any = AutoencoderKL.from_config(dict(configs["vae"]))
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"the configuration of the model {source} cannot be used: {error}") from error
    for module in (denoiser, vae):
        module.eval().requires_grad_(False)
    return Backbone(vae, denoiser, family.process(configs["scheduler"]), prompts, family, source)


def require_prompt(backbone: Backbone, name: str) -> PromptEmbeds:
    """The named prompt, or an error that says how to give one."""
    if name not in backbone.prompts:
        raise UserError(
            f"the model {backbone.source} has no '{name}' prompt (found: {sorted(backbone.prompts) or 'none'}). "
            f"Give a folder with prompt_embeds.pt and, for SD3, pool_embeds.pt (--prompt-embeds DIR), or one with "
            f"sub-folders default/ and null/ of that form; `tsd prompts` makes both from the model's text encoders."
        )
    return backbone.prompts[name]
