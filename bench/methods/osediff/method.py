"""OSEDiff in process: the authors' adapters on SD2.1-base, through this project's own SD2 backbone.

The steps are those of `test_osediff.py` and `OSEDiff_test` (cswry/OSEDiff at fcc4f09): enlarge the 8-bit input x4 with
Pillow, sample the VAE's posterior, call the UNet once at t = 999, take the x0 that this implies, decode it, and apply
AdaIN against the enlarged input. Three things differ on purpose:

- The posterior is drawn from the image's own seed; the authors' script parses `--seed` and never uses it.
- The script cuts to 8 bits after decoding and again after AdaIN. The first cut is kept, since AdaIN would multiply what
  it removes; the second is the harness's only rounding. On the published RealSR outputs that is 0.0007 dB of PSNR.
- An input whose working size is not four times its own (under 128 pixels, or odd multiples of 4) is resized to four
  times its own at the end; the script computes this and discards it. No test set of the paper has such an input.

The adapters are merged into the weights in fp32, before the model goes to its device and precision. The VAE works on
the whole image; the script encodes images of more than 1088 pixels a side in tiles, and decodes those of more than 1968
in tiles.
"""

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench.cards.card import Card
from bench.methods.osediff.checkpoint import ALPHA, attach, merge, read_checkpoint
from bench.methods.osediff.tagger import Tagger, is_installed
from bench.methods.stages import Boundary
from bench.options import SCALE, RunOptions
from bench.store.store import Store, verified_weights

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from tsd.model.backbone import Backbone, PromptEmbeds

CHECKPOINT = "osediff.pkl"
BASE = "stable-diffusion-2-1-base"
SIDE_MULTIPLE = 8


@dataclass(frozen=True)
class OSEDiffSettings:
    """The script's defaults.

    Attributes:
        process_size: smallest side, in pixels, that the network works at; smaller inputs are enlarged to it.
        tile, overlap: size and overlap of the tiles, in latent positions; used if the latent has more than tile²
            positions.
    """

    process_size: int = 512
    tile: int = 96
    overlap: int = 32


class OSEDiffMethod:
    """OSEDiff under the method contract.

    The weights are verified at once; the first `restore` builds the model.

    Raises:
        UserError: weights that are missing or not verified.
    """

    def __init__(self, card: Card, options: RunOptions, settings: OSEDiffSettings | None = None) -> None:
        options.require_dtype()
        self.options = options
        self.settings = settings or OSEDiffSettings()
        self.hashes = verified_weights(card, options)
        self.tagger = Tagger(card, options) if is_installed(options) else None
        self.root = Store(options).root

    @functools.cached_property
    def backbone(self) -> "Backbone":
        import torch

        from tsd.model.backbone import load_backbone
        from tsd.model.groupnorm import use_two_pass_group_norm

        self.options.require_device()
        parts = read_checkpoint(self.root / CHECKPOINT)
        backbone = load_backbone(self.root / BASE, dtype=torch.float32)
        for name, network in (("unet", backbone.denoiser), ("vae", backbone.vae)):
            attach(network, parts[name], f"state_dict_{name} of {CHECKPOINT}")
            merge(network, parts[name])
        backbone.to(self.options.device, self.options.torch_dtype())
        # As for this project's students: halves the VAE's time on the CPU and computes the same.
        backbone.vae.to(memory_format=torch.channels_last)
        use_two_pass_group_norm(backbone.vae)
        return backbone

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        import torch

        from tsd.restore.color import adain
        from tsd.restore.restorer import resize, truncate_to_8_bits

        backbone = self.backbone
        target = (SCALE * lr.shape[-2], SCALE * lr.shape[-1])
        image = _tensor(enlarged(lr, self.settings.process_size))
        generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device draws the same
        with torch.inference_mode():
            prompt = self._prompt(image)
            x = (image * 2 - 1).to(backbone.device, backbone.dtype)
            z = backbone.encode(x, posterior="sample", generator=generator)
            x0 = self._one_step(z, prompt).to(backbone.dtype)
            # As in the script, everything up to the first cut is in the model's precision.
            decoded = backbone.decode(x0).clamp(-1, 1).cpu() * 0.5 + 0.5
            sr = adain(truncate_to_8_bits(decoded, decoded.shape[-2:]), image).clamp(0, 1)
            return resize(sr, target).clone()

    def _one_step(self, z: "Tensor", prompt: "PromptEmbeds") -> "Tensor":
        """Predicts once at the last time, in tiles where z is large; returns the x0 that this implies, in fp32."""
        import torch

        from tsd.restore.tiling import blend_tiles

        backbone, settings = self.backbone, self.settings
        time = torch.full((1,), backbone.process.last_time, device=z.device)

        def predict(window: "Tensor") -> "Tensor":
            return backbone.predict(window.to(backbone.dtype), time, prompt).float()

        if z.shape[-2] * z.shape[-1] <= settings.tile**2:
            prediction = predict(z)
        else:
            prediction = blend_tiles(predict, z.float(), tile=settings.tile, overlap=settings.overlap)
        return backbone.process.x0(z.float(), prediction, time)

    def _prompt(self, image: "Tensor") -> "PromptEmbeds":
        if self.tagger is None:
            return self._empty_prompt
        device, dtype = self.options.device, self.options.torch_dtype()
        return self._encode(prompt_text(self.tagger.tags(image, device, dtype)), self._encoder)

    @functools.cached_property
    def _empty_prompt(self) -> "PromptEmbeds":
        with ExitStack() as stack:
            return self._encode(prompt_text(""), self._open_encoder(stack))

    @functools.cached_property
    def _encoder(self) -> Any:
        """The text encoder, kept in memory: with tags every image needs it."""
        return self._open_encoder(ExitStack())

    @functools.cached_property
    def text_encoder(self) -> "nn.Module":
        return self._encoder._module

    def _open_encoder(self, stack: ExitStack) -> Any:
        from tsd.prompts.text_encoders import LoadedEncoder, load_tokenizer, text_side

        (encoder,) = text_side(self.root / BASE).encoders
        tokenizer = load_tokenizer(encoder)
        return stack.enter_context(LoadedEncoder(encoder, tokenizer, self.options.device, self.options.torch_dtype()))

    def _encode(self, text: str, encoder: Any) -> "PromptEmbeds":
        from tsd.model.backbone import PromptEmbeds

        embeds, _ = encoder([text])
        return PromptEmbeds(embeds).to(self.backbone.device, self.backbone.dtype)

    def boundaries(self) -> Sequence[Boundary]:
        """Without a tagger the prompt is the same for all images, and `text` costs nothing but in the first call."""
        boundaries = [
            Boundary("text", self, "_prompt"),
            Boundary("encode", self.backbone, "encode", "denoise"),
            Boundary("decode", self.backbone, "decode", "colour"),
        ]
        return [*boundaries, *([Boundary("tag", self.tagger, "tags", "text")] if self.tagger else [])]

    def networks(self) -> "dict[str, nn.Module]":
        found: dict[str, nn.Module] = {"denoiser": self.backbone.denoiser, "vae": self.backbone.vae}
        if self.tagger is not None and self.tagger.model is not None:
            found |= {"text_encoder": self.text_encoder, "tagger": self.tagger.model}
        return found

    def provenance(self) -> dict[str, object]:
        settings = {
            **asdict(self.settings),
            "upscale": "pillow bicubic x4, 8 bit",
            "posterior": "sample",
            "color": "adain",
            "lora_alpha": ALPHA,
            "prompt": f"empty, {prompt_text('')!r}" if self.tagger is None else "tags of RAM with DAPE",
        }
        remarks = [
            "prompt: empty, no tagger installed" if self.tagger is None else "prompt: tags of RAM with DAPE",
            "seeded per image; the authors' script is not",
        ]
        if self.options.dtype != "fp16":
            remarks.append(f"{self.options.dtype}; the authors' script runs in fp16")
        hashes = self.hashes | (self.tagger.hashes if self.tagger else {})
        return {"weights": hashes, "settings": settings, "remarks": remarks, "dtype": self.options.dtype}


def prompt_text(tags: str, user_prompt: str = "") -> str:
    """Joins tags and the user's prompt with the commas of the script; ", ," where both are empty."""
    return f"{tags}, {user_prompt},"


def enlarged(lr: "Tensor", process_size: int) -> "Image.Image":
    """The input as the network gets it: 8 bit, enlarged by Pillow, sides cut to multiples of 8.

    Args:
        lr: (1, 3, h, w) float in [0, 1]; it is rounded to 8 bits, which does not change the values of a PNG.
        process_size: an input with a side under process_size // 4 is first enlarged to that side, with the script's
            truncations.
    """
    import torch
    from PIL import Image

    image = Image.fromarray((lr[0] * 255).round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy())
    least, (width, height) = process_size // SCALE, image.size
    if min(width, height) < least:
        factor = least / min(width, height)
        image = image.resize((int(factor * width), int(factor * height)), Image.Resampling.BICUBIC)
    width, height = image.width * SCALE, image.height * SCALE
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.resize((width - width % SIDE_MULTIPLE, height - height % SIDE_MULTIPLE), Image.Resampling.LANCZOS)


def _tensor(image: "Image.Image") -> "Tensor":
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
