"""Every measure computes the plain form's image: compared in fp32, where only the order of sums may differ."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.upsampling import Upsample2D
from torch import nn

from tsd.config import PLAIN, FastPath
from tsd.errors import UserError
from tsd.fast import attention, loading, winograd
from tsd.fast.loading import rewrite
from tsd.fast.mean import encode_mean
from tsd.fast.upsampling import FastUpsample2D, use_fast_upsampling
from tsd.model.backbone import load_backbone
from tsd.model.lora import load_student
from tsd.model.prompt import PromptEmbeds

MEASURES = ("channels_last", "fold", "text", "qkv", "upsample", "pack", "mean", "attention", "winograd")
# Sums in another order differ by a few units of the last place, which some forty layers of random weights magnify.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def latent(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 6, generator=torch.Generator().manual_seed(3))


def measures(*names: str) -> FastPath:
    return replace(PLAIN, **dict.fromkeys(names, True))


@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_alone_gives_the_plain_image(student: Any, name: str, request: pytest.FixtureRequest) -> None:
    if name == "winograd":
        request.getfixturevalue("few_channels_pay")
    fast = measures("fold", name) if name in ("text", "attention") else measures(name)
    lr = torch.rand(1, 3, 12, 16)
    plain, ours = student.load().restore_tensor(lr, 0), student.load(fast).restore_tensor(lr, 0)
    torch.testing.assert_close(ours, plain, **CLOSE)


@pytest.mark.parametrize("batch", [1, 2])
def test_all_together_give_the_plain_step(student: Any, batch: int) -> None:
    plain, ours = student.load(), student.load(FastPath())
    assert ours.fast == FastPath(pack=False, attention=False, winograd=False)  # for bf16, and for many channels
    with torch.inference_mode():
        step, expected = ours.backbone.one_step(latent(batch)), plain.backbone.one_step(latent(batch))
    torch.testing.assert_close(step, expected, **CLOSE)
    assert (expected - latent(batch)).abs().mean() > 0.1  # the step does something


def test_in_bf16_the_difference_is_that_of_rounding(student: Any) -> None:
    """Ours is as near to the fp32 image as the plain form in bf16 is: neither is the truth."""
    lr = torch.rand(1, 3, 16, 16)
    truth = student.load().restore_tensor(lr, 0)
    errors = [
        (student.load(fast, torch.bfloat16).restore_tensor(lr, 0) - truth).square().mean().sqrt().item()
        for fast in (PLAIN, FastPath())
    ]
    assert errors[1] < 1.5 * errors[0]
    assert errors[0] < 0.02


class TestAttention:
    def test_in_fp32_rounds_less_than_in_bf16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "has_matrix_unit", lambda: False)
        query, key, value = torch.randn(3, 1, 2, 70, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
        weights = (query.double() @ key.double().transpose(-1, -2) / 4).softmax(-1)
        truth = weights @ value.double()
        wide, plain = (attention.attend(query, key, value, wide) for wide in (True, False))
        torch.testing.assert_close(wide, truth.bfloat16(), rtol=2**-7, atol=1e-6)
        assert (wide.double() - truth).square().mean() <= (plain.double() - truth).square().mean()
        exact = [attention.attend(query.float(), key.float(), value.float(), wide) for wide in (True, False)]
        assert torch.equal(*exact)  # only half precision is widened

    def test_it_is_used_without_a_matrix_unit_alone(
        self, student_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        fast, z = replace(FastPath(), pack=False), latent().bfloat16()
        steps = {}
        for there in (True, False):
            monkeypatch.setattr(attention, "has_matrix_unit", lambda there=there: there)
            restorer = student_of("sd3").load(fast, torch.bfloat16)
            assert restorer.fast.attention is not there
            with torch.inference_mode():
                steps[there] = restorer.backbone.one_step(z)
        assert not torch.equal(steps[True], steps[False])
        torch.testing.assert_close(steps[False], steps[True], rtol=0.02, atol=0.05)
        assert not student_of("sd2").load(fast, torch.bfloat16).fast.attention

    @pytest.mark.parametrize("limit", ["AVX512_CORE_BF16", "avx2"])
    def test_a_setting_of_onednn_switches_the_unit_off(self, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.setattr(attention.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
        assert attention.has_matrix_unit.__wrapped__()
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert not attention.has_matrix_unit.__wrapped__()


def test_blocks_of_sd35_are_folded_too(tiny_sd35_dir: Path) -> None:
    plain, ours = load_backbone(tiny_sd35_dir), load_backbone(tiny_sd35_dir)
    assert rewrite(ours, FastPath()).fold
    with torch.inference_mode():
        torch.testing.assert_close(ours.one_step(latent(2)), plain.one_step(latent(2)), **CLOSE)


def test_sides_that_the_unet_cannot_halve_are_restored_alike(student_of: Any) -> None:
    """Then its upsamplers are told their size, which need not be twice the input's."""
    plain, ours = student_of("sd2").load(), student_of("sd2").load(FastPath())
    z = torch.randn(1, 4, 7, 11)
    with torch.inference_mode():
        torch.testing.assert_close(ours.backbone.one_step(z), plain.backbone.one_step(z), **CLOSE)


def test_modulations_text_and_separate_projections_leave_memory(student_of: Any) -> None:
    plain, ours = (student_of("sd3").load(fast).backbone.denoiser for fast in (PLAIN, FastPath()))
    left = {name for name, _ in ours.named_parameters()}
    assert not [name for name in left if "linear" in name.split(".") or "time_text" in name or "context_embed" in name]
    assert not [name for name in left if "to_q" in name or "add_k_proj" in name]
    width, blocks = 16, 2
    modulations = (6 + 6 + 6 + 2) * width * width + 20 * width + 2 * width * width + 2 * width
    first_text = (3 * width + 12) * width  # without biases: queries, keys, values, and the embedder
    last_query = width * width
    count = [sum(p.numel() for p in model.parameters()) for model in (plain, ours)]
    assert blocks == len(ours.transformer_blocks)
    assert count[0] - count[1] > modulations + first_text + last_query


def test_packed_products_are_bit_equal_in_bf16(student_of: Any) -> None:
    """The GELU is rounded once where the plain form rounds twice: a step of bf16 of the largest value."""
    unpacked = student_of("sd3").load(replace(FastPath(), pack=False), torch.bfloat16)
    packed = student_of("sd3").load(FastPath(), torch.bfloat16)
    if not packed.fast.pack:
        pytest.skip("this build of torch has no packed linear layers")
    z = latent(2).bfloat16()
    plain, ours = unpacked.backbone.denoiser.transformer_blocks[0], packed.backbone.denoiser.transformer_blocks[0]
    x = torch.randn(2, 12, 16).bfloat16()
    with torch.inference_mode():
        assert torch.equal(ours.to_out(x), plain.to_out(x))
        torch.testing.assert_close(ours.ff.net[0](x), plain.ff.net[0](x), rtol=2**-7, atol=2**-8)
        torch.testing.assert_close(packed.backbone.one_step(z), unpacked.backbone.one_step(z), rtol=0.02, atol=0.05)


class TestFoldedOnce:
    def test_another_time_is_refused(self, student: Any) -> None:
        backbone = student.load(FastPath()).backbone
        with pytest.raises(UserError, match=r"folded for t = .* asked for t = \[500.0\]"):
            backbone.predict(latent(), torch.tensor([500.0]), backbone.prompts["default"])

    def test_another_prompt_is_refused(self, student: Any) -> None:
        backbone = student.load(FastPath()).backbone
        with pytest.raises(UserError, match="folded for its own prompt"):
            backbone.one_step(latent(), backbone.prompts["null"])
        own = backbone.prompts["default"]
        again = PromptEmbeds(own.embeds.clone(), own.pooled)
        assert torch.equal(backbone.one_step(latent(), again), backbone.one_step(latent()))

    def test_text_without_folding_is_refused(self) -> None:
        with pytest.raises(UserError, match="only with fold"):
            FastPath(fold=False)


class TestLoading:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_weights_merged_while_reading_are_those_merged_afterwards(self, student: Any, dtype: torch.dtype) -> None:
        fast = FastPath(pack=False)  # packed weights cannot be read
        streamed = student.load(fast, dtype).backbone
        whole = load_backbone(student.model, dtype=dtype)
        load_student(whole, student.lora, merge=True)
        rewrite(whole, fast)
        expected = whole.denoiser.state_dict()
        assert streamed.denoiser.state_dict().keys() == expected.keys()
        for name, tensor in streamed.denoiser.state_dict().items():
            # peft multiplies the same two matrices; a sum that ends on the other side of a tie is one step of dtype off
            torch.testing.assert_close(tensor, expected[name], rtol=2 * torch.finfo(dtype).eps, atol=1e-6)

    def test_while_loading_no_more_is_held_than_the_result_and_one_block(
        self, student_of: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held: list[int] = []

        class Metered(loading._Weights):
            def _fill(self, module: torch.nn.Module, name: str, full_name: str) -> None:
                super()._fill(module, name, full_name)
                tensors = [*self.denoiser.parameters(), *self.denoiser.buffers()]
                held.append(sum(tensor.nbytes for tensor in tensors if not tensor.is_meta))

        plain = student_of("sd3").load().backbone.denoiser
        monkeypatch.setattr(loading, "_Weights", Metered)
        folded = student_of("sd3").load(FastPath()).backbone.denoiser
        result, whole = (sum(t.nbytes for t in model.state_dict().values()) for model in (folded, plain))
        block = max(sum(t.nbytes for t in b.state_dict().values()) for b in plain.transformer_blocks)
        assert max(held) < result + block
        assert max(held) < whole

    def test_files_that_diffusers_must_rename_are_loaded_whole(
        self, student_of: Any, student_at: Any, tmp_path: Path
    ) -> None:
        """An extra tensor stands for any difference between the file's names and the network's."""
        from safetensors.torch import load_file, save_file

        given = student_of("sd3")
        for part in ("vae", "scheduler", "prompts"):
            (tmp_path / part).symlink_to(given.model / part)
        (tmp_path / "transformer").mkdir()
        name = "diffusion_pytorch_model.safetensors"
        state = load_file(given.model / "transformer" / name) | {"unknown": torch.zeros(1)}
        save_file(state, tmp_path / "transformer" / name)
        config = (given.model / "transformer" / "config.json").read_text()
        (tmp_path / "transformer" / "config.json").write_text(config)
        ours, expected = student_at(tmp_path, given.lora).load(FastPath()), given.load(FastPath())
        with torch.inference_mode():
            torch.testing.assert_close(ours.backbone.one_step(latent()), expected.backbone.one_step(latent()), **CLOSE)

    def test_a_lora_of_another_shape_is_named(self, student_of: Any, student_at: Any, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        given = student_of("sd3")
        for name in ("transformer.safetensors", "vae.safetensors"):
            state = load_file(given.lora / name)
            key = "transformer.proj_out.lora_B.weight"
            if key in state:
                state[key] = torch.zeros(3, 4)
            save_file(state, tmp_path / name)
        with pytest.raises(UserError, match=r"proj_out.lora_B.weight has shape \(3, 4\)"):
            student_at(given.model, tmp_path).load(FastPath())


class TestUpsampling:
    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5)])
    def test_equals_nearest_then_3x3(self, size: tuple[int, int]) -> None:
        plain = Upsample2D(6, use_conv=True, out_channels=4).double()
        fast, x = FastUpsample2D(plain), torch.randn(2, 6, *size, dtype=torch.float64)
        fast.taps = fast.taps.double()
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-6, atol=1e-6)  # the taps were summed in fp32

    def test_another_size_than_twice_takes_the_plain_way(self) -> None:
        plain = Upsample2D(4, use_conv=True)
        fast, x = FastUpsample2D(plain), torch.randn(1, 4, 4, 4)
        assert torch.equal(fast(x, (7, 7)), plain(x, (7, 7)))
        torch.testing.assert_close(fast(x, (8, 8)), plain(x, (8, 8)))

    def test_other_upsamplers_stay(self) -> None:
        module = torch.nn.Sequential(Upsample2D(4), Upsample2D(4, use_conv=True, kernel_size=1, padding=0))
        use_fast_upsampling(module)
        assert [type(child) for child in module] == [Upsample2D, Upsample2D]


@pytest.fixture
def few_channels_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model's convolutions are computed like those of a large one."""
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 2)
    monkeypatch.setattr(winograd, "LEAST_PIXELS", 1)


class TestWinograd:
    @pytest.mark.parametrize("size", [(1, 1), (4, 8), (13, 6), (37, 50)])
    def test_equals_the_convolution(self, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(winograd, "STRIP_VALUES", 64)  # several strips
        draw = torch.Generator().manual_seed(7)
        x = torch.randn(2, 5, *size, generator=draw)
        weight, bias = torch.randn(3, 5, 3, 3, generator=draw), torch.randn(3, generator=draw)
        for given in (bias, None):
            truth = F.conv2d(x.double(), weight.double(), None if given is None else given.double(), padding=1)
            ours = winograd.convolve(x, weight, given)
            assert ours.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(ours, truth.float(), rtol=1e-5, atol=1e-4)

    def test_bf16_is_rounded_once(self) -> None:
        draw = torch.Generator().manual_seed(7)
        x, weight = torch.randn(1, 64, 9, 9, generator=draw), torch.randn(8, 64, 3, 3, generator=draw) / 24
        x, weight = x.bfloat16(), weight.bfloat16()
        truth = F.conv2d(x.double(), weight.double(), padding=1)
        torch.testing.assert_close(winograd.convolve(x, weight, None), truth.bfloat16(), rtol=2**-7, atol=1e-4)

    @pytest.mark.usefixtures("few_channels_pay")
    def test_other_layers_devices_and_precisions_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layers = [
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1, stride=2),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 1, 3, padding=1),
        ]
        module = nn.Sequential(*layers)
        for there, dtype in ((True, torch.bfloat16), (False, torch.float16)):
            monkeypatch.setattr(attention, "has_matrix_unit", lambda there=there: there)
            assert not winograd.use_winograd(copy.deepcopy(module).to(dtype))
        assert not winograd.use_winograd(copy.deepcopy(module).to("meta"))
        monkeypatch.setattr(attention, "has_matrix_unit", lambda: False)
        assert winograd.use_winograd(copy.deepcopy(module).bfloat16())
        assert winograd.use_winograd(module)
        assert [type(child) is winograd.WinogradConv2d for child in module] == [True, *[False] * 5]
        assert module[0].weight is layers[0].weight

    @pytest.mark.usefixtures("few_channels_pay")
    def test_training_takes_the_plain_way(self) -> None:
        module, x = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), torch.randn(1, 4, 8, 8)
        plain = module(x)
        winograd.use_winograd(module)
        assert torch.equal(module(x), plain)
        module(x).sum().backward()
        with torch.no_grad():
            assert not torch.equal(module(x), plain)

    def test_a_wide_vae_is_rewritten_and_gives_the_same(self) -> None:
        torch.manual_seed(8)
        vae: Any = AutoencoderKL(block_out_channels=(128,), norm_num_groups=32, latent_channels=4).eval()
        x = torch.randn(1, 3, 40, 36)
        with torch.inference_mode():
            plain = vae(x).sample
            assert winograd.use_winograd(vae)
            ours = vae(x).sample
        assert not torch.equal(ours, plain)
        torch.testing.assert_close(ours, plain, **CLOSE)


@pytest.mark.parametrize("quant_conv", [False, True])
def test_the_mean_alone_is_the_mode(tiny_sd3_dir: Path, quant_conv: bool) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    config = dict(backbone.vae.config) | {"use_quant_conv": quant_conv}
    backbone.vae = AutoencoderKL.from_config(config)
    x = torch.rand(2, 3, 48, 24)
    with torch.inference_mode():
        torch.testing.assert_close(encode_mean(backbone, x), backbone.encode(x, posterior="mode"), **CLOSE)
        backbone.vae.enable_tiling()
        backbone.vae.tile_sample_min_size, backbone.vae.tile_latent_min_size = 32, 4
        torch.testing.assert_close(encode_mean(backbone, x), backbone.encode(x, posterior="mode"), **CLOSE)
