"""The SD2 family in all code that is common to the families: loading, one step, restoring, sampling, adapters."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from tsd.cli import main
from tsd.config import RestoreConfig
from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.model.backbone import load_backbone
from tsd.model.loading import FAMILIES, detect_family, resolve_model
from tsd.model.lora import attach, check_lora, check_student, denoiser_targets, load_student, role, vae_targets
from tsd.model.process import DDPM, FlowMatching
from tsd.model.prompt import PromptEmbeds
from tsd.model.sampler import image_to_image
from tsd.restore import Restorer


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_folder_says_which_family_it_is(tiny_sd2_dir: Path, tiny_sd3_dir: Path) -> None:
    assert detect_family(tiny_sd3_dir).name == "sd3"
    backbone = load_backbone(tiny_sd2_dir)
    assert backbone.family.name == "sd2"
    assert isinstance(backbone.denoiser, UNet2DConditionModel)
    assert isinstance(backbone.process, DDPM)
    assert backbone.process.prediction_type == "epsilon"
    assert backbone.prompts["default"].pooled is None
    assert (backbone.vae_factor, backbone.pixel_multiple) == (8, 8)


def test_the_process_is_read_from_the_schedulers_configuration(tiny_sd2_v_dir: Path, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_sd2_v_dir)
    reference = DDIMScheduler.from_pretrained(tiny_sd2_v_dir, subfolder="scheduler")
    assert isinstance(backbone.process, DDPM)
    assert backbone.process.prediction_type == reference.config["prediction_type"] == "v_prediction"
    torch.testing.assert_close(backbone.process.alphas_cumprod, reference.alphas_cumprod)
    model = copy_of(tiny_sd2_v_dir, tmp_path)
    config = model / "scheduler" / "scheduler_config.json"
    edit(config, prediction_type="sample")
    with pytest.raises(UserError, match=r"prediction_type is 'sample'.*epsilon"):
        load_backbone(model)
    edit(config, prediction_type="epsilon", rescale_betas_zero_snr=True, _class_name="DDIMScheduler")
    with pytest.raises(UserError, match="ends in pure noise"):
        load_backbone(model)
    edit(config, prediction_type="v_prediction")
    rescaled = load_backbone(model).process
    assert float(rescaled.sigma(torch.tensor(999.0))) == pytest.approx(1.0)
    edit(config, beta_schedule="no such schedule")
    with pytest.raises(UserError, match="cannot be used"):
        load_backbone(model)
    config.write_text(json.dumps({"_class_name": "KarrasVeScheduler"}))
    with pytest.raises(UserError, match="KarrasVeScheduler, without a beta_schedule"):
        load_backbone(model)


def test_a_unet_with_a_flows_scheduler_is_a_rectified_flow(tiny_sd2_dir: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_sd2_dir, tmp_path)
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    backbone = load_backbone(model)
    assert backbone.process == FlowMatching(shift=3.0)
    z_L, prompt = torch.randn(2, 4, 8, 8), backbone.prompts["default"].expand(2)
    with torch.no_grad():
        velocity = backbone.denoiser(z_L, torch.tensor([1000.0] * 2), encoder_hidden_states=prompt.embeds).sample
        torch.testing.assert_close(backbone.one_step(z_L), z_L - velocity)
    config.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}))
    with pytest.raises(UserError, match="dynamic"):
        load_backbone(model)


@pytest.mark.parametrize("fixture", ["tiny_sd2_dir", "tiny_sd2_v_dir"])
def test_one_step_is_the_x0_that_the_prediction_implies(fixture: str, request: pytest.FixtureRequest) -> None:
    backbone = load_backbone(request.getfixturevalue(fixture))
    z_L, prompt = torch.randn(2, 4, 8, 8), backbone.prompts["default"].expand(2)
    reference = DDIMScheduler.from_pretrained(
        request.getfixturevalue(fixture), subfolder="scheduler", clip_sample=False
    )
    reference.set_timesteps(1000)
    with torch.no_grad():
        prediction = backbone.denoiser(z_L, torch.tensor([999, 999]), encoder_hidden_states=prompt.embeds).sample
        theirs = reference.step(prediction, 999, z_L).pred_original_sample
        torch.testing.assert_close(backbone.one_step(z_L), theirs, atol=1e-5, rtol=1e-5)


def test_half_precision_is_not_magnified_by_the_one_step(tiny_sd2_dir: Path) -> None:
    """ẑ = (z_L − σ ε) / α divides by 0.068, so that a subtraction in bf16 alone would cost 14 times the rounding."""
    backbone = load_backbone(tiny_sd2_dir, dtype=torch.bfloat16)
    z_L = torch.randn(1, 4, 8, 8).bfloat16()
    t = torch.tensor([999.0])
    with torch.no_grad():
        prediction = backbone.predict(z_L, t, backbone.prompts["default"])
        exact = backbone.process.x0(z_L.double(), prediction.double(), t)
        ours = backbone.one_step(z_L)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, atol=0, rtol=2**-8)


def test_the_teacher_samples_by_ddim(tiny_sd2_dir: Path) -> None:
    backbone = load_backbone(tiny_sd2_dir)
    z_L = torch.randn(1, 4, 8, 8)
    sampled = image_to_image(backbone, z_L, steps=3, strength=0.4, guidance_scale=2.0, generator=torch.Generator())
    assert sampled.shape == z_L.shape
    assert torch.isfinite(sampled).all()
    start = backbone.process.time_from_sigma(torch.tensor(0.4))
    assert float(backbone.process.sigma(start)) == pytest.approx(0.4, abs=1e-4)


def test_a_student_is_written_read_and_merged_in_its_own_layout(tiny_sd2_dir: Path, tiny_sd2_lora_dir: Path) -> None:
    names = sorted(path.name for path in tiny_sd2_lora_dir.iterdir())
    assert names == ["unet.safetensors", "vae.safetensors"]
    keys = load_file(tiny_sd2_lora_dir / "unet.safetensors").keys() | load_file(tiny_sd2_lora_dir / names[1]).keys()
    assert {key.split(".")[0] for key in keys} == {"unet"}
    assert any(".quant_conv.lora_A" in key for key in keys)
    assert check_student(tiny_sd2_lora_dir, FAMILIES["sd2"]) == (4, 4)
    merged, adapted = load_backbone(tiny_sd2_dir), load_backbone(tiny_sd2_dir)
    load_student(merged, tiny_sd2_lora_dir)
    load_student(adapted, tiny_sd2_lora_dir, merge=False)
    z_L, bare = torch.randn(1, 4, 8, 8), load_backbone(tiny_sd2_dir)
    with torch.no_grad():
        torch.testing.assert_close(merged.one_step(z_L), adapted.one_step(z_L), atol=1e-4, rtol=1e-4)
        assert (merged.one_step(z_L) - bare.one_step(z_L)).abs().max() > 0.01


def test_every_layer_osediff_adapts_is_a_target(tiny_sd2_dir: Path) -> None:
    backbone = load_backbone(tiny_sd2_dir)
    targets = denoiser_targets(backbone.denoiser, backbone.family.student_targets)
    for name in ("conv_in", "conv_out", "down_blocks.0.downsamplers.0.conv", "mid_block.resnets.0.conv1"):
        assert name in targets
    assert "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k" in targets
    assert not any("time" in name for name in targets)
    assert "quant_conv" in vae_targets(backbone.vae)


def test_restore_takes_either_family(tiny_sd2_dir: Path, tiny_sd2_lora_dir: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 26, 3), dtype=np.uint8)).save(photo)
    arguments = ["restore", str(photo), "-o", str(tmp_path / "out"), "--model", str(tiny_sd2_dir)]
    assert main([*arguments, "--lora", str(tiny_sd2_lora_dir), "--device", "cpu", "--process-size", "0"]) == 0
    with Image.open(tmp_path / "out" / "photo.png") as restored:
        assert restored.size == (104, 76)


def test_tiles_and_odd_sizes(tiny_sd2_dir: Path, tiny_sd2_lora_dir: Path) -> None:
    config = RestoreConfig(process_size=0, tile=8, tile_overlap=2, posterior="mode", color="none")
    restorer = Restorer.load(tiny_sd2_dir, tiny_sd2_lora_dir, config=config)
    lr = torch.rand(1, 3, 27, 22)
    seen: list[str] = []
    sr = restorer.restore_tensor(lr, 0, progress=lambda stage, *_: seen.append(stage))
    assert sr.shape == (1, 3, 108, 88)
    assert seen.count("tiles") > 2
    assert any(key.startswith("model/unet/") for key in restorer.weights_sha256)


def test_what_belongs_to_the_other_family_is_refused_before_weights_are_read(
    tiny_sd2_dir: Path, tiny_sd3_dir: Path, tiny_sd2_lora_dir: Path, tiny_lora_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"student of another family: it holds transformer\.safetensors"):
        Restorer.load(tiny_sd2_dir, tiny_lora_dir)
    with pytest.raises(UserError, match=r"student of another family: it holds unet\.safetensors"):
        Restorer.load(tiny_sd3_dir, tiny_sd2_lora_dir)
    shutil.copy(tiny_lora_dir / "transformer.safetensors", tmp_path / "unet.safetensors")
    shutil.copy(tiny_lora_dir / "vae.safetensors", tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match="keys begin with transformer"):
        Restorer.load(tiny_sd2_dir, tmp_path)
    with pytest.raises(UserError, match=r"\(1, 5, 12\).*\(1, L, 64\)"):
        load_backbone(mini_model_dir(), prompt_embeds=tiny_sd2_dir / "prompts")


def test_wrong_widths_are_named_although_the_weights_are_damaged(tiny_sd2_dir: Path, tmp_path: Path) -> None:
    """They are then never opened, which saves a minute and gigabytes with SD3-medium."""
    model = copy_of(tiny_sd2_dir, tmp_path)
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    save_file({"p": torch.randn(1, 5, 13)}, tmp_path / "prompt_embeds.safetensors")
    with pytest.raises(UserError, match=r"\(1, 5, 13\).*\(1, L, 12\)"):
        load_backbone(model, prompt_embeds=tmp_path)
    edit(model / "unet" / "config.json", in_channels=9)
    with pytest.raises(UserError, match="writes 4 latent channels but the denoiser reads 9"):
        load_backbone(model)
    edit(model / "unet" / "config.json", in_channels=4)
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(model)


def test_a_folder_of_neither_family(tmp_path: Path, tiny_sd3_dir: Path) -> None:
    (tmp_path / "prior").mkdir()
    with pytest.raises(UserError, match=r"neither family \(found: prior\)"):
        load_backbone(tmp_path)
    model = copy_of(tiny_sd3_dir, tmp_path)
    edit(model / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    with pytest.raises(UserError, match="describes a FluxTransformer2DModel"):
        load_backbone(model)
    (model / "transformer" / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_backbone(model)
    (model / "transformer" / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list"):
        load_backbone(model)
    shutil.copy(tiny_sd3_dir / "transformer" / "config.json", model / "transformer" / "config.json")
    shutil.rmtree(model / "vae")
    with pytest.raises(UserError, match="not a whole model of the SD3 family: missing vae/"):
        resolve_model(model)


def test_lora_headers_tell_rank_and_faults(tiny_sd2_lora_dir: Path, tmp_path: Path) -> None:
    family = FAMILIES["sd2"]
    assert check_lora(tiny_sd2_lora_dir / "unet.safetensors", family) == 4
    odd = {
        "unet.conv_in.lora_A.weight": torch.zeros(4, 4, 3, 3),
        "unet.conv_out.lora_A.weight": torch.zeros(8, 8, 3, 3),
    }
    save_file(odd, tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match=r"mixes the ranks \[4, 8\]"):
        check_lora(tmp_path / "unet.safetensors", family)
    save_file({"unet.conv_in.weight": torch.zeros(1)}, tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match="not of the released layout"):
        check_lora(tmp_path / "unet.safetensors", family)


def test_prompts_without_a_pooled_vector() -> None:
    prompt = PromptEmbeds(torch.randn(1, 3, 4))
    both = PromptEmbeds.cat(prompt.expand(2), prompt)
    assert both.embeds.shape == (3, 3, 4)
    assert both.pooled is None
    assert prompt.to(dtype=torch.float16).embeds.dtype == torch.float16


def test_roles_live_on_one_unet(tiny_sd2_dir: Path, tiny_sd2_lora_dir: Path) -> None:
    backbone = load_backbone(tiny_sd2_dir)
    load_student(backbone, tiny_sd2_lora_dir, merge=False)
    attach(backbone.denoiser, "critic", denoiser_targets(backbone.denoiser, backbone.family.critic_targets), 2, seed=0)
    z_t, t, prompt = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), backbone.prompts["default"]
    bare = load_backbone(tiny_sd2_dir)
    with torch.no_grad():
        expected = bare.predict(z_t, t, prompt)
        with role(backbone.denoiser, "teacher"):
            torch.testing.assert_close(backbone.predict(z_t, t, prompt), expected)
        with role(backbone.denoiser, "critic"):  # B = 0: as yet the teacher's function
            torch.testing.assert_close(backbone.predict(z_t, t, prompt), expected)
        with role(backbone.denoiser, "student"):
            assert (backbone.predict(z_t, t, prompt) - expected).abs().max() > 1e-3
