"""Adapters: strict released layout, roles on one base, merging."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tsd.config import CriticLayers
from tsd.errors import UserError
from tsd.model.backbone import load_backbone
from tsd.model.loading import FAMILIES
from tsd.model.lora import (
    STUDENT,
    VAE_FILE,
    adapter_parameters,
    attach,
    attach_roles,
    check_lora,
    denoiser_targets,
    load_student,
    read_lora,
    role,
    save_student,
    vae_targets,
    write_adapter_config,
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


def stating(folder: Path, form: str, alpha: float, rank: int = 4) -> Path:
    """Rewrites the two files of a student so that they state alpha in one of the known forms."""
    for file in ("transformer.safetensors", VAE_FILE):
        state = load_file(folder / file)
        header = {
            "diffusers": {
                "lora_adapter_metadata": json.dumps({"transformer.r": rank, "transformer.lora_alpha": alpha})
            },
            "kohya": {"ss_network_alpha": str(alpha), "ss_network_dim": str(rank)},
            "export": {"tsd_student": json.dumps({"rank": rank, "alpha": alpha})},
        }.get(form)
        if form == "keys":
            modules = {key.rsplit(".lora_", 1)[0] for key in state}
            state |= {f"{module}.alpha": torch.tensor(float(alpha)) for module in modules}
        save_file(state, folder / file, header)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    if form == "rslora":
        config |= {"use_rslora": True}
    if form == "pattern":
        config |= {"lora_alpha": 4 * alpha, "alpha_pattern": {".*": alpha}}
    if form in ("peft", "rslora", "pattern"):
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("form", ["diffusers", "kohya", "export", "keys", "peft", "rslora", "pattern"])
def test_alpha_is_read_wherever_it_is_stated(
    tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path, form: str
) -> None:
    """For a student, for one to start from, and for a teacher, which all read by `read_lora`."""
    released_copy(tiny_lora_dir, tmp_path)
    plain = read_lora(tmp_path / "transformer.safetensors", FAMILIES["sd3"])
    stating(tmp_path, form, alpha=1)
    scale = 1 / 2 if form == "rslora" else 1 / 4
    family, config = FAMILIES["sd3"], dataclasses.replace(MINI, rank=4, vae_rank=4, critic_rank=2)
    for file in ("transformer.safetensors", VAE_FILE):
        found, before = read_lora(tmp_path / file, family), read_lora(tiny_lora_dir / file, family)
        assert found.keys() == before.keys()
        for key, value in found.items():
            assert torch.allclose(value, before[key] * (scale if "lora_B" in key else 1))
    backbone, other = load_backbone(tiny_sd3_dir), load_backbone(tiny_sd3_dir)
    load_student(backbone, tmp_path, merge=False)
    targets = denoiser_targets(other.denoiser, other.family.student_targets)
    attach_roles(other, config, init_lora=tmp_path, teacher_lora=tmp_path, teacher_targets=targets)
    for role_, base in ((STUDENT, backbone), (STUDENT, other), ("teacher", other)):
        for name, parameter in adapter_parameters(base.denoiser, role_).items():
            assert torch.allclose(parameter, plain[name] * (scale if "lora_B" in name else 1))


def test_an_adapter_of_unknown_strength_is_refused(tiny_lora_dir: Path, tmp_path: Path) -> None:
    family, file = FAMILIES["sd3"], tmp_path / "transformer.safetensors"
    released_copy(tiny_lora_dir, tmp_path)
    stating(tmp_path, "keys", alpha=2)
    stating(tmp_path, "diffusers", alpha=1)
    with pytest.raises(UserError, match=r"strength of .* is unknown: .* contradict each other"):
        read_lora(file, family)
    released_copy(tiny_lora_dir, tmp_path)
    save_file(load_file(file), file, {"lora_adapter_metadata": "no JSON"})
    with pytest.raises(UserError, match="is no JSON"):
        check_lora(file, family)


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"peft_type": "LOHA"},
        {"init_lora_weights": "pissa"},
        {"modules_to_save": ["x"]},
    ],
)
def test_adapters_that_are_more_than_a_product_are_refused(
    tiny_lora_dir: Path, tmp_path: Path, setting: dict[str, object]
) -> None:
    released_copy(tiny_lora_dir, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4, **setting}))
    with pytest.raises(UserError, match=r"not supported .*; expected a plain LoRA"):
        check_lora(tmp_path / "transformer.safetensors", FAMILIES["sd3"])


def test_a_rank_that_is_not_the_tensors_is_warned_of(tiny_lora_dir: Path, tmp_path: Path) -> None:
    released_copy(tiny_lora_dir, tmp_path)
    stating(tmp_path, "diffusers", alpha=1, rank=8)
    with pytest.warns(UserWarning, match="says rank 8, and the tensors have 4: alpha 1 is divided by 4"):
        read_lora(tmp_path / "transformer.safetensors", FAMILIES["sd3"])


def test_what_we_write_states_a_scale_of_one(tiny_lora_dir: Path, tmp_path: Path) -> None:
    released_copy(tiny_lora_dir, tmp_path)
    write_adapter_config(tmp_path, 4, vae_rank=4)
    for file in ("transformer.safetensors", VAE_FILE):
        found, before = read_lora(tmp_path / file, FAMILIES["sd3"]), read_lora(tiny_lora_dir / file, FAMILIES["sd3"])
        assert all(torch.equal(found[key], before[key]) for key in before)
    write_adapter_config(tmp_path, 8, vae_rank=4)  # ranks that differ, each with its own alpha
    found, before = (
        read_lora(tmp_path / VAE_FILE, FAMILIES["sd3"]),
        read_lora(tiny_lora_dir / VAE_FILE, FAMILIES["sd3"]),
    )
    assert all(torch.equal(found[key], before[key]) for key in before)
    config = LoraConfig.from_pretrained(tmp_path)  # peft reads it
    assert (config.r, config.lora_alpha, list(config.rank_pattern.values())) == (8, 8, [4])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(
    tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path, value: float
) -> None:
    _, state = released_copy(tiny_lora_dir, tmp_path)
    name = next(key for key in state if "lora_B" in key)
    state[name][0] = value
    save_file(state, tmp_path / "transformer.safetensors")
    with pytest.raises(UserError, match="holds values that are NaN or infinite"):
        load_student(load_backbone(tiny_sd3_dir), tmp_path)
