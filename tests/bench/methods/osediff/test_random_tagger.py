"""The tagger with random weights: its shape is that of a second library's network, and it works on any image."""

import pytest
import timm
import torch

from bench.methods.osediff import random_tagger
from bench.methods.osediff.random_tagger import LAYERS, RandomTagger, TagNetwork
from bench.options import RunOptions


def test_its_vision_part_is_as_large_as_another_librarys() -> None:
    with torch.device("meta"):
        ours = TagNetwork()
        other = timm.create_model("swin_large_patch4_window12_384", num_classes=0)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (ours.vision, other)]
    assert sizes[0] == sizes[1]
    assert len(ours.layers) == LAYERS


def test_it_looks_at_an_image_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]}
    monkeypatch.setattr(random_tagger, "VISION", random_tagger.VISION | small)
    monkeypatch.setattr(random_tagger, "TAGS", 7)
    tagger = RandomTagger(RunOptions())
    assert tagger.tags(torch.rand(1, 3, 40, 64), "cpu", torch.float32) == ""
    first, second = (tagger.model(torch.rand(1, 3, 384, 384)) for _ in range(2))
    assert first.shape == (1, 7)
    assert first.isfinite().all()
    assert not torch.equal(first, second)
