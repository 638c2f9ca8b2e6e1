"""Recomputed activations must be those of the role that was active, on both families."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsd.algorithm.pixel_loss import charbonnier
from tsd.algorithm.turns import Batch, critic_turn, student_turn
from tsd.config import Phase
from tsd.model.backbone import Backbone, load_backbone
from tsd.model.gradient_checkpointing import enable_gradient_checkpointing
from tsd.model.lora import adapter_parameters, attach, denoiser_targets, vae_targets
from tsd.presets import PAPER

CONFIG = dataclasses.replace(PAPER, guidance_scale=2.0)
PHASE = Phase(steps=1, latent_mse=0.5, gamma2=1.0, point_weights=(1.0, 0.3))


def with_adapters(folder: Path) -> Backbone:
    backbone = load_backbone(folder)
    denoiser, family = backbone.denoiser, backbone.family
    attach(denoiser, "student", denoiser_targets(denoiser, family.student_targets), 4, seed=1)
    attach(backbone.vae, "student", vae_targets(backbone.vae), 4, seed=2)
    attach(denoiser, "critic", denoiser_targets(denoiser, family.critic_targets), 4, seed=3)
    torch.manual_seed(4)
    for module, role in ((denoiser, "student"), (backbone.vae, "student"), (denoiser, "critic")):
        for parameter in adapter_parameters(module, role).values():
            parameter.data.normal_(std=0.05)
    return backbone


def gradients_of_both_turns(backbone: Backbone) -> dict[str, Tensor]:
    torch.manual_seed(5)
    x_L, x_H = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    turn = student_turn(backbone, Batch(x_L, x_H, [7, 8]), CONFIG, PHASE, 1.0, charbonnier)
    turn.loss.backward()
    critic_turn(backbone, turn.z_hat, [7, 8], CONFIG).loss.backward()
    modules = {"denoiser": backbone.denoiser, "vae": backbone.vae}
    return {
        f"{name}.{role}.{key}": parameter.grad
        for name, module in modules.items()
        for role in ("student", "critic")
        for key, parameter in adapter_parameters(module, role).items()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_gradients_are_those_without(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"tiny_{family}_dir")
    plain = gradients_of_both_turns(with_adapters(folder))
    backbone = with_adapters(folder)
    enable_gradient_checkpointing(backbone.denoiser, backbone.vae)
    assert backbone.denoiser.is_gradient_checkpointing
    again = gradients_of_both_turns(backbone)
    assert plain.keys() == again.keys()
    assert any("student" in name for name in plain)
    assert any("critic" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=0)


def test_diffusers_own_recomputation_falls_into_the_trap(tiny_sd3_dir: Path) -> None:
    """Why this module exists: this test fails when a release of diffusers or peft makes it needless."""
    plain = gradients_of_both_turns(with_adapters(tiny_sd3_dir))
    backbone = with_adapters(tiny_sd3_dir)
    backbone.denoiser.enable_gradient_checkpointing()
    try:
        again = gradients_of_both_turns(backbone)
    except torch.utils.checkpoint.CheckpointError:  # another number of tensors: torch noticed
        return
    assert any(name not in again or not torch.equal(again[name], gradient) for name, gradient in plain.items())


def test_activations_are_forgotten(tiny_sd3_dir: Path) -> None:
    """The bytes that the graph of a decoding keeps."""

    def kept(backbone: Backbone) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone.decode(torch.randn(1, 4, 8, 8, requires_grad=True))
        return sum(sizes)

    backbone = load_backbone(tiny_sd3_dir)
    before = kept(backbone)
    enable_gradient_checkpointing(backbone.vae)
    assert kept(backbone) < before / 2
