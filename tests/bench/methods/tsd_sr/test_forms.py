"""The released form and the usual one compute the same images, and say where their stages begin."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from bench.latency.clock import timed_call
from bench.methods import METHODS, get_method
from bench.methods.stages import Staged
from bench.methods.tsd_sr import rows
from bench.methods.tsd_sr.forms import FORMS, ReleasedStudent
from bench.methods.tsd_sr.method import OneStepMethod
from bench.methods.tsd_sr.rows import load_student
from bench.methods.tsd_sr.weights import SD2_BASES, ModelFolders
from bench.options import RunOptions
from tsd.errors import UserError
from tsd.memory.public_configs import PUBLIC_CONFIGS
from tsd.restore import Restorer

TILED = {"color": "wavelet", "tile": 4, "tile_overlap": 2, "posterior": "mode"}


@pytest.mark.parametrize(
    ("family", "settings"),
    # AdaIN multiplies a level of rounding where an output is flat, as the tiny SD2's is.
    [("sd3", {"color": "adain"}), ("sd3", TILED), ("sd2", {"color": "none"}), ("sd2", TILED)],
)
def test_the_released_form_gives_the_same_image(
    family: str, settings: dict[str, object], request: pytest.FixtureRequest
) -> None:
    names = {"sd3": ("tiny_sd3_dir", "tiny_lora_dir"), "sd2": ("tiny_sd2_dir", "tiny_sd2_lora_dir")}[family]
    weights = ModelFolders(*(request.getfixturevalue(name) for name in names))
    settings = {"process_size": 0, **settings}
    usual = load_student(weights, RunOptions(), settings)
    released = load_student(weights, RunOptions(form="released"), settings)
    assert isinstance(released, ReleasedStudent)
    lr = torch.rand(1, 3, 16, 24)
    difference = (released.restore(lr, 7) - usual.restore(lr, 7)).abs()
    tolerance = {"sd3": 2e-4, "sd2": 2e-3}[family]
    # Before AdaIN the image is cut to 8 bits: a value at the edge of a level may fall into the next.
    assert (difference > tolerance).float().mean() < (0.01 if settings["color"] == "adain" else 1e-9)
    assert difference.max() < 0.05
    assert any("lora_" in name for name, _ in released.networks()["denoiser"].named_parameters())
    assert not any("lora_" in name for name, _ in usual.networks()["denoiser"].named_parameters())
    assert released.provenance() != usual.provenance()
    for method in (usual, released):
        assert isinstance(method, Staged)
        stages = timed_call(method, lr, "cpu").stages
        assert list(stages) == ["upsample", "encode", "denoise", "decode", "colour", "copy", "png"]


def test_a_small_decoder_is_timed_and_recorded(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
    lora, decoder = tmp_path / "student", tmp_path / "small"
    shutil.copytree(tiny_lora_dir, lora)
    (lora / "restore.json").write_text('{"process_size": 0, "color": "none", "posterior": "mode"}')
    torch.manual_seed(9)
    AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4,
    ).save_pretrained(decoder)  # fmt: skip
    spec = get_method(f"tsd-sr:{tiny_sd3_dir},{lora},decoder={decoder}")
    assert (spec.name, dict(spec.forms)) == ("tsd-sr-student-small", {})
    method = spec.load(RunOptions())
    assert isinstance(method, OneStepMethod)
    facts = method.provenance()
    assert facts["settings"]["decoder"] == "AutoencoderTiny"  # type: ignore[index]
    assert "decoder/diffusion_pytorch_model.safetensors" in facts["weights"]  # type: ignore[operator]
    assert "small decoder" in facts["remarks"][0]  # type: ignore[index]
    lr = torch.rand(1, 3, 16, 24)
    expected = Restorer.load(tiny_sd3_dir, lora, decoder=decoder).restore_tensor(lr, 7)
    assert torch.equal(method.restore(lr, 7), expected)
    stages = timed_call(method, lr, "cpu").stages
    assert list(stages) == ["upsample", "encode", "denoise", "decode", "colour", "copy", "png"]
    parameters = {id(p) for network in method.networks().values() for p in network.parameters()}
    assert not parameters & {id(p) for p in method.restorer.backbone.vae.decoder.parameters()}
    with pytest.raises(UserError, match=r"no folder at .*nowhere"):
        get_method(f"tsd-sr:{tiny_sd3_dir},{lora},decoder={tmp_path / 'nowhere'}").load(RunOptions())


def test_products_in_8_bits_are_recorded_and_need_torchao(
    tiny_sd3_dir: Path, tiny_lora_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = get_method(f"tsd-sr:{tiny_sd3_dir},{tiny_lora_dir},quantize=int8")
    method = spec.load(RunOptions())
    assert isinstance(method, OneStepMethod)
    assert method.provenance()["settings"]["quantization"] == "int8"  # type: ignore[index]
    monkeypatch.setattr(rows.importlib.util, "find_spec", lambda name: None)
    assert ["needs torchao" in item.line() for item in spec.missing(RunOptions())] == [True]


def test_a_student_merged_on_disk_has_no_released_form(tiny_sd3_dir: Path, tmp_path: Path) -> None:
    method = ReleasedStudent(ModelFolders(tiny_sd3_dir), RunOptions(form="released"), {})
    with pytest.raises(UserError, match="has its adapters merged"):
        assert method.backbone


def test_what_can_be_built_at_random_needs_no_files(tmp_path: Path) -> None:
    options = RunOptions(weights_root=tmp_path, random_weights=True)
    assert {base.hub_id for base in SD2_BASES.values()} < set(PUBLIC_CONFIGS)
    for name in ("tsd-sr", "tsd-sr-sd2", "tsd-sr-sd21"):
        assert METHODS[name].random_weights
        method = METHODS[name].load(options)
        assert isinstance(method, OneStepMethod)
        assert list(method.provenance()["weights"].values()) == ["random"]  # type: ignore[attr-defined]
    assert set(get_method("tsd-sr").forms) == set(FORMS)


def test_random_weights_are_finite_at_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real builder, at a shape of few parameters in place of SD3's."""
    from bench.methods.tsd_sr.loading import load_restorer, load_unmerged
    from bench.methods.tsd_sr.weights import Shape
    from tsd.config import RestoreConfig

    sd3 = PUBLIC_CONFIGS["stabilityai/stable-diffusion-3-medium-diffusers"]
    small = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
    small |= {"joint_attention_dim": 12, "pooled_projection_dim": 10}
    vae = {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1}
    tiny = {**sd3, "transformer": sd3["transformer"] | small, "vae": sd3["vae"] | vae}
    monkeypatch.setitem(PUBLIC_CONFIGS, "tiny", tiny)
    for dtype in ("fp32", "bf16"):
        options = RunOptions(dtype=dtype)
        restorer = load_restorer(Shape("tiny"), RestoreConfig(process_size=0), options)
        assert restorer.restore_tensor(torch.rand(1, 3, 16, 16), 0).isfinite().all()
        backbone = load_unmerged(Shape("tiny", rank=3), options)
        counts = [sum(p.numel() for p in b.denoiser.parameters()) for b in (restorer.backbone, backbone)]
        assert counts[0] < counts[1]
        assert {p.dtype for p in backbone.denoiser.parameters()} == {options.torch_dtype()}
