"""The recipe of the text domain's models, every stage for a few steps, and what it starts from."""

from pathlib import Path

import pytest
import torch

from bench.ablation.text.domain import TextDomain, enlarged_inputs
from bench.ablation.text.recipe import TextRun, main, new_teacher, quick_recipe, write_identity
from tsd.model.backbone import load_backbone
from tsd.model.lora import STUDENT, load_student, role

INPUTS = 4


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    assert main(["--quick", "--output", str(folder), "--device", "cpu"]) == 0
    return folder


def test_every_stage_leaves_what_the_domain_reads(output: Path) -> None:
    model = output / "model"
    assert {"vae", "unet", "scheduler", "prompts", "lora", "classifier.safetensors", "recipe.json"} <= {
        path.name for path in model.iterdir()
    }
    domain = TextDomain(model=model)
    domain.check(domain.settings())
    restored = domain.restore(model / "lora" / "start", "cpu")
    assert restored.shape == (len(enlarged_inputs()), 1, 32, 48)
    before = {path: path.stat().st_mtime_ns for path in (output / "work").glob("*.pt")}
    assert main(["--quick", "--output", str(output), "--stages", "vae", "--device", "cpu"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before  # a finished stage is not trained again


def test_the_start_begins_as_the_identity_of_latents(output: Path, tmp_path: Path) -> None:
    config = quick_recipe().start
    write_identity(output / "model", tmp_path, config)
    backbone = load_backbone(output / "model")
    load_student(backbone, tmp_path, merge=False)
    with torch.no_grad(), role(backbone.denoiser, STUDENT), role(backbone.vae, STUDENT):
        z_L = backbone.encode(enlarged_inputs()[:INPUTS], posterior="mode")
        bias = backbone.denoiser.conv_out.base_layer.bias.view(1, -1, 1, 1)
        torch.testing.assert_close(backbone.one_step(z_L), z_L - bias, atol=1e-4, rtol=1e-4)


def test_lines_are_read_back_as_they_were_rendered(output: Path) -> None:
    run = TextRun(quick_recipe(), output, torch.device("cpu"))
    fresh, again = run.lines("a new split", 3), run.lines("a new split", 3)
    for first, second in zip(fresh, again, strict=True):
        assert (first.glyphs, first.face) == (second.glyphs, second.face)
        assert (first.image == second.image).all()


def test_an_untrained_teacher_predicts_nothing() -> None:
    model = new_teacher(quick_recipe().teacher, 16)
    with torch.no_grad():
        z = torch.randn(2, 16, 8, 12)
        predicted = model(z, torch.tensor([500.0, 10.0]), encoder_hidden_states=torch.randn(2, 6, 64)).sample
    assert float(predicted.abs().max()) == 0
