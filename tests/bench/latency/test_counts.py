"""Operations against closed forms, and SD3-medium and SD2.1-base against the published counts, on the meta device."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from bench.latency.counts import count_operations, size_of
from tsd.fast.packing import pack_linears


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.linear = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)


def test_closed_forms() -> None:
    block = Block()

    def work(begin) -> None:
        begin("encode")
        x = block.up(block.conv(torch.rand(1, 4, 5, 7)))
        assert x.shape == (1, 2, 10, 14)
        begin("denoise")
        tokens = block.norm(block.linear(torch.rand(1, 9, 8)))
        begin("decode")
        scaled_dot_product_attention(*(tokens.view(1, 1, 9, 16),) * 3)

    with torch.inference_mode():
        found = count_operations({"block": block}, work)
    conv, up, linear = 6 * 35 * 2 * 9, 6 * 35 * 2 * 4, 9 * 8 * 16
    assert found.macs == {"encode": conv + up, "denoise": linear, "decode": 0}
    assert found.flops == {"encode": 2 * (conv + up), "denoise": 2 * linear, "decode": 2 * 2 * 9 * 9 * 16}
    assert found.uncounted == {"native_layer_norm": 1}
    assert [name for name in found.attention if "attention" in name]
    assert not block.conv._forward_hooks


def test_what_has_no_formula_is_named() -> None:
    found = count_operations({}, lambda begin: (begin("denoise"), torch.special.bessel_j0(torch.rand(3))))
    assert found.uncounted == {"special_bessel_j0": 1}
    assert found.flops == {"denoise": 0}


def test_shared_parameters_count_once() -> None:
    linear = nn.Linear(3, 5).to(torch.bfloat16)
    size = size_of({"a": linear, "b": nn.Sequential(linear)})
    assert (size.parameters, size.adapters, size.bytes) == (20, 0, 40)


def test_the_published_counts_of_tsd_sr() -> None:
    """TinySR's table prints 2,700 G multiply-adds for TSD-SR and 1,782 G for its VAE; 5,740 GFLOP are torch's count."""
    from tsd.memory.plan import model_configs
    from tsd.model.backbone import PromptEmbeds, build_backbone

    model = "stabilityai/stable-diffusion-3-medium-diffusers"
    family, configs = model_configs(model)
    width, pooled = family.prompt_widths(configs["denoiser"])
    with torch.device("meta"):
        vector = None if pooled is None else torch.zeros(1, pooled)
        prompt = PromptEmbeds(torch.zeros(1, family.prompt_tokens, width), vector)
        x = torch.zeros(1, 3, 512, 512)
    backbone = build_backbone(family, configs, {"default": prompt}, model)

    def work(begin) -> None:
        begin("encode")
        z = backbone.vae.encode(x).latent_dist.mean
        begin("denoise")
        t = torch.full((1,), 1000.0, device="meta")
        backbone.family.predict(backbone.denoiser, z, t, prompt)
        begin("decode")
        backbone.vae.decode(z)

    networks = {"denoiser": backbone.denoiser, "vae": backbone.vae}
    with torch.no_grad():
        found = count_operations(networks, work)
    assert size_of({"denoiser": backbone.denoiser}).parameters == 2_028_328_000
    macs = {stage: count / 1e9 for stage, count in found.macs.items()}
    assert macs["encode"] + macs["decode"] == pytest.approx(1782, abs=0.5)
    assert sum(macs.values()) == pytest.approx(2700, abs=0.5)
    flops = {stage: count / 1e9 for stage, count in found.flops.items()}
    assert sum(flops.values()) == pytest.approx(5740, abs=0.5)
    # What the hooks leave out are the two products of the attentions: two of 4096 x 512 in the VAE's middle blocks ...
    assert flops["encode"] + flops["decode"] == pytest.approx(2 * (1781.908 + 2 * 2 * 4096**2 * 512 / 1e9), abs=0.01)
    # ... and 24 of 1024 + 333 tokens and 1536 channels in the denoiser.
    assert flops["denoise"] == pytest.approx(2 * (macs["denoise"] + 24 * 2 * (1024 + 333) ** 2 * 1536 / 1e9), abs=0.01)


def test_packed_layers_count_as_the_plain_ones_do() -> None:
    plain = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 16)).bfloat16()
    packed = copy.deepcopy(plain)
    if not pack_linears(packed):
        pytest.skip("this build of torch does not pack linear layers")
    x = torch.rand(3, 32).bfloat16()
    sizes, operations = [], []
    for model in (plain, packed):
        with torch.no_grad():
            operations.append(count_operations({"model": model}, lambda begin, m=model: (begin("denoise"), m(x))))
        sizes.append(size_of({"model": model}))
    assert sizes[0] == sizes[1]
    assert operations[0].flops == operations[1].flops == {"denoise": 2 * 3 * (32 * 64 + 64 * 16)}
    assert operations[0].macs == operations[1].macs
    assert not operations[1].uncounted
