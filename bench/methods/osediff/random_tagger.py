"""The tagger at its real shape with random weights, for time and memory alone.

The shape is that of `ram_swin_large_14m.pth` with DAPE's adapters merged (cswry/OSEDiff at fcc4f09, `ram/configs`, and
`generate_tag` of `ram/models/ram_lora.py`): a Swin-L on 384 x 384 pixels, and for each of 4,585 tags two layers of BERT
that look at the image and not at each other. What its text decoder would need is not loaded.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, relu, scaled_dot_product_attention

from bench.methods.osediff.tagger import SIDE, prepared
from bench.methods.random_weights import fill_randomly
from bench.options import RunOptions

VISION: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": 192,
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "window_size": 12,
}
TAGS, TAG_WIDTH, HEADS, LAYERS, IMAGE_WIDTH = 4585, 768, 4, 2, 512
THRESHOLD = 0.68


class RandomTagger:
    """Stands for `Tagger`: it does the same work and names nothing."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.hashes = {"RAM, Swin-L": "random"}

    @functools.cached_property
    def model(self) -> nn.Module:
        with torch.device("meta"):
            model = TagNetwork()
        fill_randomly(model, self.options.device, self.options.torch_dtype())
        for buffer in model.buffers():  # places in a window, counted on by `fill_randomly` beyond the table's end
            if not buffer.is_floating_point():
                buffer.remainder_((2 * VISION["window_size"] - 1) ** 2)
        return model

    def tags(self, image: Tensor, device: str, dtype: torch.dtype) -> str:
        (self.model(prepared(image, device).to(dtype)).sigmoid() > THRESHOLD).cpu()
        return ""


class TagNetwork(nn.Module):
    """(B, 3, 384, 384) → a logit for each tag, (B, 4585)."""

    def __init__(self) -> None:
        from transformers import SwinConfig, SwinModel

        super().__init__()
        self.vision: Any = SwinModel(SwinConfig(**VISION), add_pooling_layer=False)
        self.image_proj = nn.Linear(self.vision.num_features, IMAGE_WIDTH)
        self.label_embed = nn.Parameter(torch.empty(TAGS, IMAGE_WIDTH))
        self.wordvec_proj = nn.Linear(IMAGE_WIDTH, TAG_WIDTH)
        self.layers = nn.ModuleList(TagLayer() for _ in range(LAYERS))
        self.fc = nn.Linear(TAG_WIDTH, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.vision(image).last_hidden_state
        features = self.image_proj(torch.cat([features.mean(1, keepdim=True), features], dim=1))
        tags = relu(self.wordvec_proj(self.label_embed)).expand(len(image), -1, -1)
        for layer in self.layers:
            tags = layer(tags, features)
        return self.fc(tags).squeeze(-1)


class TagLayer(nn.Module):
    """A layer of BERT whose self-attention was taken away, as in Query2Label."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(TAG_WIDTH, TAG_WIDTH), nn.Linear(TAG_WIDTH, TAG_WIDTH)
        self.key, self.value = nn.Linear(IMAGE_WIDTH, TAG_WIDTH), nn.Linear(IMAGE_WIDTH, TAG_WIDTH)
        self.wide, self.narrow = nn.Linear(TAG_WIDTH, 4 * TAG_WIDTH), nn.Linear(4 * TAG_WIDTH, TAG_WIDTH)

    def forward(self, tags: Tensor, features: Tensor) -> Tensor:
        query, key, value = (
            projected.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for projected in (self.query(tags), self.key(features), self.value(features))
        )
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tags = layer_norm(tags + self.out(attended), (TAG_WIDTH,))
        return layer_norm(tags + self.narrow(gelu(self.wide(tags))), (TAG_WIDTH,))
