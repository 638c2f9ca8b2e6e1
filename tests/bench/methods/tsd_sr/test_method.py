"""The project's own models as methods, on a random model of the SD3 family."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import bench.methods.tsd_sr.weights
from bench.cards.card import assets, cards
from bench.fetch.weights import record_first_hashes
from bench.methods import METHODS, get_method
from bench.methods.base import Method
from bench.methods.check import check_method
from bench.methods.tsd_sr.method import OneStepMethod, TeacherMethod, TeacherSettings
from bench.methods.tsd_sr.weights import RELEASE_SETTINGS, ModelFolders
from bench.options import RunOptions
from tsd.config import RestoreConfig
from tsd.errors import UserError
from tsd.model.backbone import load_backbone
from tsd.model.sampler import image_to_image
from tsd.restore import Restorer


@pytest.fixture(scope="module")
def student(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> OneStepMethod:
    lora = tmp_path_factory.mktemp("student") / "lora"
    shutil.copytree(tiny_lora_dir, lora)
    (lora / "restore.json").write_text('{"process_size": 0, "color": "adain"}')
    method = get_method(f"tsd-sr:{tiny_sd3_dir},{lora}").load(RunOptions())
    assert isinstance(method, OneStepMethod)
    return method


@pytest.fixture(scope="module")
def teacher(tiny_sd3_dir: Path) -> TeacherMethod:
    method = get_method(f"teacher:steps=3,strength=0.6,guidance=2,model={tiny_sd3_dir}").load(RunOptions())
    assert isinstance(method, TeacherMethod)
    return method


def test_student_is_the_restorer_with_the_settings_of_its_weights(
    student: OneStepMethod, tiny_sd3_dir: Path, tiny_lora_dir: Path
):
    config = RestoreConfig(process_size=0, color="adain")
    lr = torch.rand(1, 3, 16, 19)
    expected = Restorer.load(tiny_sd3_dir, tiny_lora_dir, config=config).restore_tensor(lr, 7)
    assert torch.equal(student.restore(lr, 7), expected)


def test_recorded_settings_are_all_the_restorer_has(student: OneStepMethod):
    config = asdict(student.restorer.config)
    del config["seed"]
    assert student.settings == config
    release = asdict(RestoreConfig())
    del release["seed"]
    assert release == RELEASE_SETTINGS


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[1]", "holds a list"), ('{"colour": 1}', "unknown keys colour")]
)
def test_wrong_settings_beside_the_weights_are_named(tiny_sd3_dir: Path, tmp_path: Path, text: str, message: str):
    (tmp_path / "restore.json").write_text(text)
    with pytest.raises(UserError, match=message):
        get_method(f"tsd-sr:{tiny_sd3_dir},{tmp_path}").load(RunOptions())


def test_loading_and_provenance_import_no_network_library(tiny_sd3_dir: Path, tiny_lora_dir: Path):
    code = (
        "import sys; from bench.methods import get_method; from bench.options import RunOptions\n"
        f"for form in ('tsd-sr:{tiny_sd3_dir},{tiny_lora_dir}', 'teacher:model={tiny_sd3_dir}', 'bicubic'):\n"
        "    assert get_method(form).load(RunOptions()).provenance()\n"
        "print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_student_keeps_the_contract(student: OneStepMethod):
    assert isinstance(student, Method)
    broken = [finding for finding in check_method(student) if finding.passed is False]
    # The weights are random, so the content may be anything; every other clause must hold.
    assert [finding.clause for finding in broken if finding.clause != "content"] == []


def test_students_provenance_hashes_what_decides_a_number(student: OneStepMethod, tiny_sd3_dir: Path):
    facts = student.provenance()
    json.dumps(facts)
    assert str(tiny_sd3_dir) not in str(facts)
    assert facts["dtype"] == "fp32"
    settings, weights = facts["settings"], facts["weights"]
    assert isinstance(settings, dict)
    assert isinstance(weights, dict)
    assert (settings["color"], settings["process_size"], settings["posterior"]) == ("adain", 0, "sample")
    assert "seed" not in settings
    assert {
        "model/transformer/diffusion_pytorch_model.safetensors",
        "model/vae/config.json",
        "model/scheduler/scheduler_config.json",
        "lora/transformer.safetensors",
        "lora/vae.safetensors",
        "prompts/default/prompt_embeds.safetensors",
    } <= set(weights)


def test_another_prompt_folder_is_hashed_instead_of_the_models(tiny_sd3_dir: Path, tmp_path: Path):
    (tmp_path / "prompt_embeds.pt").write_bytes(b"1")
    weights = ModelFolders(tiny_sd3_dir, prompts=tmp_path).sha256()
    assert [name for name in weights if name.startswith("prompts/")] == ["prompts/prompt_embeds.pt"]


def test_teacher_samples_from_the_bicubic_input(teacher: TeacherMethod, tiny_sd3_dir: Path):
    lr = torch.rand(1, 3, 16, 20)
    backbone = load_backbone(tiny_sd3_dir)
    x = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1) * 2 - 1
    with torch.inference_mode():
        z_L = backbone.encode(x, posterior="mode")
        generator = torch.Generator().manual_seed(5)
        z = image_to_image(backbone, z_L, steps=3, strength=0.6, guidance_scale=2, generator=generator)
        expected = backbone.decode(z).clamp(-1, 1) / 2 + 0.5
    assert torch.allclose(teacher.restore(lr, 5), expected, atol=1e-5)


def test_teacher_keeps_the_contract_at_odd_sizes(teacher: TeacherMethod):
    broken = [finding for finding in check_method(teacher) if finding.passed is False]
    assert [finding.clause for finding in broken if finding.clause != "content"] == []


def test_teacher_records_its_settings(teacher: TeacherMethod):
    settings = teacher.provenance()["settings"]
    assert isinstance(settings, dict)
    assert (settings["steps"], settings["strength"], settings["guidance"]) == (3, 0.6, 2.0)
    weights = teacher.provenance()["weights"]
    assert isinstance(weights, dict)
    assert not any(name.startswith("lora/") for name in weights)


def test_half_precision_reaches_the_network(tiny_sd3_dir: Path, tiny_lora_dir: Path):
    method = get_method(f"tsd-sr:{tiny_sd3_dir},{tiny_lora_dir}").load(RunOptions(dtype="bf16"))
    assert isinstance(method, OneStepMethod)
    assert method.restorer.backbone.dtype == torch.bfloat16
    assert method.provenance()["dtype"] == "bf16"
    with pytest.raises(UserError, match="no precision is named 'int8'"):
        get_method(f"tsd-sr:{tiny_sd3_dir},{tiny_lora_dir}").load(RunOptions(dtype="int8"))


def test_what_tsd_says_is_said_by_bench(tiny_sd3_dir: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"transformer\.safetensors"):
        restore(f"tsd-sr:{tiny_sd3_dir},{tmp_path}")
    with pytest.raises(UserError, match="is a model of neither family"):
        restore(f"teacher:model={tmp_path}")


def restore(form: str) -> torch.Tensor:
    method = get_method(form).load(RunOptions())
    assert isinstance(method, Method)
    return method.restore(torch.rand(1, 3, 16, 16), 0)


def test_the_real_model_names_all_it_lacks(tmp_path: Path):
    spec, options = METHODS["tsd-sr"], RunOptions(weights_root=tmp_path)
    lora, prompt, base = spec.missing(options)
    assert base.source == "hf:stabilityai/stable-diffusion-3-medium-diffusers"
    assert base.licence == "Stability AI Community License"
    assert (lora.name, prompt.name) == ("tsdsr-mse/", "default/")
    assert "1XJY9Qxhz0mqjTtgDXr07oFy9eJr8jphI" in lora.source
    assert lora.fetch is None  # the authors' drive wants a browser
    with pytest.raises(UserError, match=r"(?s)TSD-SR needs tsdsr-mse/.*TSD-SR needs default/"):
        spec.load(options)


def test_the_real_models_layout_loads_with_the_papers_settings(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path):
    """The same folders as on disk for SD3-medium, holding the tiny model."""
    for part in ("transformer", "vae", "scheduler"):
        shutil.copytree(tiny_sd3_dir / part, tmp_path / "stable-diffusion-3-medium-diffusers" / part)
    shutil.copytree(tiny_lora_dir, tmp_path / "tsdsr-mse")
    (tmp_path / "default").mkdir()
    torch.save(torch.randn(1, 5, 12), tmp_path / "default" / "prompt_embeds.pt")
    torch.save(torch.randn(1, 10), tmp_path / "default" / "pool_embeds.pt")
    options = RunOptions(weights_root=tmp_path)
    assert METHODS["tsd-sr"].missing(options) == []
    with pytest.raises(UserError, match="its hash is not known yet; `bench fetch tsd-sr` records it"):
        METHODS["tsd-sr"].load(options)
    record_first_hashes(cards()["tsd-sr"].weights, "tsd-sr", options)
    method = METHODS["tsd-sr"].load(options)
    assert isinstance(method, OneStepMethod)
    assert (method.restorer.config.color, method.restorer.config.process_size) == ("adain", 512)
    assert "prompts/prompt_embeds.pt" in method.weights.sha256()


def test_teacher_20_is_the_default_teacher():
    spec = METHODS["teacher-20"]
    assert spec.steps == TeacherSettings().steps == 20
    assert get_method("teacher-4").steps == 4


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("teacher-20", marks=pytest.mark.slow),
        "osediff-mini",
        "tsd-sr-mini",
        pytest.param("tsd-sr-mini-small-decoder", marks=pytest.mark.slow),
    ],
)
def test_mini_rows_keep_the_contract(name: str):
    spec = METHODS[name]
    missing = spec.missing(RunOptions())
    if missing:
        pytest.skip(missing[0].line())
    method = spec.load(RunOptions())
    assert isinstance(method, Method)
    assert [finding.line() for finding in check_method(method) if finding.passed is False] == []


def test_a_student_of_the_second_family_keeps_the_contract(tiny_sd2_dir: Path, tiny_sd2_lora_dir: Path, tmp_path: Path):
    lora = Path(shutil.copytree(tiny_sd2_lora_dir, tmp_path / "lora"))
    (lora / "restore.json").write_text('{"process_size": 0, "color": "none"}')
    method = get_method(f"tsd-sr:{tiny_sd2_dir},{lora}").load(RunOptions())
    assert isinstance(method, OneStepMethod)
    assert method.restore(torch.rand(1, 3, 16, 19), 7).shape == (1, 3, 64, 76)
    weights = method.provenance()["weights"]
    assert isinstance(weights, dict)
    assert "model/unet/diffusion_pytorch_model.safetensors" in weights
    assert "lora/unet.safetensors" in weights


def test_a_student_you_trained_on_sd2_becomes_the_row_of_table_5(
    tiny_sd2_dir: Path, tiny_sd2_lora_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = RunOptions(weights_root=tmp_path)
    weight = replace(assets()["sd21-base"], contains=("unet/config.json",), hashes={})  # the tiny model's in its place
    monkeypatch.setattr(bench.methods.tsd_sr.weights, "assets", lambda: {"sd21-base": weight})
    base, student = METHODS["tsd-sr-sd21"].missing(options)
    assert base.fetch == "sd21-base"
    assert "unet.safetensors" in student.name
    assert "no such student was published" in student.source
    with pytest.raises(UserError, match=r"SD2\.1-base cannot run here"):
        METHODS["tsd-sr-sd21"].load(options)
    shutil.copytree(tiny_sd2_dir, tmp_path / "stable-diffusion-2-1-base")
    assert [item.fetch for item in METHODS["tsd-sr-sd21"].missing(options)] == [None]
    shutil.copytree(tiny_sd2_lora_dir, tmp_path / "tsdsr-sd21")
    shutil.copytree(tiny_sd2_dir / "prompts", tmp_path / "tsdsr-sd21" / "prompts")
    assert METHODS["tsd-sr-sd21"].missing(options) == []
    record_first_hashes((weight,), "sd21-base", options)
    method = METHODS["tsd-sr-sd21"].load(options)
    assert isinstance(method, OneStepMethod)
    assert method.settings["color"] == "adain"
    assert method.restore(torch.rand(1, 3, 16, 16), 0).shape == (1, 3, 64, 64)


def test_a_merged_student_is_a_method_by_its_folder_alone(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path):
    from tsd.cli import main

    lora = Path(shutil.copytree(tiny_lora_dir, tmp_path / "lora"))
    (lora / "restore.json").write_text('{"process_size": 0, "color": "none"}')
    command = ["export", "--model", str(tiny_sd3_dir), "--lora", str(lora), "--out", str(tmp_path / "merged")]
    assert main([*command, "--dtype", "fp32"]) == 0
    with pytest.raises(UserError, match="no merged student"):  # nor may a LoRA inside it go unrecorded
        get_method(f"tsd-sr:{tiny_sd3_dir}").load(RunOptions())
    merged = get_method(f"tsd-sr:{tmp_path / 'merged'}")
    assert merged.name == "tsd-sr-merged"
    method = merged.load(RunOptions())
    assert isinstance(method, OneStepMethod)
    assert method.settings["color"] == "none"
    lr = torch.rand(1, 3, 16, 16)
    apart = get_method(f"tsd-sr:{tiny_sd3_dir},{lora}").load(RunOptions())
    assert isinstance(apart, OneStepMethod)
    torch.testing.assert_close(method.restore(lr, 3), apart.restore(lr, 3), atol=1e-4, rtol=0)
