import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SD3Transformer2DModel, UNet2DConditionModel
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tsd.cli import main
from tsd.config import RestoreConfig, config_for
from tsd.errors import UserError
from tsd.export import write
from tsd.export.hub import upload
from tsd.export.model_card import CardFacts, known_base, read_run
from tsd.export.student import open_student
from tsd.export.write import What, export
from tsd.files import mini_model_dir
from tsd.model.backbone import load_backbone
from tsd.model.lora import load_student
from tsd.restore import Restorer
from tsd.restore.student import find_student, is_merged

PLAIN = RestoreConfig(process_size=0, posterior="mode", color="none")


def lr_image() -> Tensor:
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(3))


def restored(*sources: Path | None, config: RestoreConfig = PLAIN, **settings: Any) -> Tensor:
    return Restorer.load(*sources, config=config, **settings).restore_tensor(lr_image(), seed=1)


def assert_same_image(actual: Tensor, expected: Tensor) -> None:
    """Equal weights lie at other addresses, and convolutions choose their vector code by alignment: 2e-6 was seen."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(params=["sd3", "sd2"])
def weights(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """Base model and student of either family."""
    names = {"sd3": ("tiny_sd3_dir", "tiny_lora_dir"), "sd2": ("tiny_sd2_dir", "tiny_sd2_lora_dir")}[request.param]
    model, lora = (request.getfixturevalue(name) for name in names)
    return model, lora


@pytest.fixture
def half_model(tiny_sd3_dir: Path, tmp_path: Path) -> Callable[[torch.dtype], Path]:
    """The tiny SD3 model with its weights stored in another precision."""

    def store(dtype: torch.dtype) -> Path:
        folder = tmp_path / "half"
        shutil.copytree(tiny_sd3_dir, folder)
        for part in ("transformer", "vae"):
            path = folder / part / "diffusion_pytorch_model.safetensors"
            save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        return folder

    return store


class TestMerged:
    def test_restores_as_base_and_lora_do(self, weights: tuple[Path, Path], tmp_path: Path) -> None:
        model, lora = weights
        out = export(open_student(model, lora), tmp_path / "out")
        assert_same_image(restored(out), restored(model, lora))
        base = load_backbone(model)  # and the LoRA matters, so the equality says something
        untouched = Restorer(base, PLAIN, {}).restore_tensor(lr_image(), seed=1)
        assert (untouched - restored(out)).abs().max() > 0.01

    def test_loads_in_diffusers_with_the_merged_weights(self, weights: tuple[Path, Path], tmp_path: Path) -> None:
        model, lora = weights
        out = export(open_student(model, lora), tmp_path / "out")
        expected = load_backbone(model)
        load_student(expected, lora, merge=True)
        loaded = load_backbone(out)
        name = expected.family.denoiser_folder
        cls = {"transformer": SD3Transformer2DModel, "unet": UNet2DConditionModel}[name]
        pairs = (
            (expected.denoiser, cls.from_pretrained(out, subfolder=name)),
            (expected.vae, AutoencoderKL.from_pretrained(out, subfolder="vae")),
        )
        for theirs, ours in pairs:
            state = theirs.state_dict()
            assert ours.state_dict().keys() == state.keys()
            assert all(torch.equal(state[key], tensor) for key, tensor in ours.state_dict().items())
            assert dict(ours.config) | {"_name_or_path": ""} == dict(theirs.config) | {"_name_or_path": ""}
        z = torch.randn(1, 4, 8, 8)
        torch.testing.assert_close(loaded.one_step(z), expected.one_step(z), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("written", [None, torch.float16, torch.bfloat16])
    def test_every_weight_is_rounded_once(
        self,
        half_model: Callable[[torch.dtype], Path],
        tiny_lora_dir: Path,
        tmp_path: Path,
        stored: torch.dtype,
        written: torch.dtype | None,
    ) -> None:
        model = half_model(stored)
        out = export(open_student(model, tiny_lora_dir), tmp_path / "out", dtype=written)
        base = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
        merged = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in merged.values()} == {written or stored}
        adapters = load_file(tiny_lora_dir / "transformer.safetensors")
        equal, count = 0, 0
        for key in [key for key in adapters if key.endswith(".lora_A.weight")]:
            name = key.removeprefix("transformer.").removesuffix(".lora_A.weight") + ".weight"
            a, b = (adapters[key.replace("lora_A", f"lora_{side}")].double().flatten(1) for side in "AB")
            exact = base[name].double() + (b @ a).view(base[name].shape)
            torch.testing.assert_close(merged[name].double(), exact, rtol=torch.finfo(written or stored).eps, atol=1e-7)
            equal += int((merged[name] == exact.to(written or stored)).sum())
            count += exact.numel()
        # fp32 sums may decide a tie otherwise; a second rounding would change every thirtieth value.
        assert stored == torch.float32 == (written or stored) or equal > 0.998 * count

    def test_in_half_precision_it_restores_as_base_and_lora_do(
        self, half_model: Callable[[torch.dtype], Path], tiny_lora_dir: Path, tmp_path: Path
    ) -> None:
        model = half_model(torch.bfloat16)
        out = export(open_student(model, tiny_lora_dir), tmp_path / "out")
        ours, theirs = restored(out, dtype=torch.bfloat16), restored(model, tiny_lora_dir, dtype=torch.bfloat16)
        assert torch.equal(ours, theirs)
        # In fp32, base and LoRA keep what the export rounded to 8 bits of mantissa.
        assert 0 < (restored(out) - restored(model, tiny_lora_dir)).abs().mean() < 0.005

    def test_large_models_are_written_in_shards(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(write, "SHARD", "30KB")
        out = export(open_student(tiny_sd3_dir, tiny_lora_dir), tmp_path / "out")
        shards = list((out / "transformer").glob("diffusion_pytorch_model-0*-of-0*.safetensors"))
        assert len(shards) > 1
        assert_same_image(restored(out), restored(tiny_sd3_dir, tiny_lora_dir))
        hashes = Restorer.load(out, config=PLAIN).weights_sha256
        assert {f"model/transformer/{shard.name}" for shard in shards} <= hashes.keys()

    def test_a_sharded_base_is_merged_as_well(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        model = tmp_path / "sharded"
        shutil.copytree(tiny_sd3_dir, model)
        transformer = SD3Transformer2DModel.from_pretrained(model, subfolder="transformer")
        (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
        transformer.save_pretrained(model / "transformer", max_shard_size="30KB")
        out = export(open_student(model, tiny_lora_dir), tmp_path / "out")
        assert_same_image(restored(out), restored(tiny_sd3_dir, tiny_lora_dir))

    def test_nothing_of_this_machine_is_written(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        out = export(open_student(tiny_sd3_dir, tiny_lora_dir), tmp_path / "out", what="both", card=CardFacts("x"))
        places = (str(tmp_path), str(tiny_sd3_dir.parent), str(tiny_lora_dir.parent))
        for path in out.rglob("*"):
            if path.is_file():
                assert not any(place.encode() in path.read_bytes() for place in places), path

    def test_equal_inputs_give_equal_bytes(self, weights: tuple[Path, Path], tmp_path: Path) -> None:
        student = open_student(*weights)
        first = digests(export(student, tmp_path / "a", what="both", card=CardFacts("x")))
        assert digests(export(student, tmp_path / "b", what="both", card=CardFacts("x"))) == first

    def test_the_mini_model(self, tmp_path: Path) -> None:
        out = export(open_student(), tmp_path / "mini", dtype=torch.float32)
        assert config_for(find_student(out, None)[1]) == config_for(find_student(None, None)[1])
        config = config_for(mini_model_dir() / "lora" / "tsdsr")
        assert_same_image(restored(out, config=config), restored(None, config=config))


class TestLora:
    def test_reloads_strictly_and_restores_the_same(self, weights: tuple[Path, Path], tmp_path: Path) -> None:
        model, lora = weights
        out = export(open_student(model, lora), tmp_path / "out", what="lora")
        assert not is_merged(out)
        assert_same_image(restored(model, out, out / "prompts"), restored(model, lora))

    def test_carries_metadata_settings_and_precision(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path
    ) -> None:
        lora = tmp_path / "lora"
        shutil.copytree(tiny_lora_dir, lora)
        (lora / "restore.json").write_text('{"color": "adain"}')
        student = open_student(tiny_sd3_dir, lora, base_model="someone/sd3-base")
        out = export(student, tmp_path / "out", what="lora", dtype=torch.bfloat16)
        assert config_for(out) == RestoreConfig(color="adain")
        for file, part in (("transformer.safetensors", "transformer"), ("vae.safetensors", "vae")):
            with safe_open(out / file, framework="pt") as opened:
                metadata = json.loads(opened.metadata()["tsd_student"])
            expected = {"part": part, "rank": 4, "base_model": "someone/sd3-base", "family": "sd3", "format": "pt"}
            assert metadata.items() >= expected.items()
            written, given = load_file(out / file), load_file(lora / file)
            assert written.keys() == given.keys()
            assert all(torch.equal(written[key], given[key].bfloat16()) for key in given)

    def test_both(self, weights: tuple[Path, Path], tmp_path: Path) -> None:
        model, lora = weights
        out = export(open_student(model, lora), tmp_path / "out", what="both")
        assert is_merged(out)
        expected = restored(model, lora)
        assert_same_image(restored(out), expected)
        assert_same_image(restored(model, out / "lora"), expected)


class TestTextEncoders:
    @pytest.fixture
    def pipeline_dir(self, tiny_sd3_dir: Path, tmp_path: Path) -> Path:
        """The tiny model as a whole pipeline, though with one real encoder only, as SD3's pipeline permits."""
        folder = tmp_path / "pipeline"
        shutil.copytree(tiny_sd3_dir, folder)
        torch.manual_seed(1)
        config = CLIPTextConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, projection_dim=6, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=8,
        )  # fmt: skip
        CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder")
        index = {
            "_class_name": "StableDiffusion3Pipeline",
            "_name_or_path": "somewhere/private",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            **{
                name: [None, None]
                for name in ("text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
            },
        }
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    def test_a_pipeline_loads_where_they_were_asked_for(
        self, pipeline_dir: Path, tiny_lora_dir: Path, tmp_path: Path
    ) -> None:
        out = export(open_student(pipeline_dir, tiny_lora_dir), tmp_path / "out", text_encoders=True)
        absent = ("text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
        pipeline: Any = DiffusionPipeline.from_pretrained(out, **dict.fromkeys(absent))
        merged = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
        state = pipeline.transformer.state_dict()
        assert all(torch.equal(state[name], merged[name]) for name in merged)
        theirs = CLIPTextModelWithProjection.from_pretrained(pipeline_dir / "text_encoder").state_dict()
        assert all(torch.equal(theirs[key], tensor) for key, tensor in pipeline.text_encoder.state_dict().items())
        assert "somewhere" not in (out / "model_index.json").read_text()

    def test_missing_ones_are_named(self, pipeline_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        shutil.rmtree(pipeline_dir / "text_encoder")
        with pytest.raises(UserError, match=r"has no text_encoder/"):
            export(open_student(pipeline_dir, tiny_lora_dir), tmp_path / "out", text_encoders=True)
        (pipeline_dir / "model_index.json").unlink()
        with pytest.raises(UserError, match=r"no model_index\.json; fetch the whole pipeline"):
            export(open_student(pipeline_dir, tiny_lora_dir), tmp_path / "out", text_encoders=True)
        assert not (tmp_path / "out").exists()


ALONE = """
import sys
from pathlib import Path

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tsd", "bench"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuses())
import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

image = Image.open(sys.argv[1])
other = {"tile": 4, "tile_overlap": 1, "color": "adain", "scale": 1.5}
for folder in sys.argv[2:]:
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    np.save(Path(folder) / "alone.npy", np.asarray(pipeline(image, name="photo")))
    np.save(Path(folder) / "tiled.npy", np.asarray(pipeline(image, name="photo", **other)))
try:
    import tsd
except ModuleNotFoundError:
    print("alone")
"""
"""Restores with each student in a process that has diffusers and not this package."""


class TestPipeline:
    def test_diffusers_alone_restores_as_restorer_does(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tiny_sd2_dir: Path, tiny_sd2_lora_dir: Path, tmp_path: Path
    ) -> None:
        pixels = np.random.default_rng(2).integers(0, 256, (23, 28, 3), dtype=np.uint8)  # 34.5 x 42 at 1.5
        Image.fromarray(pixels).save(tmp_path / "photo.png")
        students = []
        for model, lora in ((tiny_sd3_dir, tiny_lora_dir), (tiny_sd2_dir, tiny_sd2_lora_dir)):
            settings = {"color": "wavelet", "posterior": "sample", "process_size": 128}
            student = open_student(model, lora, settings=settings)
            out = export(student, tmp_path / f"out-{model.name}", card=CardFacts("x"))
            assert '"process_size": 128,' in (out / "pipeline.py").read_text()
            students.append(out)
        away = tmp_path / "away"
        away.mkdir()
        done = subprocess.run(
            [sys.executable, "-I", "-c", ALONE, tmp_path / "photo.png", *students],
            cwd=away, env={**os.environ, "HF_MODULES_CACHE": str(away / "modules")}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "alone"
        for out in students:
            config = config_for(out)
            tiled = replace(config, tile=4, tile_overlap=1, color="adain", scale=1.5)
            # AdaIN magnifies its truncation to 8 bits.
            for file, used, levels in (("alone.npy", config, 1), ("tiled.npy", tiled, 3)):
                expected = np.asarray(Restorer.load(out, config=used)(tmp_path / "photo.png"))
                found = np.load(out / file)
                assert found.shape == expected.shape
                assert np.abs(found.astype(int) - expected).max() <= levels
                assert (found != expected).mean() < 0.01

    def test_its_defaults_are_those_of_restoring(self) -> None:
        from tsd.export.pipeline import SETTINGS

        assert asdict(RestoreConfig()) == SETTINGS

    def test_no_other_export_has_one(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        student = open_student(tiny_sd3_dir, tiny_lora_dir)
        for name, how in (("lora", {"what": "lora"}), ("folded", {"fold": True})):
            out = export(student, tmp_path / name, **how)
            assert not {"pipeline.py", "model_index.json"} & {path.name for path in out.iterdir()}


class TestPlace:
    @pytest.fixture
    def student(self, tiny_sd3_dir: Path, tiny_lora_dir: Path) -> Any:
        return open_student(tiny_sd3_dir, tiny_lora_dir)

    def test_an_earlier_export_is_replaced_only_when_told(self, student: Any, tmp_path: Path) -> None:
        out = export(student, tmp_path / "out", what="lora")
        with pytest.raises(UserError, match="--overwrite"):
            export(student, out, what="merged")
        assert (out / "transformer.safetensors").is_file()
        export(student, out, what="merged", overwrite=True)
        assert not (out / "transformer.safetensors").exists()
        assert is_merged(out)
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]

    def test_nothing_but_an_earlier_export_is_replaced(self, student: Any, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        (photos / "a.txt").write_text("mine")
        with pytest.raises(UserError, match="is no earlier export"):
            export(student, photos, overwrite=True)
        assert (photos / "a.txt").read_text() == "mine"

    def test_never_over_what_is_exported(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        model = tmp_path / "all" / "model"
        shutil.copytree(tiny_sd3_dir, model)
        student = open_student(model, tiny_lora_dir)
        for out in (model, tmp_path / "all"):
            with pytest.raises(UserError, match="which is exported from"):
                export(student, out, overwrite=True)

    def test_a_failure_leaves_what_was_there(
        self, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = export(student, tmp_path / "out", what="lora")
        before = digests(out)

        def full_disk(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(AutoencoderKL, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            export(student, out, overwrite=True)
        assert digests(out) == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]

    def test_too_little_room_is_told_before_loading(
        self, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        monkeypatch.setattr(write, "load_backbone", lambda *_, **__: pytest.fail("loaded"))
        with pytest.raises(
            UserError, match=r"out needs .*, and 1 kB are free there; choose another --out, or --dtype fp16"
        ):
            export(student, tmp_path / "out")

    def test_files_can_be_read_by_others(self, student: Any, tmp_path: Path) -> None:
        out = export(student, tmp_path / "out")
        umask = os.umask(0)
        os.umask(umask)
        for path in (out, *out.rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


class TestErrors:
    """Each is found before weights are loaded."""

    @pytest.fixture(autouse=True)
    def _nothing_loads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for cls in (AutoencoderKL, SD3Transformer2DModel):
            monkeypatch.setattr(cls, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))

    def test_a_lora_of_another_family(self, tiny_sd3_dir: Path, tiny_sd2_lora_dir: Path) -> None:
        with pytest.raises(UserError, match="another family"):
            open_student(tiny_sd3_dir, tiny_sd2_lora_dir)

    def test_half_a_lora(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        shutil.copy(tiny_lora_dir / "transformer.safetensors", tmp_path)
        with pytest.raises(UserError, match=r"has no vae\.safetensors"):
            open_student(tiny_sd3_dir, tmp_path)

    def test_a_lora_that_lacks_a_layer(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        lora = tmp_path / "lora"
        shutil.copytree(tiny_lora_dir, lora)
        state = load_file(lora / "transformer.safetensors")
        del state["transformer.proj_out.lora_B.weight"]
        save_file(state, lora / "transformer.safetensors")
        with pytest.raises(UserError, match=r"lacks: proj_out\.lora_B\.weight"):
            open_student(tiny_sd3_dir, lora)

    def test_a_lora_of_another_size(self, tiny_lora_dir: Path) -> None:
        with pytest.raises(UserError, match=r"transformer\.safetensors lacks: transformer_blocks\.1"):
            open_student(mini_model_dir(), tiny_lora_dir)

    def test_a_model_without_prompt(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(tiny_sd3_dir, model, ignore=shutil.ignore_patterns("prompts"))
        with pytest.raises(UserError, match="--prompt-embeds"):
            open_student(model, tiny_lora_dir)
        assert set(open_student(model, tiny_lora_dir, tiny_sd3_dir / "prompts").prompts) == {"default", "null"}

    def test_a_model_without_weights(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(tiny_sd3_dir, model, ignore=shutil.ignore_patterns("*model.safetensors"))
        with pytest.raises(UserError, match="has no weights"):
            open_student(model, tiny_lora_dir)

    def test_a_configuration_that_builds_no_model(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path
    ) -> None:
        model = tmp_path / "model"
        shutil.copytree(tiny_sd3_dir, model)
        config = json.loads((model / "vae" / "config.json").read_text())
        config["down_block_types"] = ["NoSuchBlock"] * 4
        (model / "vae" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="NoSuchBlock"):
            open_student(model, tiny_lora_dir)


def test_values_that_half_precision_cannot_hold(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    shutil.copytree(tiny_lora_dir, lora)
    state = load_file(lora / "vae.safetensors")
    state["transformer.encoder.conv_in.lora_B.weight"] *= 1e7
    save_file(state, lora / "vae.safetensors")
    student = open_student(tiny_sd3_dir, lora)
    for what in ("merged", "lora"):
        with pytest.raises(UserError, match=r"conv_in.* not finite in fp16; choose --dtype bf16"):
            export(student, tmp_path / "out", what=what, dtype=torch.float16)
    assert not (tmp_path / "out").exists()
    export(student, tmp_path / "out", dtype=torch.bfloat16)


class TestRestoreOfMerged:
    @pytest.fixture
    def merged(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> Path:
        return export(open_student(tiny_sd3_dir, tiny_lora_dir), tmp_path / "merged")

    def test_a_lora_on_top_is_refused(self, merged: Path, tiny_lora_dir: Path) -> None:
        with pytest.raises(UserError, match="its LoRA is in the weights already"):
            Restorer.load(merged, tiny_lora_dir)

    def test_it_is_not_exported_again(self, merged: Path) -> None:
        with pytest.raises(UserError, match="is an exported student already"):
            open_student(merged)

    def test_it_needs_its_prompt(self, merged: Path) -> None:
        shutil.rmtree(merged / "prompts")
        with pytest.raises(UserError, match="carries no prompt"):
            Restorer.load(merged)

    def test_a_damaged_description(self, merged: Path) -> None:
        (merged / "tsd_student.json").write_text("{")
        with pytest.raises(UserError, match="export it anew"):
            Restorer.load(merged)

    def test_provenance_names_the_merged_weights(self, merged: Path) -> None:
        hashes = Restorer.load(merged).weights_sha256
        path = merged / "transformer" / "diffusion_pytorch_model.safetensors"
        assert hashes["model/transformer/diffusion_pytorch_model.safetensors"] == (
            hashlib.sha256(path.read_bytes()).hexdigest()
        )
        assert not [name for name in hashes if name.startswith("lora/")]


@pytest.fixture
def run_dir(tiny_lora_dir: Path, tmp_path: Path) -> Path:
    """A training run folder as `tsd train` leaves it; `best/` is another student than `student/`."""
    run = tmp_path / "run"
    shutil.copytree(tiny_lora_dir, run / "student")
    shutil.copytree(tiny_lora_dir, run / "best")
    state = load_file(run / "best" / "vae.safetensors")
    save_file({key: 0.5 * tensor for key, tensor in state.items()}, run / "best" / "vae.safetensors")
    (run / "config.json").write_text(json.dumps({"rank": 4, "lambda_tsd": 0.7, "degradation": "full"}))
    rows = [
        {"step": 1, "pixel": 0.5},
        {"step": 2, "pixel": 0.4, "val_psnr_y": 24.5, "val_psnr_y_bicubic": 23.0, "val_gain_db": 1.5},
        {"step": 3, "pixel": 0.3},
        {"step": 4, "pixel": 0.2, "val_psnr_y": 24.25, "val_psnr_y_bicubic": 23.0, "val_gain_db": 1.25},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "pi')
    return run


class TestCard:
    def card(self, out: Path) -> ModelCard:
        return ModelCard.load(out / "README.md")

    def test_a_run_fills_it(self, tiny_sd3_dir: Path, run_dir: Path, tmp_path: Path) -> None:
        facts = read_run(run_dir)
        assert facts.student == run_dir / "best"
        student = open_student(
            tiny_sd3_dir, facts.student, base_model="stabilityai/stable-diffusion-3-medium-diffusers"
        )
        card = CardFacts("my student", repo_id="me/student", training_data="LSDIR", run=facts)
        out = export(student, tmp_path / "out", card=card)
        loaded = self.card(out)
        data = loaded.data.to_dict()
        assert data["base_model"] == "stabilityai/stable-diffusion-3-medium-diffusers"
        assert data["base_model_relation"] == "finetune"
        assert data["license"] == "other"
        assert data["license_name"] == "stabilityai-ai-community"
        assert data["pipeline_tag"] == "image-to-image"
        assert data["library_name"] == "diffusers"
        assert "super-resolution" in data["tags"]
        (result,) = loaded.data.eval_results or []
        assert (result.metric_type, result.metric_value) == ("psnr", 24.5)
        assert "after step 2." in loaded.text
        assert '"lambda_tsd": 0.7' in loaded.text
        assert "| `psnr_y_bicubic` | 23.0000 |" in loaded.text
        assert "Data: LSDIR." in loaded.text
        assert "hf download me/student --local-dir STUDENT" in loaded.text
        assert "unknown" not in loaded.text.lower()

    def test_a_space_is_a_head_of_the_card_and_a_program(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path
    ) -> None:
        student = open_student(tiny_sd3_dir, tiny_lora_dir)
        out = export(student, tmp_path / "out", space=True, card=CardFacts("A student", "me/student"))
        data = ModelCard.load(out / "README.md").data.to_dict()
        assert data["sdk"] == "gradio"
        source = (out / data["app_file"]).read_text()
        assert "HUB_ID = 'me/student'" in source
        compile(source, "app.py", "exec")
        assert (out / "requirements.txt").read_text().startswith("tsd-sr-bench[app]==")
        with pytest.raises(UserError, match="a Space runs a merged student"):
            export(student, tmp_path / "other", what="lora", space=True, card=CardFacts("A student"))

    def test_it_lists_the_hash_of_every_file(self, weights: tuple[Path, Path], tmp_path: Path) -> None:
        out = export(open_student(*weights), tmp_path / "out", what="both", card=CardFacts("x"))
        text = self.card(out).text
        found = digests(out)
        del found["README.md"]
        assert len(found) >= 10
        for name, digest in found.items():
            assert f"| `{name}` | `{digest}` |" in text

    @pytest.mark.parametrize("what", ["merged", "lora", "both"])
    def test_what_is_unknown_is_said_to_be(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path, what: What
    ) -> None:
        out = export(open_student(tiny_sd3_dir, tiny_lora_dir), tmp_path / "out", what=what, card=CardFacts("x"))
        card = self.card(out)
        for statement in (
            "Base model: unknown: set --base-model.", "Licence: unknown: set --license.", "Data: unknown.",
            "Configuration: unknown.", "Unknown: no validation numbers came with this export.",
        ):  # fmt: skip
            assert statement in card.text
        data = card.data.to_dict()
        assert not {"license", "base_model", "datasets", "metrics", "model-index"} & data.keys()
        assert ("lora" in data["tags"]) == (what == "lora")

    def test_a_run_without_validation_exports_its_last_student(self, run_dir: Path) -> None:
        shutil.rmtree(run_dir / "best")
        (run_dir / "log.jsonl").write_text('{"step": 6, "pixel": 0.5}\n')
        facts = read_run(run_dir)
        assert (facts.student, facts.step, facts.validation) == (run_dir / "student", 6, {})

    def test_runs_that_are_none(self, run_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is no training run"):
            read_run(tmp_path)
        shutil.rmtree(run_dir / "best")
        shutil.rmtree(run_dir / "student")
        with pytest.raises(UserError, match="neither best/ nor student/"):
            read_run(run_dir)

    def test_known_bases(self, tiny_sd3_dir: Path, tmp_path: Path) -> None:
        assert known_base(tiny_sd3_dir) == (None, False, None)
        named = tmp_path / "stable-diffusion-3-medium-diffusers"  # a name alone proves nothing
        named.mkdir()
        assert known_base(named) == (None, False, None)
        cached = tmp_path / "models--stabilityai--stable-diffusion-2-1-base" / "snapshots" / "0123"
        cached.mkdir(parents=True)
        base = known_base(cached)
        assert base.name == "stabilityai/stable-diffusion-2-1-base"
        assert base.licence is not None
        assert base.licence.id == "openrail++"
        assert known_base(mini_model_dir()).licence == ("apache-2.0", "Apache-2.0", None, None)
        assert known_base("someone/else") == ("someone/else", True, None)

    def test_a_licence_that_is_no_identifier(self) -> None:
        with pytest.raises(UserError, match="no identifier of the hub"):
            CardFacts("x", licence="My own licence")

    def test_licence_files_of_the_base_go_along(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(tiny_sd3_dir, model)
        (model / "LICENSE.md").write_text("terms")
        out = export(open_student(model, tiny_lora_dir), tmp_path / "out", what="lora")
        assert (out / "LICENSE.md").read_text() == "terms"


def tsd_export(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


class TestCommand:
    def test_an_old_run_tells_how_its_student_is_restored(
        self, tiny_sd3_dir: Path, run_dir: Path, tmp_path: Path
    ) -> None:
        """A run of an earlier version wrote no `restore.json`; its settings say it, in the export and on its card."""
        config = json.loads((run_dir / "config.json").read_text()) | {"posterior": "mode", "crop": 64}
        (run_dir / "config.json").write_text(json.dumps(config))
        out = tmp_path / "out"
        options = ("--model", tiny_sd3_dir, "--out", out, "--license", "mit", "--what", "lora")
        assert tsd_export("--run", run_dir, *options) == 0
        expected = {"color": "wavelet", "posterior": "mode", "process_size": 64}
        assert json.loads((out / "restore.json").read_text()) == expected
        assert "| `process_size` | `64` |" in (out / "README.md").read_text()
        assert json.loads((out / "adapter_config.json").read_text())["lora_alpha"] == 4
        (run_dir / "best" / "restore.json").write_text('{"process_size": 0}')  # the student's own word counts more
        assert tsd_export("--run", run_dir, *options, "--overwrite") == 0
        assert json.loads((out / "restore.json").read_text()) == expected | {"process_size": 0}

    def test_export_and_restore(
        self, tiny_sd3_dir: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        photo = tmp_path / "photo.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(photo)
        out = tmp_path / "out"
        assert tsd_export("--run", run_dir, "--model", tiny_sd3_dir, "--out", out, "--license", "mit") == 0
        assert f"tsd restore photo.png -o restored/ --model {out}\n" in capsys.readouterr().out
        assert ModelCard.load(out / "README.md").data.to_dict()["license"] == "mit"
        options = ["--posterior", "mode", "--process-size", "0", "--device", "cpu"]
        for name, weights in (
            ("merged", ["--model", out]),
            ("lora", ["--model", tiny_sd3_dir, "--lora", run_dir / "best"]),
            ("other", ["--model", tiny_sd3_dir, "--lora", run_dir / "student"]),
        ):
            arguments = ["restore", photo, "-o", tmp_path / f"{name}.png", *weights, *options]
            assert main([str(argument) for argument in arguments]) == 0
        results = {name: np.array(Image.open(tmp_path / f"{name}.png")) for name in ("merged", "lora", "other")}
        assert np.array_equal(results["merged"], results["lora"])
        assert not np.array_equal(results["merged"], results["other"])

    def test_no_card(self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = ("--model", tiny_sd3_dir, "--lora", tiny_lora_dir, "--out", out)
        assert tsd_export(*arguments, "--what", "lora", "--no-card") == 0
        assert not (out / "README.md").exists()
        assert tsd_export(*arguments) == 2  # exists
        assert tsd_export(*arguments, "--overwrite") == 0
        assert (out / "README.md").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--private"], "--private says how to upload"),
            (["--push-to-hub", "no owner"], "is no name of a hub repository"),
            (["--push-to-hub", "no-owner"], "names no owner"),
            (["--push-to-hub", "me/x"], "state it by --license ID"),
            (["--base-model", "sd3"], "names no owner"),
            (["--license", "My licence"], "no identifier of the hub"),
        ],
    )
    def test_mistakes_are_told_before_work(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        arguments: list[str], message: str,
    ) -> None:  # fmt: skip
        out = tmp_path / "out"
        assert tsd_export("--model", tiny_sd3_dir, "--lora", tiny_lora_dir, "--out", out, *arguments) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()

    def test_the_console_script(self, tmp_path: Path) -> None:
        script = Path(sys.executable).with_name("tsd")
        shown = subprocess.run([script, "export", "--help"], capture_output=True, text=True)
        assert shown.returncode == 0
        assert "--push-to-hub OWNER/NAME" in shown.stdout


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as one commit of small files takes, so that the real client can talk to it."""

    refuse: ClassVar[bool] = False
    created: ClassVar[list[dict[str, Any]]] = []
    files: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {}
        address = f"http://127.0.0.1:{self.server.server_address[1]}/me/student"
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            answer = {"url": address}
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.files.update({file["path"]: base64.b64decode(file["content"]) for file in files})
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/commit/{'0' * 40}"}
        self.answer(answer)

    def do_GET(self) -> None:
        self.answer({})

    def answer(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(403 if self.refuse else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class TestPush:
    """Nothing leaves the machine. What is not uploaded stays whole, and the message says what to do."""

    @pytest.fixture(autouse=True)
    def _online(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """As on a machine with a token, though its hub is a port of this machine that nobody listens on."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("HF_TOKEN", "hf_x")

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
        handler = type("ThisHub", (Hub,), {"created": [], "files": {}})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
            yield handler
            server.shutdown()

    def push(self, model: Path, lora: Path, out: Path) -> int:
        return tsd_export(
            "--model", model, "--lora", lora, "--out", out, "--what", "lora", "--push-to-hub", "me/student", "--private"
        )  # fmt: skip

    @pytest.mark.parametrize("missing", ["network", "token", "permission", "connection"])
    def test_what_is_not_uploaded_stays(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, missing: str,
    ) -> None:  # fmt: skip
        message = "could not be reached"
        if missing == "network":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            message = "HF_HUB_OFFLINE is set"
        elif missing == "token":
            monkeypatch.delenv("HF_TOKEN")
            message = "run `hf auth login` first"
        elif missing == "permission":
            request.getfixturevalue("hub").refuse = True
            message = "the hub refused"
        out = tmp_path / "out"
        assert self.push(tiny_sd3_dir, tiny_lora_dir, out) == 1
        told = capsys.readouterr().err
        assert message in told
        assert f"Everything is in {out}; upload it later with `hf upload me/student {out} . --private`" in told
        assert_same_image(restored(tiny_sd3_dir, out), restored(tiny_sd3_dir, tiny_lora_dir))

    def test_every_file_is_uploaded(
        self, tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path, hub: type[Hub],
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        out = tmp_path / "out"
        assert self.push(tiny_sd3_dir, tiny_lora_dir, out) == 0
        assert "uploaded to http://127.0.0.1" in capsys.readouterr().out
        assert [(repo["organization"], repo["name"], repo["visibility"]) for repo in hub.created] == [
            ("me", "student", "private")
        ]
        assert {name: hashlib.sha256(content).hexdigest() for name, content in hub.files.items()} == digests(out)

    def test_it_fails_within_seconds(self, tmp_path: Path) -> None:
        start = time.monotonic()
        with pytest.raises(UserError, match="could not be reached"):
            upload(tmp_path, "me/student")
        assert time.monotonic() - start < 8
