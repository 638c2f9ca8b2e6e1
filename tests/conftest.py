"""Fixtures shared by all tests: offline, seeded, and built from real library classes in tiny configurations."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from safetensors.torch import save_file


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real test sets and weights beside the repository; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no ../shared/data beside the repository: real test sets and weights are not redistributable")
    return folder


def build_tiny_sd3(folder: Path, *, vae_channels: tuple[int, ...] = (8, 8, 8, 8), shift: float = 3.0) -> Path:
    """A random SD3-family model in diffusers layout: the real classes, a few thousand parameters.

    Like SD3-medium it has 8 pixels per latent, patch 2, a shift factor that must be ignored, and shift 3.0.
    """
    torch.manual_seed(1234)
    SD3Transformer2DModel(
        sample_size=64,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=64,
    ).save_pretrained(folder / "transformer")
    save_tiny_vae(folder, vae_channels, quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305)
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    for name in ("default", "null"):
        prompt = folder / "prompts" / name
        prompt.mkdir(parents=True)
        save_file({"prompt_embeds": torch.randn(1, 5, 12)}, prompt / "prompt_embeds.safetensors")
        save_file({"pool_embeds": torch.randn(1, 10)}, prompt / "pool_embeds.safetensors")
    return folder


def save_tiny_vae(folder: Path, channels: tuple[int, ...], *, quant_conv: bool, **factors: float) -> None:
    blocks = len(channels)
    AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
        **factors,
    ).save_pretrained(folder / "vae")


def build_tiny_sd2(folder: Path, *, prediction_type: str = "epsilon") -> Path:
    """A random SD2-family model in diffusers layout: the real classes, a few thousand parameters.

    Like SD2-base it has four levels in VAE and UNet, linear projections around attention, head counts by level, and
    PNDM's scheduler configuration with the scaled linear betas.
    """
    torch.manual_seed(4321)
    UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        attention_head_dim=(1, 1, 2, 2),
        cross_attention_dim=12,
        norm_num_groups=4,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    save_tiny_vae(folder, (8, 8, 8, 8), quant_conv=True, scaling_factor=0.18215)
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    for name in ("default", "null"):
        prompt = folder / "prompts" / name
        prompt.mkdir(parents=True)
        save_file({"prompt_embeds": torch.randn(1, 5, 12)}, prompt / "prompt_embeds.safetensors")
    return folder


def save_random_student(model: Path, folder: Path) -> Path:
    """A random rank-4 student of `model` in the released layout, large enough to change the result."""
    from tsd.backbone import load_backbone
    from tsd.lora import STUDENT, adapter_parameters, attach, denoiser_targets, save_student, vae_targets

    backbone = load_backbone(model)
    attach(backbone.denoiser, STUDENT, denoiser_targets(backbone.denoiser, backbone.family.student_targets), 4, seed=1)
    attach(backbone.vae, STUDENT, vae_targets(backbone.vae), 4, seed=2)
    torch.manual_seed(5)
    for module in (backbone.denoiser, backbone.vae):
        for parameter in adapter_parameters(module, STUDENT).values():
            parameter.data.normal_(std=0.1)
    save_student(backbone, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `build_tiny_sd3`. Session-wide: treat as read-only."""
    return build_tiny_sd3(tmp_path_factory.mktemp("tiny") / "sd3")


@pytest.fixture(scope="session")
def tiny_sd2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `build_tiny_sd2`; epsilon prediction. Session-wide: treat as read-only."""
    return build_tiny_sd2(tmp_path_factory.mktemp("tiny") / "sd2")


@pytest.fixture(scope="session")
def tiny_sd2_v_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `build_tiny_sd2`; v prediction. Session-wide: treat as read-only."""
    return build_tiny_sd2(tmp_path_factory.mktemp("tiny") / "sd2-v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_lora_dir(tiny_sd3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student for `tiny_sd3_dir`, see `save_random_student`."""
    return save_random_student(tiny_sd3_dir, tmp_path_factory.mktemp("tiny") / "lora")


@pytest.fixture(scope="session")
def tiny_sd2_lora_dir(tiny_sd2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student for `tiny_sd2_dir`, see `save_random_student`."""
    return save_random_student(tiny_sd2_dir, tmp_path_factory.mktemp("tiny") / "lora-sd2")
