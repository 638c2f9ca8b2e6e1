"""The mini model's training code and the weights it shipped."""

import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.io import write_png

from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.mini.base import BaseSettings, new_base
from tsd.mini.images import (
    VALIDATION_NAMES,
    load_photos,
    procedural_image,
    random_crops,
    split_photos,
)
from tsd.mini.optim import Muon, orthogonalise, split_optimisers
from tsd.mini.recipe import STAGES, RecipeRun, main, quick_recipe, run_stages
from tsd.mini.stages import psnr_luma, run_stage, schedule
from tsd.mini.vae import VaeSettings, anchor, block_pca, initialise, new_vae, vae_loss
from tsd.mini.warmup import factorise
from tsd.model.backbone import load_backbone
from tsd.model.lora import load_student
from tsd.seeds import generator_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn() -> list[torch.Tensor]:
    return [procedural_image(0, index) for index in range(4)]


@pytest.fixture(scope="module")
def fresh_vae(drawn):
    torch.manual_seed(0)
    settings = VaeSettings()
    vae = new_vae(settings)
    initialise(vae, random_crops(drawn, drawn, size=64, batch=64, drawn_share=1.0, seed=("test",)), settings)
    return vae.eval()


def test_procedural_images_are_a_function_of_seed_and_index(drawn):
    assert torch.equal(procedural_image(0, 2), drawn[2])
    assert not torch.equal(procedural_image(1, 2), drawn[2])
    assert all(image.shape == (3, 256, 256) and image.dtype == torch.uint8 for image in drawn)
    assert all(image.float().std() > 10 for image in drawn)


def test_crops_depend_on_their_name_alone(drawn):
    def draw(*name):
        return random_crops(drawn, drawn, size=32, batch=3, drawn_share=0.5, seed=name)

    first = draw("vae", 5)
    draw("vae", 6)
    assert torch.equal(first, draw("vae", 5))
    assert first.shape == (3, 3, 32, 32)
    assert first.abs().max() <= 1


def test_photos_are_verified_and_every_fault_is_named(tmp_path, drawn):
    (tmp_path / "kodak").mkdir()
    for name in ("a.png", "b.png"):
        write_png(drawn[0], str(tmp_path / "kodak" / name))
    sha256 = hashlib.sha256((tmp_path / "kodak" / "a.png").read_bytes()).hexdigest()
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"images": [{"name": "a.png", "sha256": sha256}]}))
    assert torch.equal(load_photos(manifest, tmp_path)["a"], drawn[0])
    entries = [{"name": "b.png", "sha256": "0" * 64}, {"name": "c.png", "sha256": sha256}]
    manifest.write_text(json.dumps({"images": entries}))
    with pytest.raises(UserError, match=r"(?s)b\.png: sha256 differs.*c\.png: not found"):
        load_photos(manifest, tmp_path)
    assert main(["--manifest", str(manifest), "--data-root", str(tmp_path), "--output", str(tmp_path / "out")]) == 2


def test_validation_photographs_are_held_out(drawn):
    photos = dict.fromkeys(("kodim01", *VALIDATION_NAMES), drawn[0])
    training, validation = split_photos(photos)
    assert set(training) == {"kodim01"}
    assert set(validation) == set(VALIDATION_NAMES)


def test_orthogonalise_evens_out_singular_values():
    matrix = torch.randn(24, 60, generator=generator_for("muon")) @ torch.diag(torch.logspace(0, -2, 60))
    for candidate in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalise(candidate, steps=8))
        assert values.max() < 1.3
        assert values.min() > 0.5


def test_muon_solves_a_linear_problem():
    target = torch.randn(12, 4, 3, 3, generator=generator_for("target"))
    kernel = nn.Parameter(torch.zeros_like(target))
    optimiser = Muon([kernel], lr=0.05)
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.05 * schedule(step, 300, 1)
        (kernel - target).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert (kernel - target).norm() < 0.1 * target.norm()


def test_block_pca_matches_a_direct_decomposition(drawn):
    crops = random_crops(drawn, drawn, size=32, batch=16, drawn_share=1.0, seed=("pca",))
    components, deviations = block_pca(crops)
    blocks = crops.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 48).double()
    values = torch.linalg.eigvalsh(blocks.T @ blocks / len(blocks)).flip(0).clamp_min(1e-10).sqrt()
    torch.testing.assert_close(deviations.double(), values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(components @ components.T, torch.eye(48), atol=1e-4, rtol=0)


def test_anchored_start_is_nearly_linear_and_is_the_pca(fresh_vae, drawn):
    """GroupNorm alone would make the encoder ignore contrast: encode(x/2) would equal encode(x)."""
    x = random_crops(drawn, drawn, size=64, batch=8, drawn_share=1.0, seed=("linear",))
    with torch.no_grad():
        black = fresh_vae.encode(torch.zeros_like(x)).latent_dist.mode()
        full, half = (fresh_vae.encode(factor * x).latent_dist.mode() - black for factor in (1.0, 0.5))
    assert (2 * half - full).std() < 0.1 * full.std()
    # Every latent is one PCA coefficient: the strongest explains its channel almost completely.
    components, _ = block_pca(random_crops(drawn, drawn, size=64, batch=64, drawn_share=1.0, seed=("test",)))
    blocks = x.unfold(2, 4, 4).unfold(3, 4, 4)  # B, colour, rows, columns, y, x
    halves = blocks.unflatten(4, (2, 2)).unflatten(6, (2, 2))  # y -> (outer, inner), x -> (outer, inner)
    values = halves.permute(0, 2, 3, 4, 6, 5, 7, 1).reshape(8, 16, 16, 48)
    projected = torch.einsum("bhwk,nk->bnhw", values, components[:3])
    for channel in range(3):
        pair = torch.stack([projected[:, channel].flatten(), full[:, channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.98


def test_a_training_step_does_not_move_the_anchors(fresh_vae, drawn):
    vae = copy.deepcopy(fresh_vae)
    anchor(vae, VaeSettings().anchor_scale)
    before = [vae.encoder.conv_in.bias[-2:].clone(), vae.decoder.up_blocks[0].resnets[0].norm1.weight[-2:].clone()]
    kernel = vae.encoder.conv_in.weight.clone()
    x = random_crops(drawn, drawn, size=32, batch=2, drawn_share=1.0, seed=("anchor",))
    optimisers = split_optimisers(vae, muon_lr=0.01, adamw_lr=0.01)
    vae_loss(vae, x, VaeSettings(), generator_for(0))[0].backward()
    for optimiser in optimisers:
        optimiser.step()
    after = [vae.encoder.conv_in.bias[-2:], vae.decoder.up_blocks[0].resnets[0].norm1.weight[-2:]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(vae.encoder.conv_in.weight[-2:], torch.zeros_like(kernel[-2:]))
    assert not torch.equal(vae.encoder.conv_in.weight[:-2], kernel[:-2])


def test_a_fresh_teacher_predicts_nothing():
    model = new_base(BaseSettings(layers=1, heads=2), latent_channels=4)
    z = torch.randn(1, 4, 16, 16)
    out = model(z, torch.randn(1, 8, 64), torch.randn(1, 64), torch.tensor([500.0]), return_dict=False)[0]
    assert torch.equal(out, torch.zeros_like(z))


@pytest.mark.parametrize("shape", [(6, 10), (6, 4, 3, 3)])
def test_factorise_is_exact_at_full_rank(shape):
    change = torch.randn(shape, generator=generator_for("change"))
    a, b = factorise(change, rank=8, generator=generator_for(0))
    product = (b.flatten(1) @ a.flatten(1)).reshape(shape)
    torch.testing.assert_close(product, change, atol=1e-5, rtol=1e-5)
    a, b = factorise(torch.zeros(shape), rank=3, generator=generator_for(0))
    assert a.abs().sum() > 0
    assert b.abs().sum() == 0


def test_a_stage_resumes_to_the_same_weights(tmp_path):
    def go(folder: Path, steps_now: list[int]) -> torch.Tensor:
        for _ in steps_now:
            torch.manual_seed(0)
            module = nn.Linear(4, 4)

            def loss_at(step, module=module, last=_):
                if step == last:
                    raise KeyboardInterrupt
                loss = module(torch.randn(2, 4, generator=generator_for(step))).square().mean()
                return loss, {"loss": loss.item()}

            try:
                run_stage(
                    "s", folder, module, [Muon([module.weight], lr=0.1), torch.optim.AdamW([module.bias], lr=0.1)],
                    steps=8, warm_up=2, loss_at=loss_at, validate=dict, validate_every=4, save_every=2,
                )  # fmt: skip
            except KeyboardInterrupt:
                continue
        return torch.cat([module.weight.flatten(), module.bias]).detach()

    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    assert torch.equal(go(tmp_path / "once", [-1]), go(tmp_path / "twice", [5, -1]))
    assert (tmp_path / "once" / "s.csv").read_text().startswith("step,seconds")


def test_a_stage_stops_at_a_loss_that_is_not_finite(tmp_path):
    module = nn.Linear(1, 1)

    def loss_at(step):
        return module(torch.full((1, 1), float("nan"))).sum(), {}

    with pytest.raises(FloatingPointError, match="nan at step 0"):
        run_stage(
            "s", tmp_path, module, [torch.optim.AdamW(module.parameters())], steps=1, warm_up=1,
            loss_at=loss_at, validate=dict, validate_every=1,
        )  # fmt: skip


@pytest.mark.slow
def test_the_quick_recipe_makes_a_loadable_model(tmp_path):
    photos = {name: procedural_image(7, index, 288) for index, name in enumerate(("kodim01", *VALIDATION_NAMES))}
    model = run_stages(RecipeRun(quick_recipe(), photos, tmp_path, CPU), STAGES)
    backbone = load_backbone(model)
    assert set(backbone.prompts) == {"default", "null"}
    x = torch.zeros(1, 3, 64, 64)
    for lora in ("tsdsr", "vsd"):
        student = load_backbone(model)
        load_student(student, model / "lora" / lora)
        assert json.loads((model / "lora" / lora / "restore.json").read_text())["posterior"] == "mode"
        with torch.no_grad():
            restored = student.decode(student.one_step(student.encode(x, posterior="mode")))
        assert restored.shape == x.shape
        assert torch.isfinite(restored).all()
    assert json.loads((model / "recipe.json").read_text())["vae"] == json.loads(
        json.dumps(dataclasses.asdict(quick_recipe().vae))
    )


class TestShippedWeights:
    """What stands in the package."""

    def test_fits_the_size_limit(self):
        files = [path for path in mini_model_dir().rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 24_000_000

    def test_vae_keeps_contrast_and_does_not_depend_on_the_crop(self):
        backbone = load_backbone(mini_model_dir())
        image = procedural_image(99, 0)[None].float() / 127.5 - 1
        with torch.no_grad():
            restored = backbone.decode(backbone.encode(image, posterior="mode"))
            inner = backbone.decode(backbone.encode(image[..., 64:192, 64:192], posterior="mode"))
        assert psnr_luma(restored, image) > 26
        assert psnr_luma(restored[..., 96:160, 96:160], inner[..., 32:96, 32:96]) > 40

    @pytest.mark.slow
    @pytest.mark.parametrize("lora", ["tsdsr", "vsd"])
    def test_students_beat_bicubic_on_the_mini_test_set(self, lora, gains_over_bicubic):
        """By 0.3 dB of PSNR-Y and more, with the paired 95 % interval above zero."""
        gain = gains_over_bicubic(mini_model_dir(), lora)
        assert len(gain) >= 12
        assert gain.mean() >= 0.3
        assert gain.mean() > 2.2 * gain.std() / len(gain) ** 0.5
