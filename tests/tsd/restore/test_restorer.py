import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tsd.config import RestoreConfig, config_for
from tsd.errors import UserError
from tsd.images import Picture, read_picture
from tsd.model.backbone import load_backbone
from tsd.model.lora import (
    STUDENT,
    adapter_parameters,
    attach,
    denoiser_targets,
    load_student,
    save_student,
    vae_targets,
)
from tsd.restore.restorer import Restorer, processing_size, resize
from tsd.restore.student import find_student

GOLDEN = Path(__file__).parents[2] / "golden" / "restore"


def fill_by_formula(named: dict[str, nn.Parameter], gain: float = 1.0) -> None:
    """Values that depend on names and positions alone, so that no library's random numbers enter the golden files."""
    for name, parameter in named.items():
        if "norm" in name and parameter.ndim == 1:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        count = torch.arange(parameter.numel(), dtype=torch.float64)
        values = torch.sin(count * 12.9898 + zlib.crc32(name.encode()) % 1000) * 43758.5453
        values = 2 * (values - values.floor()) - 1
        fan_in = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 100
        parameter.data.copy_((gain * math.sqrt(3 / fan_in) * values).reshape(parameter.shape))


def build_formula_model(folder: Path) -> Path:
    """A model and rank-4 student of the form the released script demands: SD3's parts, a VAE of four double blocks."""
    transformer = SD3Transformer2DModel(
        sample_size=64, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, out_channels=4,
        pos_embed_max_size=64,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(4, 8, 8, 8), layers_per_block=2,
        latent_channels=4, norm_num_groups=2, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609,
        scaling_factor=1.5305,
    )  # fmt: skip
    for module in (transformer, vae):
        fill_by_formula(dict(module.named_parameters()))
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    prompt = {"prompt_embeds": nn.Parameter(torch.empty(1, 5, 12)), "pool_embeds": nn.Parameter(torch.empty(1, 10))}
    fill_by_formula(prompt)
    (folder / "prompts" / "default").mkdir(parents=True)
    for name, tensor in prompt.items():
        torch.save(tensor.detach(), folder / "prompts" / "default" / f"{name}.pt")
    backbone = load_backbone(folder)
    attach(backbone.denoiser, STUDENT, denoiser_targets(backbone.denoiser, backbone.family.student_targets), 4, seed=0)
    attach(backbone.vae, STUDENT, vae_targets(backbone.vae), 4, seed=0)
    for module in (backbone.denoiser, backbone.vae):
        fill_by_formula(adapter_parameters(module, STUDENT), gain=0.6)
    save_student(backbone, folder / "lora" / "tsdsr")
    return folder


@pytest.fixture(scope="module")
def formula_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_formula_model(tmp_path_factory.mktemp("formula"))


@pytest.fixture(scope="module")
def restorer(formula_dir: Path) -> Restorer:
    return Restorer.load(formula_dir, config=RestoreConfig(process_size=0, posterior="mode"))


def configured(restorer: Restorer, **settings: object) -> Restorer:
    """The same loaded weights under other settings."""
    return Restorer(restorer.backbone, replace(restorer.config, **settings), restorer.sources)


def ramp(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([x, y, 0.5 + 0.4 * torch.sin(9 * x + 5 * y)])[None]


class TestTheReleasedScript:
    """Golden images made by the released script itself; see golden/restore/README.md.

    It cuts to 8 bits after decoding and after colour alignment, and rounds in Pillow's resizing; ours rounds once.
    So the mean difference is about half a level, and 3 levels are the most these roundings add up to.
    """

    @pytest.mark.parametrize("color", ["wavelet", "adain", "none"])
    @pytest.mark.parametrize("name", ["small", "odd", "tiled"])
    def test_gives_the_same_image(self, restorer: Restorer, name: str, color: str) -> None:
        released = configured(restorer, color=color, process_size=128, tile=20, tile_overlap=4)
        ours = released.restore_picture(read_picture(GOLDEN / f"{name}.png"), name).to_uint(8)
        theirs = np.asarray(Image.open(GOLDEN / f"{name}_{color}.png"))
        assert ours.shape == theirs.shape
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.mean() < 1, difference.mean()
        assert difference.max() <= 3, difference.max()

    def test_golden_images_depend_on_network_and_colour(self) -> None:
        for name in ("small", "odd", "tiled"):
            images = [
                np.asarray(Image.open(GOLDEN / f"{name}_{c}.png")).astype(int) for c in ("wavelet", "adain", "none")
            ]
            assert all(image.std() > 10 for image in images)
            assert np.abs(images[0] - images[1]).mean() > 5
            assert np.abs(images[0] - images[2]).mean() > 5


class TestProcessingSize:
    config = RestoreConfig()

    def test_a_large_enough_input_is_only_cut_to_multiples(self) -> None:
        assert processing_size(128, 128, self.config, 8) == (512, 512)
        assert processing_size(133, 139, self.config, 8) == (528, 552)

    def test_a_small_input_is_enlarged_to_the_least_short_side(self) -> None:
        assert processing_size(40, 56, self.config, 8) == (512, 712)
        assert processing_size(131, 77, self.config, 8) == (864, 512)

    def test_the_release_truncates_in_floating_point(self) -> None:
        # 128 / 49 · 49 is a little less than 128, so the release works at 127 · 4 = 508, cut to 504.
        assert processing_size(49, 49, self.config, 8) == (504, 504)

    def test_nothing_is_cut_to_zero(self) -> None:
        assert processing_size(8, 600, RestoreConfig(process_size=0, scale=1), 16) == (16, 592)
        assert processing_size(9, 9, RestoreConfig(process_size=0, scale=1), 16) == (16, 16)


def test_resize_is_pillows_default() -> None:
    array = np.random.default_rng(0).integers(0, 256, (19, 23), dtype=np.uint8)
    for size in ((76, 92), (17, 11), (40, 11)):
        ours = resize(torch.from_numpy(array / 255)[None, None], size)[0, 0].numpy() * 255
        theirs = np.asarray(Image.fromarray(array).resize(size[::-1]))
        assert np.abs(ours - theirs).max() < 1.6  # Pillow rounds after each of its two passes


class TestRestoreTensor:
    @pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13), (31, 17), (8, 200)])
    def test_any_size_from_eight_is_enlarged_fourfold(self, restorer: Restorer, height: int, width: int) -> None:
        sr = restorer.restore_tensor(ramp(height, width), seed=0)
        assert sr.shape == (1, 3, 4 * height, 4 * width)
        assert sr.dtype == torch.float32
        assert sr.min() >= 0
        assert sr.max() <= 1

    def test_latents_the_patch_does_not_divide_are_padded_and_cut(self, restorer: Restorer) -> None:
        z = torch.randn(1, 4, 5, 7)
        assert restorer._one_step_padded(z).shape == z.shape
        even = torch.randn(1, 4, 4, 6)
        assert torch.equal(restorer._one_step_padded(even), restorer.backbone.one_step(even))

    def test_other_scales(self, restorer: Restorer) -> None:
        assert configured(restorer, scale=2).restore_tensor(ramp(20, 16), seed=0).shape == (1, 3, 40, 32)
        assert configured(restorer, scale=1.5).restore_tensor(ramp(19, 16), seed=0).shape == (1, 3, 29, 24)  # 28.5

    def test_input_is_untouched_and_result_repeatable(self, restorer: Restorer) -> None:
        lr = ramp(16, 16)
        before = lr.clone()
        first, second = (restorer.restore_tensor(lr, seed=0) for _ in range(2))
        assert torch.equal(lr, before)
        assert torch.equal(first, second)

    def test_the_seed_draws_the_posterior_and_the_mode_has_none(self, restorer: Restorer) -> None:
        sampling = configured(restorer, posterior="sample")
        one, again, two = (sampling.restore_tensor(ramp(16, 16), seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, two)
        assert torch.equal(restorer.restore_tensor(ramp(16, 16), 1), restorer.restore_tensor(ramp(16, 16), 2))

    def test_the_global_random_state_plays_no_part(self, restorer: Restorer) -> None:
        sampling = configured(restorer, posterior="sample")
        torch.manual_seed(1)
        one = sampling.restore_tensor(ramp(16, 16), seed=3)
        torch.manual_seed(2)
        assert torch.equal(one, sampling.restore_tensor(ramp(16, 16), seed=3))

    def test_colour_none_changes_colours_and_adain_restores_them(self, restorer: Restorer) -> None:
        lr = ramp(24, 24)
        plain = configured(restorer, color="none").restore_tensor(lr, 0)
        aligned = configured(restorer, color="adain").restore_tensor(lr, 0)
        means = lr.mean(dim=(2, 3))
        assert (plain.mean(dim=(2, 3)) - means).abs().max() > 0.05
        assert (aligned.mean(dim=(2, 3)) - means).abs().max() < 0.03  # clamping moves it a little

    def test_stages_are_reported_and_tiles_switched_off_by_zero(self, restorer: Restorer) -> None:
        whole = [("encode", 0, 1), ("encode", 1, 1), ("decode", 0, 1), ("decode", 1, 1)]
        for tile, overlap, tiles in ((4, 1, 9), (0, 1, 1)):
            seen: list[tuple[str, int, int]] = []
            configured(restorer, tile=tile, tile_overlap=overlap).restore_tensor(
                ramp(16, 16), 0, progress=lambda *told, seen=seen: seen.append(told)
            )
            assert seen == [*whole[:2], *(("tiles", n, tiles) for n in range(tiles + 1)), *whole[2:]]

    def test_more_positions_than_the_denoiser_knows_need_tiles(self, restorer: Restorer) -> None:
        long = ramp(8, 280)  # 140 latent positions; this denoiser knows 128
        assert restorer.restore_tensor(long, 0).shape == (1, 3, 32, 1120)
        with pytest.raises(UserError, match="--tile"):
            configured(restorer, tile=0).restore_tensor(long, 0)

    @pytest.mark.parametrize("shape", [(3, 16, 16), (2, 3, 16, 16), (1, 1, 16, 16), (1, 3, 7, 16)])
    def test_unusable_shapes_are_named(self, restorer: Restorer, shape: tuple[int, ...]) -> None:
        with pytest.raises(UserError, match=r"\(1, 3, h, w\) with sides of 8 or more"):
            restorer.restore_tensor(torch.zeros(shape), 0)

    def test_running_out_of_memory_says_what_helps(self, restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
        def decode(z: torch.Tensor) -> torch.Tensor:
            return torch.empty(2**56)  # more than any machine has: the allocator's own error

        monkeypatch.setattr(restorer.backbone, "decode", decode)
        with pytest.raises(UserError, match=r"not enough memory .*--dtype bf16.*--vae-tile"):
            restorer.restore_tensor(ramp(16, 16), 0)

    def test_other_failures_are_not_taken_for_want_of_memory(
        self, restorer: Restorer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(restorer.backbone, "decode", lambda z: torch.zeros(1, 2) @ torch.zeros(3, 1))
        with pytest.raises(RuntimeError, match="shapes"):
            restorer.restore_tensor(ramp(16, 16), 0)

    def test_bf16_is_near_fp32(self, formula_dir: Path, restorer: Restorer) -> None:
        half = Restorer.load(formula_dir, config=restorer.config, dtype=torch.bfloat16)
        assert half.backbone.dtype == torch.bfloat16
        difference = half.restore_tensor(ramp(16, 24), 0) - restorer.restore_tensor(ramp(16, 24), 0)
        assert difference.abs().mean() < 0.02

    def test_tiled_vae_is_near_the_whole(self, formula_dir: Path, restorer: Restorer) -> None:
        tiled = Restorer.load(formula_dir, config=replace(restorer.config, vae_tile=True, process_size=0))
        assert tiled.backbone.vae.use_tiling
        assert tiled.backbone.vae.tile_latent_min_size == 1024 // 8
        small = ramp(16, 16)  # within one tile: the same
        assert torch.allclose(tiled.restore_tensor(small, 0), restorer.restore_tensor(small, 0))
        tiled.backbone.vae.tile_sample_min_size, tiled.backbone.vae.tile_latent_min_size = 128, 16
        large = ramp(48, 48)
        difference = tiled.restore_tensor(large, 0) - restorer.restore_tensor(large, 0)
        assert 0 < difference.abs().mean() < 0.2


class TestWeights:
    def test_the_student_is_merged_and_the_vae_channels_last(self, restorer: Restorer) -> None:
        assert not any(".lora_" in name for name, _ in restorer.backbone.denoiser.named_modules())
        kernels = [m.weight for m in restorer.backbone.vae.modules() if isinstance(m, nn.Conv2d)]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)

    def test_merged_equals_unmerged(self, formula_dir: Path, restorer: Restorer) -> None:
        backbone = load_backbone(formula_dir)
        load_student(backbone, formula_dir / "lora" / "tsdsr", merge=False)
        unmerged = Restorer(backbone, restorer.config, restorer.sources)
        difference = unmerged.restore_tensor(ramp(16, 16), 0) - restorer.restore_tensor(ramp(16, 16), 0)
        assert difference.abs().max() < 1e-3

    def test_a_model_without_student_says_where_students_come_from(self, tiny_sd3_dir: Path) -> None:
        with pytest.raises(UserError, match=r"--lora DIR.*stable-diffusion-3-medium"):
            find_student(tiny_sd3_dir, None)

    def test_a_folder_without_student_files(self, tiny_sd3_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no transformer.safetensors and no vae.safetensors"):
            Restorer.load(tiny_sd3_dir, tmp_path)

    def test_a_model_without_prompt_says_where_prompts_come_from(self, formula_dir: Path, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        bare.mkdir()
        for part in ("transformer", "vae", "scheduler"):
            (bare / part).symlink_to(formula_dir / part)
        with pytest.raises(UserError, match="--prompt-embeds DIR"):
            Restorer.load(bare, formula_dir / "lora" / "tsdsr")
        loaded = Restorer.load(bare, formula_dir / "lora" / "tsdsr", formula_dir / "prompts" / "default")
        assert loaded.sources["prompt_embeds"] == str(formula_dir / "prompts" / "default")

    def test_a_student_of_another_model_is_refused(self, formula_dir: Path, tiny_lora_dir: Path) -> None:
        with pytest.raises(UserError):
            Restorer.load(formula_dir, tiny_lora_dir)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_no_cuda_device(self, formula_dir: Path) -> None:
        with pytest.raises(UserError, match="use cpu"):
            Restorer.load(formula_dir, device="cuda")

    def test_provenance_names_every_file_and_setting(self, restorer: Restorer, formula_dir: Path) -> None:
        import hashlib

        record = json.loads(json.dumps(restorer.provenance()))
        assert record["settings"]["color"] == "wavelet"
        assert record["dtype"] == "float32"
        assert set(record["sha256"]) == {
            "model/transformer/diffusion_pytorch_model.safetensors", "model/vae/diffusion_pytorch_model.safetensors",
            "lora/transformer.safetensors", "lora/vae.safetensors", "prompt/pool_embeds.pt", "prompt/prompt_embeds.pt",
        }  # fmt: skip
        content = (formula_dir / "lora" / "tsdsr" / "vae.safetensors").read_bytes()
        assert record["sha256"]["lora/vae.safetensors"] == hashlib.sha256(content).hexdigest()


class TestSettings:
    def test_without_recommendation_the_releases_rules_hold(self, tmp_path: Path) -> None:
        config = config_for(tmp_path)
        assert (config.color, config.posterior, config.process_size, config.tile) == ("wavelet", "sample", 512, 64)

    def test_explicit_settings_win_over_the_weights_own(self, tmp_path: Path) -> None:
        (tmp_path / "restore.json").write_text('{"color": "adain", "process_size": 0}')
        assert config_for(tmp_path) == RestoreConfig(color="adain", process_size=0)
        assert config_for(tmp_path, {"color": "none"}) == RestoreConfig(color="none", process_size=0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"colour": "adain"}', "unknown keys colour; known are .*color"),
            ('["adain"]', "holds a list"),
            ("{", "not valid JSON"),
            ('{"color": "sepia"}', "color is 'sepia'; expected one of wavelet, adain, none"),
            ('{"tile": "64"}', "tile is '64'; expected an integer"),
        ],
    )
    def test_faults_in_restore_json_are_named(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "restore.json").write_text(text)
        with pytest.raises(UserError, match=message):
            config_for(tmp_path)

    @pytest.mark.parametrize(
        "settings",
        [
            {"scale": 0.9}, {"scale": math.nan}, {"scale": "4"}, {"seed": -1}, {"posterior": "mean"},
            {"vae_tile": 1}, {"tile": True}, {"tile": 8, "tile_overlap": 8},
        ],
    )  # fmt: skip
    def test_impossible_settings(self, settings: dict[str, object]) -> None:
        with pytest.raises(UserError, match=str(list(settings)[-1])):
            RestoreConfig(**settings)  # pyright: ignore[reportArgumentType]


class TestImages:
    def test_pillow_in_pillow_out(self, restorer: Restorer) -> None:
        for mode in ("L", "LA", "RGB", "RGBA"):
            image = Image.fromarray((ramp(16, 20)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).convert(mode)
            restored = restorer(image)
            assert isinstance(restored, Image.Image)
            assert (restored.mode, restored.size) == (mode, (80, 64))

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    @pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
    def test_numpy_in_numpy_out(self, restorer: Restorer, dtype: type, channels: tuple[int, ...]) -> None:
        scale = 1 if dtype is np.float32 else np.iinfo(dtype).max
        array = (np.random.default_rng(0).random((8, 12, *channels)) * scale).astype(dtype)
        restored = restorer(array)
        assert isinstance(restored, np.ndarray)
        assert restored.dtype == dtype
        assert restored.shape == (32, 48, *channels)
        assert restored.max() > 0.2 * scale

    def test_a_path_gives_a_pillow_image(self, restorer: Restorer, tmp_path: Path) -> None:
        Image.new("RGB", (8, 9), (200, 100, 50)).save(tmp_path / "a.png")
        restored = restorer(tmp_path / "a.png")
        assert isinstance(restored, Image.Image)
        assert restored.size == (32, 36)
        sampling = configured(restorer, posterior="sample")
        with Image.open(tmp_path / "a.png") as image:
            assert np.array_equal(sampling(tmp_path / "a.png"), sampling(image, "a"))

    def test_alpha_is_enlarged_not_invented(self, restorer: Restorer) -> None:
        alpha = np.zeros((16, 16), np.float32)
        alpha[:, 8:] = 1
        picture = Picture(np.full((16, 16, 3), 0.5, np.float32), alpha)
        restored = restorer.restore_picture(picture)
        assert restored.alpha is not None
        assert restored.alpha.shape == (64, 64)
        assert np.allclose(restored.alpha[:, :24], 0)
        assert np.allclose(restored.alpha[:, 40:], 1)

    def test_the_posterior_draw_follows_the_name_not_the_order(self, restorer: Restorer) -> None:
        sampling = configured(restorer, posterior="sample")
        picture = Picture(ramp(12, 12)[0].permute(1, 2, 0).numpy())
        first = [sampling.restore_picture(picture, name).color for name in ("a", "b")]
        second = [sampling.restore_picture(picture, name).color for name in ("b", "a")]
        assert np.array_equal(first[0], second[1])
        assert np.array_equal(first[1], second[0])
        assert not np.array_equal(first[0], first[1])


def test_prompts_may_be_safetensors(formula_dir: Path, restorer: Restorer, tmp_path: Path) -> None:
    for name in ("prompt_embeds", "pool_embeds"):
        tensor = torch.load(formula_dir / "prompts" / "default" / f"{name}.pt", weights_only=True)
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    again = Restorer.load(formula_dir, prompt_embeds=tmp_path, config=restorer.config)
    assert torch.equal(again.restore_tensor(ramp(8, 8), 0), restorer.restore_tensor(ramp(8, 8), 0))


def test_the_shipped_student_keeps_flat_colours_and_gray() -> None:
    restorer = Restorer.load()
    for color in ((220, 20, 20), (128, 64, 200), (250, 230, 30), (224, 172, 140), (128, 128, 128), (255, 255, 255)):
        restored = np.asarray(restorer(np.full((40, 40, 3), color, np.uint8))).astype(float)
        assert np.abs(restored.mean(axis=(0, 1)) - color).max() <= 2
        if len(set(color)) == 1:
            assert np.ptp(restored, axis=2).max() == 0
