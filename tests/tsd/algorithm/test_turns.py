"""The two turns on the tiny model: captions, stored posteriors, and where their gradients go."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsd.algorithm.objective import in_residual_form, time_weight
from tsd.algorithm.pixel_loss import charbonnier
from tsd.algorithm.turns import (
    Batch,
    critic_turn,
    ground_truth_latents,
    noise_for,
    regularisation_gradient,
    student_turn,
    times_for,
)
from tsd.config import Phase, TrainConfig
from tsd.memory.live_bytes import LiveBytes
from tsd.model.backbone import Backbone, load_backbone
from tsd.model.lora import adapter_parameters, attach, denoiser_targets, role, vae_targets
from tsd.model.prompt import PromptEmbeds
from tsd.presets import PAPER

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
    for module, active in ((denoiser, "student"), (backbone.vae, "student"), (denoiser, "critic")):
        for parameter in adapter_parameters(module, active).values():
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
    """The other sample's moments are swapped in too, to see that moments are read at all."""
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
    """Every sample uses its own caption: a batch equals its samples alone, and default captions change nothing."""
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
        return critic_turn(backbone, z_hat[batch], INDICES[batch], CONFIG, prompt).loss.detach()

    both = slice(2)
    default, captioned = loss(both), loss(both, texts)
    torch.testing.assert_close(loss(both, backbone.prompts["default"].expand(2)), default)
    assert abs(float(default - captioned)) > 1e-6
    alone = [loss(slice(i, i + 1), one_of(texts, i)) for i in range(2)]
    torch.testing.assert_close(captioned, torch.stack(alone).mean(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("gamma1", "latent_mse", "gamma2"), [(1.0, 0.5, 2.0), (0.0, 0.5, 2.0), (0.7, 0.0, 0.0)])
def test_gradient_sizes_are_those_of_autograd_on_each_part(
    backbone: Backbone, images: tuple[Tensor, Tensor], gamma1: float, latent_mse: float, gamma2: float
) -> None:
    """On ẑ as a leaf, each part differentiated alone, as a sum over elements; whatever the loss is scaled by."""
    phase = Phase(steps=1, latent_mse=latent_mse, gamma2=gamma2, point_weights=(1.0, 0.3))
    batch = Batch(*images, INDICES)
    turn = student_turn(backbone, batch, CONFIG, phase, gamma1, charbonnier)
    (1024.0 / 4 * turn.loss).backward()
    found = turn.gradient_sizes(1024.0 / 4)

    z = ground_truth_latents(backbone, batch, CONFIG)
    leaf = turn.z_hat.clone().requires_grad_()
    data = latent_mse * (leaf - z).square().mean()
    with role(backbone.vae, "teacher"):
        data = data + gamma1 * charbonnier(backbone.decode(leaf), batch.x_H)
    (expected,) = torch.autograd.grad(data * leaf.numel(), leaf)
    sizes = {"data_grad_rms": expected.square().mean().sqrt()}
    if gamma2:
        tsd, _ = regularisation_gradient(backbone, turn.z_hat, z, batch, CONFIG, phase)
        sizes["tsd_grad_rms"] = gamma2 * tsd.square().mean().sqrt()
        sizes["grad_cosine"] = (expected * tsd).sum() / (expected.norm() * tsd.norm())
    assert found.keys() == sizes.keys()
    for name, size in sizes.items():
        torch.testing.assert_close(found[name], size, rtol=1e-3, atol=1e-5)


def test_without_data_terms_only_the_size_of_tsd_is_told(backbone: Backbone, images: tuple[Tensor, Tensor]) -> None:
    phase = Phase(steps=1, latent_mse=0.0, gamma2=1.0, point_weights=(1.0,))
    turn = student_turn(backbone, Batch(*images, INDICES), CONFIG, phase, 0.0, None)
    turn.loss.backward()
    assert turn.gradient_sizes(1.0).keys() == {"tsd_grad_rms"}


def test_the_gain_is_the_teachers_loss_minus_the_critics(backbone: Backbone) -> None:
    """Both at the same ẑ_t under the same captions; the measurement changes neither loss nor gradient."""
    z_hat, texts, process = torch.randn(2, 4, 4, 4), captions(), backbone.process
    for parameter in adapter_parameters(backbone.denoiser, "critic").values():
        parameter.data.normal_(std=0.5)
    turn = critic_turn(backbone, z_hat, INDICES, CONFIG, texts, measure_gain=True)
    noise = noise_for(CONFIG.seed, "noise of the critic", INDICES, z_hat)
    t = times_for(CONFIG.seed, "t of the critic", INDICES, *CONFIG.t_range, torch.device("cpu"))
    z_t, target = process.add_noise(z_hat, noise, t), process.target(z_hat, noise, t)
    losses = {}
    for active in ("teacher", "critic"):
        with torch.no_grad(), role(backbone.denoiser, active):  # pyright: ignore
            losses[active] = (backbone.predict(z_t, t, texts) - target).square().mean()
    torch.testing.assert_close(turn.logs["critic"], losses["critic"])
    torch.testing.assert_close(turn.logs["critic_gain"], losses["teacher"] - losses["critic"])
    assert abs(float(turn.logs["critic_gain"])) > 1e-5
    plain = critic_turn(backbone, z_hat, INDICES, CONFIG, texts)
    assert plain.logs.keys() == {"critic"}
    parameters = list(adapter_parameters(backbone.denoiser, "critic").values())
    gradients = [torch.autograd.grad(one.loss, parameters) for one in (turn, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    others = [critic_turn(backbone, z_hat, INDICES, CONFIG, texts, update=k).loss.detach() for k in (0, 1, 2)]
    assert torch.equal(others[0], plain.logs["critic"])
    assert len({float(loss) for loss in others}) == 3


def naive_gradient(backbone: Backbone, z_hat: Tensor, z: Tensor, texts: PromptEmbeds, config: TrainConfig) -> Tensor:
    """Algorithm 1 word by word: one sample, one role, one prompt per forward pass, Eq. 5 summed over the points."""
    process, null = backbone.process, backbone.prompts["null"]
    noise = noise_for(config.seed, "noise of TSD", INDICES, z)
    start = times_for(config.seed, "t of TSD", INDICES, *config.t_range, torch.device("cpu"))
    gradient = torch.zeros_like(z)

    def guided(active: str, z_t: Tensor, t: Tensor, text: PromptEmbeds) -> Tensor:
        with role(backbone.denoiser, active):  # pyright: ignore
            conditional, unconditional = (backbone.predict(z_t, t, prompt) for prompt in (text, null))
        return unconditional + config.guidance_scale * (conditional - unconditional)

    for i in range(len(z)):
        row, t, text = slice(i, i + 1), start[i : i + 1], one_of(texts, i)
        z_hat_t, z_t = process.add_noise(z_hat[row], noise[row], t), process.add_noise(z[row], noise[row], t)
        for weight in PHASE.point_weights:
            if t <= 0:
                break
            predictions = (
                (guided("teacher", z_hat_t, t, text), z_hat_t),
                (guided("teacher", z_t, t, text), z_t),
                (guided("critic", z_hat_t, t, text), z_hat_t),
            )
            psi_hat, psi_z, phi = (in_residual_form(process, v, at, t, config.residual) for v, at in predictions)
            w = weight * time_weight(process, t, config.weighting)
            gradient[row] += w * (psi_hat - psi_z + config.lambda_tsd * (psi_z - phi))
            t_next = (t - config.stride).clamp(min=0)
            z_hat_t, z_t = (
                process.step(z_hat_t, predictions[2][0], t, t_next),
                process.step(z_t, predictions[1][0], t, t_next),
            )
            t = t - config.stride
    return gradient


@pytest.mark.parametrize("lambda_tsd", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("chunk", [None, 2, 6])
def test_batched_and_chunked_evaluation_is_the_naive_one(
    backbone: Backbone, images: tuple[Tensor, Tensor], lambda_tsd: float, chunk: int | None
) -> None:
    """Equal to 1e-6 in fp32, whatever is batched, left out or split; a sample leaves the trajectory on the way."""
    config = dataclasses.replace(CONFIG, lambda_tsd=lambda_tsd, random_bias=False, t_range=(100.0, 500.0))
    z_hat, z = torch.randn(2, 2, 4, 4, 4)
    batch = Batch(*images, INDICES, prompt=captions())
    assert batch.prompt is not None
    start = times_for(config.seed, "t of TSD", INDICES, *config.t_range, torch.device("cpu"))
    assert (start - 2 * config.stride > 0).tolist() != [True, True]
    found, sizes = regularisation_gradient(backbone, z_hat, z, batch, config, PHASE, chunk)
    with torch.no_grad():
        expected = naive_gradient(backbone, z_hat, z, batch.prompt, config)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6 * float(expected.abs().max()))
    assert ("tsm_rms" in sizes, "vsd_rms" in sizes) == (lambda_tsd < 1, True)


def test_nothing_is_evaluated_that_nobody_reads(
    backbone: Backbone, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents that pass through the denoiser, with guidance: 4B + 2B a point, less those that λ or the end saves."""
    passed: list[int] = []
    predict = backbone.predict
    monkeypatch.setattr(backbone, "predict", lambda z, t, prompt: passed.append(len(z)) or predict(z, t, prompt))

    def count(batch: Batch, **changes: object) -> list[int]:
        passed.clear()
        config = dataclasses.replace(CONFIG, **{"t_range": (600.0, 900.0), **changes})
        regularisation_gradient(backbone, torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), batch, config, PHASE)
        return list(passed)

    batch = Batch(*images, INDICES)
    assert count(batch) == [8, 4] * 3
    assert count(batch, lambda_tsd=1.0) == [4, 4] * 3
    assert count(batch, lambda_tsd=0.0) == [8, 4, 8, 4, 8]
    assert count(batch, t_range=(100.0, 110.0)) == [8, 4]  # t − s < 0 for both samples: one point is all


def test_inside_autocast_adapters_do_not_copy_their_inputs(
    backbone: Backbone, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients equal those with peft's detour through fp32 bit for bit, and the graph is smaller."""
    backbone.vae.to(torch.bfloat16), backbone.denoiser.to(torch.bfloat16)
    parameters = {**adapter_parameters(backbone.denoiser, "student"), **adapter_parameters(backbone.vae, "student")}
    for parameter in [*parameters.values(), *adapter_parameters(backbone.denoiser, "critic").values()]:
        parameter.data = parameter.data.float()
    x_L, x_H = (x.bfloat16() for x in images)
    moments = torch.randn(2, 8, 4, 4)

    def run() -> tuple[Tensor, list[Tensor], int]:
        for parameter in parameters.values():
            parameter.grad = None
        with LiveBytes(backbone.denoiser, backbone.vae) as meter, torch.autocast("cpu", torch.bfloat16):
            before = meter.live
            batch = Batch(x_L, x_H, INDICES, posterior=moments)
            turn = student_turn(backbone, batch, CONFIG, PHASE, 1.0, charbonnier)
            graph = meter.live - before
        turn.loss.backward()
        return turn.loss.detach(), [p.grad for p in parameters.values() if p.grad is not None], graph

    loss, gradients, graph = run()
    monkeypatch.setattr("tsd.algorithm.turns.no_input_upcast", lambda *models: nullcontext())
    other_loss, other_gradients, other_graph = run()
    assert torch.equal(loss, other_loss)
    assert len(gradients) == len(other_gradients) == len(parameters)
    assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))
    assert graph < 0.95 * other_graph
