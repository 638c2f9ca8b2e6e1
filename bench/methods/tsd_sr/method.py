"""This project's own models as rows: one-step students and the multi-step teacher.

This folder and `bench/methods/osediff/` are the only ones that import more of `tsd` than its ground modules.

- `tsd-sr-mini`, `osediff-mini`: the mini base shipped in the package with the adapters trained by TSD, or by OSEDiff's
  recipe (VSD alone, no TSM and no trajectory) on the same base.
- `tsd-sr-mini-small-decoder`: the first of them with the small decoder that is shipped beside it.
- `tsd-sr`: SD3-medium with the authors' weights `tsdsr-mse` and AdaIN colour, the pair behind the paper's tables (the
  released script's own defaults, `tsdsr` and wavelet, give other numbers).
- `tsd-sr-mini-sd2`, `osediff-mini-sd2`: the same two recipes on the second mini base, a UNet of SD2's family.
- `tsd-sr-sd2`, `tsd-sr-sd21`: SD2-base and SD2.1-base with a student you trained (Table 5; none was published).
- `tsd-sr:MODEL,LORA[,PROMPTS]`: the same code for any student of your own; `tsd-sr:MODEL` for one that `tsd export`
  merged. `,decoder=DIR` puts a small decoder in the VAE's place, `,quantize=int8` the denoiser's products into 8 bits.
- `teacher-20`, or `teacher:steps=20,strength=0.3,guidance=1,model=DIR,prompts=DIR`: the base model without adapters,
  as image-to-image sampler from the encoded input.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bench.methods.random_weights import REMARK
from bench.methods.stages import Boundary
from bench.methods.tsd_sr.loading import load_restorer
from bench.methods.tsd_sr.weights import (
    RELEASE_SETTINGS,
    ModelFolders,
    Shape,
)
from bench.options import SCALE, RunOptions
from tsd.config import RestoreConfig, recommended_settings
from tsd.console.stages import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tsd.model.backbone import Backbone
    from tsd.restore import Restorer


class OneStepMethod:
    """A student under the method contract, through the same `Restorer` as `tsd restore`.

    The weights are hashed and the settings resolved at once; the model is built by the first `restore`, so that a run
    that finds all its work done never imports a network library.
    """

    def __init__(self, weights: ModelFolders | Shape, options: RunOptions, row_settings: Mapping[str, object]) -> None:
        self.weights = weights
        self.options = options
        self.progress: Progress = silent
        recommended = {} if isinstance(weights, Shape) else recommended_settings(weights.lora or weights.model)
        recommended.pop("seed", None)  # the harness gives each image its own
        self.settings = RELEASE_SETTINGS | recommended | dict(row_settings)

    @property
    def config(self) -> RestoreConfig:
        return RestoreConfig(**self.settings)  # pyright: ignore[reportArgumentType]

    @functools.cached_property
    def restorer(self) -> "Restorer":
        return load_restorer(self.weights, self.config, self.options)

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        # Cloned into an ordinary tensor: a tensor made in inference mode cannot be written to outside it.
        return self.restorer.restore_tensor(lr, seed, progress=self.progress).clone()

    def boundaries(self) -> Sequence[Boundary]:
        import tsd.restore.restorer as module

        encode, decode = codec_boundaries(self.restorer.backbone)
        if self.restorer.decoder is not None:
            decode = Boundary("decode", self.restorer, "decoder", "colour")
        if self.restorer.fast.mean and self.config.posterior == "mode":
            encode = Boundary("encode", module, "encode_mean", "denoise")
        return [Boundary("upsample", self.restorer, "_restore", "copy"), encode, decode]

    def networks(self) -> "dict[str, nn.Module]":
        backbone, decoder = self.restorer.backbone, self.restorer.decoder
        if decoder is None:
            return networks_of(backbone)
        before = {"quant_conv": backbone.vae.quant_conv} if backbone.vae.quant_conv is not None else {}
        return {"denoiser": backbone.denoiser, "encoder": backbone.vae.encoder, **before, "decoder": decoder}

    def provenance(self) -> dict[str, object]:
        settings, remarks = self.settings, []
        if isinstance(self.weights, Shape):
            remarks.append(REMARK)
        else:
            if self.weights.decoder is not None:
                settings = settings | {"decoder": "AutoencoderTiny"}
                remarks.append("a small decoder in the VAE's place: nearly the same image")
            if self.weights.quantization is not None:
                settings = settings | {"quantization": self.weights.quantization}
                remarks.append(f"products of the denoiser in {self.weights.quantization}: nearly the same image")
        content: dict[str, object] = {"weights": self._sha256, "settings": settings, "dtype": self.options.dtype}
        return content | ({"remarks": remarks} if remarks else {})

    @functools.cached_property
    def _sha256(self) -> dict[str, str]:
        return self.weights.sha256()


def codec_boundaries(backbone: "Backbone") -> list[Boundary]:
    """The stages around the denoiser, which works from the end of encoding to the beginning of decoding."""
    return [Boundary("encode", backbone, "encode", "denoise"), Boundary("decode", backbone, "decode", "colour")]


def networks_of(backbone: "Backbone") -> "dict[str, nn.Module]":
    return {"denoiser": backbone.denoiser, "vae": backbone.vae}


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher samples.

    The defaults were chosen on the mini model's validation crops (8 of Kodak, FULL degradation, never the test set),
    where bicubic has a PSNR-Y of 22.39 dB: σ_0 = .15 gives 22.34, .3 gives 22.20, .5 gives 21.54. Every noise level
    costs fidelity; .3 is the highest that costs little. Guidance 2 and 4 add .03 and .06 dB for twice the time.

    Attributes:
        steps: Euler steps; with guidance, each is two evaluations in one batch.
        strength: the noise level σ_0 in (0, 1] to which the input is noised.
        guidance: classifier-free guidance scale; 1 is none.
    """

    steps: int = 20
    strength: float = 0.3
    guidance: float = 1.0


class TeacherMethod:
    """The base model as an image-to-image sampler: SDEdit from the bicubically enlarged input."""

    def __init__(self, weights: ModelFolders, options: RunOptions, settings: TeacherSettings) -> None:
        self.weights = weights
        self.options = options
        self.settings = settings

    @functools.cached_property
    def backbone(self) -> "Backbone":
        import torch

        from tsd.model.backbone import load_backbone
        from tsd.model.groupnorm import use_two_pass_group_norm

        self.options.require_device()
        backbone = load_backbone(
            self.weights.model,
            device=self.options.device,
            dtype=self.options.torch_dtype(),
            prompt_embeds=self.weights.prompts,
        )
        # As for the students: halves the VAE's time on the CPU and computes the same.
        backbone.vae.to(memory_format=torch.channels_last)
        use_two_pass_group_norm(backbone.vae)
        return backbone

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        import torch
        from torch.nn.functional import interpolate, pad

        from tsd.model.sampler import image_to_image

        backbone = self.backbone
        x = interpolate(lr, scale_factor=SCALE, mode="bicubic").clamp(0, 1) * 2 - 1
        height, width = x.shape[-2:]
        multiple = backbone.pixel_multiple
        x = pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        with torch.inference_mode():
            z_L = backbone.encode(x.to(backbone.device, backbone.dtype), posterior="mode")
            z = image_to_image(
                backbone,
                z_L,
                steps=self.settings.steps,
                strength=self.settings.strength,
                guidance_scale=self.settings.guidance,
                # On the CPU, so that every device starts from the same noise.
                generator=torch.Generator().manual_seed(seed),
            )
            sr = backbone.decode(z)[..., :height, :width].to("cpu", torch.float32)
        return (sr.clamp(-1, 1) / 2 + 0.5).clone()

    def boundaries(self) -> Sequence[Boundary]:
        return codec_boundaries(self.backbone)

    def networks(self) -> "dict[str, nn.Module]":
        return networks_of(self.backbone)

    def provenance(self) -> dict[str, object]:
        settings = {**asdict(self.settings), "start": "bicubic x4, posterior mode", "color": "none"}
        return {"weights": self._sha256, "settings": settings, "dtype": self.options.dtype}

    @functools.cached_property
    def _sha256(self) -> dict[str, str]:
        return self.weights.sha256()
