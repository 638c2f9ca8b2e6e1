"""Adapters: strict released layout, roles on one base, merging."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsd.config import CriticLayers
from tsd.errors import UserError
from tsd.model.backbone import load_backbone
from tsd.model.lora import (
    STUDENT,
    VAE_FILE,
    adapter_parameters,
    attach,
    attach_roles,
    denoiser_targets,
    load_student,
    role,
    save_student,
    vae_targets,
)
from tsd.presets import MINI


def released_copy(lora_dir: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    for file in ("transformer.safetensors", VAE_FILE):
        (tmp_path / file).write_bytes((lora_dir / file).read_bytes())
    return tmp_path, load_file(tmp_path / "transformer.safetensors")


def test_targets_are_those_of_the_release(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    targets = denoiser_targets(backbone.denoiser, backbone.family.student_targets)
    assert "pos_embed.proj" in targets
    assert "transformer_blocks.0.ff.net.0.proj" in targets
    assert "transformer_blocks.1.norm1_context.linear" in targets
    assert "norm_out.linear" in targets
    assert "proj_out" in targets
    assert not any("to_add_out" in name or "net.2" in name or "embedder" in name for name in targets)
    vae = vae_targets(backbone.vae)
    assert "encoder.mid_block.attentions.0.to_out.0" in vae
    assert "encoder.down_blocks.0.downsamplers.0.conv" in vae
    assert not any(name.startswith("decoder") for name in vae)


@pytest.mark.parametrize("model", ["tiny_sd3_dir", "tiny_sd2_dir"])
def test_the_critic_may_adapt_the_layers_of_the_student(model: str, request: pytest.FixtureRequest) -> None:
    """The student's own start does not depend on it."""
    found = {}
    for layers in get_args(CriticLayers):
        backbone = load_backbone(request.getfixturevalue(model))
        attach_roles(backbone, dataclasses.replace(MINI, rank=4, vae_rank=4, critic_rank=2, critic_layers=layers))
        found[layers] = {role: adapter_parameters(backbone.denoiser, role) for role in ("student", "critic")}
    assert found["student"]["critic"].keys() == found["student"]["student"].keys()
    assert all(min(value.shape[:2]) <= 2 for value in found["student"]["critic"].values())
    assert found["attention"]["critic"].keys() < found["student"]["critic"].keys()
    assert all(".attn" in key for key in found["attention"]["critic"])
    for key, value in found["attention"]["student"].items():
        assert torch.equal(value, found["student"]["student"][key])


def test_merged_equals_unmerged(tiny_sd3_dir: Path, tiny_lora_dir: Path) -> None:
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    bare = load_backbone(tiny_sd3_dir)
    merged = load_backbone(tiny_sd3_dir)
    load_student(merged, tiny_lora_dir)
    unmerged = load_backbone(tiny_sd3_dir)
    load_student(unmerged, tiny_lora_dir, merge=False)
    outputs = []
    with torch.no_grad():
        for backbone in (bare, merged, unmerged):
            with role(backbone.denoiser, STUDENT), role(backbone.vae, STUDENT):
                outputs.append(backbone.decode(backbone.one_step(backbone.encode(x, posterior="mode"))))
    assert not any("lora" in name for name, _ in merged.denoiser.named_parameters())
    torch.testing.assert_close(outputs[1], outputs[2], atol=1e-4, rtol=1e-4)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2


def test_saving_and_loading_keeps_every_bit(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    load_student(backbone, tiny_lora_dir, merge=False)
    save_student(backbone, tmp_path)
    for file in ("transformer.safetensors", VAE_FILE):
        first, second = load_file(tiny_lora_dir / file), load_file(tmp_path / file)
        assert first.keys() == second.keys()
        assert all(key.startswith("transformer.") for key in first)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "layout", "rank"])
def test_wrong_keys_are_named(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path, fault: str) -> None:
    folder, state = released_copy(tiny_lora_dir, tmp_path)
    key = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    tensor = state.pop(key)
    named = {
        "missing": (None, key.removeprefix("transformer.")),
        "extra": ("transformer.transformer_blocks.9.attn.to_q.lora_A.weight", "transformer_blocks.9.attn.to_q"),
        "shape": (key, "attn.to_q.lora_A.weight"),
        "layout": ("base_model.to_q.weight", "base_model.to_q.weight"),
        "rank": (key, "ranks"),
    }
    new_key, message = named[fault]
    if new_key is not None:
        if fault != "shape":
            state[key] = tensor
        state[new_key] = {"shape": tensor[:, :-1], "rank": tensor[:2]}.get(fault, tensor).clone()
    save_file(state, folder / "transformer.safetensors")
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        load_student(load_backbone(tiny_sd3_dir), folder)


def test_missing_and_damaged_files_are_named(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    with pytest.raises(UserError, match="no LoRA folder"):
        load_student(backbone, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"transformer\.safetensors"):
        load_student(backbone, tmp_path)
    (tmp_path / "transformer.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(UserError, match="damaged"):
        load_student(backbone, tmp_path)


def test_roles_share_one_base_and_leave_gradients_alone(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    denoiser = backbone.denoiser
    base = dict(denoiser.named_parameters())
    attach(denoiser, "student", denoiser_targets(denoiser, backbone.family.student_targets), 4, seed=1)
    attach(denoiser, "critic", denoiser_targets(denoiser, backbone.family.critic_targets), 4, seed=2)
    for parameter in adapter_parameters(denoiser, "critic").values():
        parameter.data.normal_()
        parameter.requires_grad_(False)
    z, t, prompt = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), backbone.prompts["null"]
    with torch.no_grad():
        outputs = {}
        for name in ("student", "critic", "teacher"):
            with role(denoiser, name):
                outputs[name] = backbone.predict(z, t, prompt)
    torch.testing.assert_close(outputs["student"], outputs["teacher"])  # B = 0 at the start
    assert (outputs["critic"] - outputs["teacher"]).abs().max() > 1e-3
    assert all(p.requires_grad for p in adapter_parameters(denoiser, "student").values())
    assert not any(p.requires_grad for p in adapter_parameters(denoiser, "critic").values())
    base_now = {n for n, _ in denoiser.named_parameters() if "lora" not in n}
    assert len(base_now) == len(base)  # no second copy of the base


def test_attach_is_seeded_and_refuses_twice(tiny_sd3_dir: Path) -> None:
    first, second = load_backbone(tiny_sd3_dir), load_backbone(tiny_sd3_dir)
    for backbone in (first, second):
        torch.rand(3)  # the global stream must not matter
        attach(backbone.vae, "student", vae_targets(backbone.vae), 4, seed=7)
    a, b = (adapter_parameters(backbone.vae, "student") for backbone in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(ValueError, match="already has a 'student' adapter"):
        attach(first.vae, "student", vae_targets(first.vae), 4, seed=7)
    with pytest.raises(ValueError, match="no module to adapt"):
        attach(first.vae, "critic", [], 4, seed=7)
