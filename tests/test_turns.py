"""The two turns on the tiny model: captions, stored posteriors, and what each of them reaches."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsd.backbone import Backbone, PromptEmbeds, load_backbone
from tsd.config import PAPER, Phase, TrainConfig
from tsd.lora import adapter_parameters, attach, denoiser_targets, vae_targets
from tsd.pixel_loss import charbonnier
from tsd.turns import Batch, critic_turn, student_turn

CONFIG = dataclasses.replace(PAPER, guidance_scale=2.0, stride=150.0, random_bias=True)
PHASE = Phase(steps=1, latent_mse=0.5, gamma2=1.0, point_weights=(1.0, 0.3, 0.3))
INDICES = [7, 8]


@pytest.fixture
def backbone(tiny_sd3_dir: Path) -> Backbone:
    """The tiny model with a student and a critic that differ from the base."""
    backbone = load_backbone(tiny_sd3_dir)
    denoiser, family = backbone.denoiser, backbone.family
    attach(denoiser, "student", denoiser_targets(denoiser, family.student_targets), 4, seed=1)
    attach(backbone.vae, "student", vae_targets(backbone.vae), 4, seed=2)
    attach(denoiser, "critic", denoiser_targets(denoiser, family.critic_targets), 4, seed=3)
    for module, role in ((denoiser, "student"), (backbone.vae, "student"), (denoiser, "critic")):
        for parameter in adapter_parameters(module, role).values():
            parameter.data.normal_(std=0.05)
    return backbone


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    x_L, x_H = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    return x_L, x_H


def captions() -> PromptEmbeds:
    return PromptEmbeds(torch.randn(2, 5, 12), torch.randn(2, 10))


def one_of(texts: PromptEmbeds, i: int) -> PromptEmbeds:
    assert texts.pooled is not None
    return PromptEmbeds(texts.embeds[i : i + 1], texts.pooled[i : i + 1])


def tsd(backbone: Backbone, batch: Batch, config: TrainConfig = CONFIG) -> Tensor:
    return student_turn(backbone, batch, config, PHASE, 1.0, charbonnier).logs["tsd"]


@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_stored_moments_give_the_latents_that_encoding_gives(
    backbone: Backbone, images: tuple[Tensor, Tensor], posterior: str
) -> None:
    """Also with the other sample's moments swapped in, to see that they are read at all."""
    config = dataclasses.replace(CONFIG, posterior=posterior)
    x_L, x_H = images
    with torch.no_grad():
        clean = load_backbone(Path(backbone.source))  # the frozen encoder, without any adapter
        moments = clean.vae.encode(x_H).latent_dist.parameters
    encoded = student_turn(backbone, Batch(x_L, x_H, INDICES), config, PHASE, 1.0, charbonnier)
    stored = student_turn(backbone, Batch(x_L, x_H, INDICES, posterior=moments), config, PHASE, 1.0, charbonnier)
    for name in ("latent_mse", "tsd", "student"):
        torch.testing.assert_close(stored.logs[name], encoded.logs[name], atol=1e-6, rtol=1e-6)
    swapped = student_turn(
        backbone, Batch(x_L, x_H, INDICES, posterior=moments.flip(0)), config, PHASE, 1.0, charbonnier
    )
    assert abs(float(swapped.logs["latent_mse"] - encoded.logs["latent_mse"])) > 1e-4


def test_captions_reach_teacher_and_critic_but_not_the_student(
    backbone: Backbone, images: tuple[Tensor, Tensor]
) -> None:
    """Every sample sees its own: a batch equals its samples alone, and captions that are the default change nothing."""
    batch, texts = Batch(*images, INDICES), captions()
    with_texts = dataclasses.replace(batch, prompt=texts)
    turn, plain = (student_turn(backbone, b, CONFIG, PHASE, 1.0, charbonnier) for b in (with_texts, batch))
    assert torch.equal(turn.z_hat, plain.z_hat)
    assert abs(float(turn.logs["tsd"] - plain.logs["tsd"])) > 1e-6
    default = backbone.prompts["default"].expand(2)
    torch.testing.assert_close(tsd(backbone, dataclasses.replace(batch, prompt=default)), plain.logs["tsd"])

    alone = []
    for i, x_L, x_H in zip(range(2), *images, strict=True):
        alone.append(tsd(backbone, Batch(x_L[None], x_H[None], [INDICES[i]], prompt=one_of(texts, i))))
    torch.testing.assert_close(turn.logs["tsd"], torch.stack(alone).mean(), atol=1e-6, rtol=1e-4)


def test_the_critic_learns_under_the_captions(backbone: Backbone) -> None:
    z_hat, texts = torch.randn(2, 4, 4, 4), captions()

    def loss(batch: slice, prompt: PromptEmbeds | None = None) -> Tensor:
        return critic_turn(backbone, z_hat[batch], INDICES[batch], CONFIG, prompt).detach()

    both = slice(2)
    default, captioned = loss(both), loss(both, texts)
    torch.testing.assert_close(loss(both, backbone.prompts["default"].expand(2)), default)
    assert abs(float(default - captioned)) > 1e-6
    alone = [loss(slice(i, i + 1), one_of(texts, i)) for i in range(2)]
    torch.testing.assert_close(captioned, torch.stack(alone).mean(), atol=1e-6, rtol=1e-5)
