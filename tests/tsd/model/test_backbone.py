"""Loading and the small interface of a backbone, on the tiny model and on broken folders."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.model.backbone import load_backbone, require_prompt
from tsd.model.sampler import guided, image_to_image
from tsd.seeds import generator_for, seed_for


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_classes_and_process_come_from_the_folder(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    assert isinstance(backbone.vae, AutoencoderKL)
    assert isinstance(backbone.denoiser, SD3Transformer2DModel)
    assert backbone.process.shift == 3.0
    assert backbone.vae_factor == 8
    assert backbone.pixel_multiple == 16
    assert not any(p.requires_grad for p in [*backbone.denoiser.parameters(), *backbone.vae.parameters()])


def test_the_shipped_mini_model_takes_the_same_path() -> None:
    backbone = load_backbone(mini_model_dir())
    assert isinstance(backbone.denoiser, SD3Transformer2DModel)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    assert backbone.decode(backbone.encode(x, posterior="mode")).shape == x.shape


def test_latents_are_scaled_but_not_shifted(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z = backbone.encode(x, posterior="mode")
        torch.testing.assert_close(z, backbone.vae.encode(x).latent_dist.mean * 1.5305)
        torch.testing.assert_close(backbone.decode(z), backbone.vae.decode(z / 1.5305).sample)


def test_one_step_is_z_minus_velocity(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    z_L = torch.randn(2, 4, 4, 4)
    prompt = backbone.prompts["default"]
    with torch.no_grad():
        velocity = backbone.denoiser(
            hidden_states=z_L,
            timestep=torch.tensor([1000.0, 1000.0]),
            encoder_hidden_states=prompt.embeds.expand(2, -1, -1),
            pooled_projections=prompt.pooled.expand(2, -1),
        ).sample
        torch.testing.assert_close(backbone.one_step(z_L), z_L - velocity)


def test_posterior_samples_follow_their_generator(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        first, again = (backbone.encode(x, posterior="sample", generator=generator_for(1)) for _ in range(2))
        other = backbone.encode(x, posterior="sample", generator=generator_for(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="posterior is 'mean'"):
        backbone.encode(x, posterior="mean")  # pyright: ignore


def test_released_prompt_files_replace_the_models_own(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    embeds, pooled = torch.randn(1, 7, 12), torch.randn(1, 10)
    torch.save(embeds, tmp_path / "prompt_embeds.pt")
    torch.save(pooled, tmp_path / "pool_embeds.pt")
    backbone = load_backbone(tiny_sd3_dir, prompt_embeds=tmp_path)
    torch.testing.assert_close(backbone.prompts["default"].embeds, embeds)
    torch.testing.assert_close(backbone.prompts["default"].pooled, pooled)
    torch.save(torch.randn(1, 7, 13), tmp_path / "prompt_embeds.pt")
    with pytest.raises(UserError, match=r"\(1, 7, 13\).*\(1, L, 12\)"):
        load_backbone(tiny_sd3_dir, prompt_embeds=tmp_path)
    torch.save({"embeds": embeds}, tmp_path / "prompt_embeds.pt")
    with pytest.raises(UserError, match="holds a dict"):
        load_backbone(tiny_sd3_dir, prompt_embeds=tmp_path)
    (tmp_path / "pool_embeds.pt").unlink()
    with pytest.raises(UserError):
        load_backbone(tiny_sd3_dir, prompt_embeds=tmp_path)
    with pytest.raises(UserError, match="no prompt folder"):
        load_backbone(tiny_sd3_dir, prompt_embeds=tmp_path / "nowhere")


def test_prompts_are_never_unpickled_freely(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("open('executed', 'w')",))

    torch.save(Payload(), tmp_path / "prompt_embeds.pt")
    torch.save(torch.randn(1, 10), tmp_path / "pool_embeds.pt")
    with pytest.raises(UserError, match="could not be read"):
        load_backbone(tiny_sd3_dir, prompt_embeds=tmp_path)
    assert not Path("executed").exists()


def test_broken_folders_are_told_apart(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_sd3_dir, tmp_path)
    with pytest.raises(UserError, match="no model folder"):
        load_backbone(tmp_path / "nowhere")
    shutil.rmtree(model / "prompts")
    with pytest.raises(UserError, match="no 'default' prompt"):
        require_prompt(load_backbone(model), "default")
    config = model / "scheduler" / "scheduler_config.json"
    original = json.loads(config.read_text())
    config.write_text(json.dumps({**original, "_class_name": "DDIMScheduler"}))
    with pytest.raises(UserError, match="DDIMScheduler"):
        load_backbone(model)
    config.write_text(json.dumps({**original, "use_dynamic_shifting": True}))
    with pytest.raises(UserError, match="dynamic"):
        load_backbone(model)
    config.write_text(json.dumps({**original, "shift": -1}))
    with pytest.raises(UserError, match="-1"):
        load_backbone(model)
    config.unlink()
    with pytest.raises(UserError, match="incomplete"):
        load_backbone(model)
    config.write_text(json.dumps(original))
    weights = next((model / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(model)
    shutil.rmtree(model / "vae")
    with pytest.raises(UserError, match="missing vae/"):
        load_backbone(model)


def test_hub_ids_fail_offline_within_seconds() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"stable-diffusion-3-medium-diffusers.*hf download"):
        load_backbone("stabilityai/stable-diffusion-3-medium-diffusers")
    assert time.monotonic() - start < 20  # the promise is "seconds"; the client's own retries take most of a minute


def test_guidance_extrapolates_from_the_null_prompt(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    z, t = torch.randn(2, 4, 4, 4), torch.tensor([300.0, 700.0])
    prompt, null = backbone.prompts["default"], backbone.prompts["null"]
    with torch.no_grad():
        conditional, unconditional = backbone.predict(z, t, prompt), backbone.predict(z, t, null)
        expected = unconditional + 7.5 * (conditional - unconditional)
        torch.testing.assert_close(guided(backbone, z, t, prompt, null, 7.5), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(guided(backbone, z, t, prompt, null, 1.0), conditional)


def test_the_multi_step_teacher_keeps_the_input_at_little_noise(tiny_sd3_dir: Path) -> None:
    backbone = load_backbone(tiny_sd3_dir)
    z_L = torch.randn(1, 4, 8, 8)

    def sample(**options: float) -> torch.Tensor:
        settings = {"steps": 3, "strength": 0.5, "guidance_scale": 2.0} | options
        return image_to_image(backbone, z_L, generator=generator_for(3), **settings)  # pyright: ignore

    assert (sample(strength=1e-4) - z_L).abs().max() < 1e-2
    assert torch.equal(sample(), sample())
    assert (sample() - z_L).abs().max() > 0.1
    with pytest.raises(ValueError, match="steps is 0"):
        sample(steps=0)
    with pytest.raises(ValueError, match="strength"):
        sample(strength=1.5)


def test_seeds_depend_on_what_not_on_when() -> None:
    assert seed_for(1, "a", 2) == seed_for(1, "a", 2)
    assert len({seed_for(1, "a"), seed_for(1, "b"), seed_for("1", "a"), seed_for(1, "a", 0), seed_for(11, "a")}) == 5
    assert 0 <= seed_for("x") < 2**63
