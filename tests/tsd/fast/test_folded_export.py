import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from tsd.config import PLAIN, FastPath, RestoreConfig
from tsd.errors import UserError
from tsd.export.model_card import CardFacts
from tsd.export.student import open_student
from tsd.export.write import export
from tsd.model.backbone import load_backbone
from tsd.restore import Restorer

CONFIG = RestoreConfig(process_size=0, posterior="mode")


def folded(student: Any, out: Path, **settings: Any) -> Path:
    return export(open_student(student.model, student.lora), out, fold=True, **settings)


@pytest.fixture(scope="module")
def sd3(student_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folded(student_of("sd3"), tmp_path_factory.mktemp("folded") / "sd3", card=CardFacts(title="folded"))


def test_restores_the_same_image_and_is_smaller(student: Any, tmp_path: Path) -> None:
    out = folded(student, tmp_path / "folded")
    whole = export(open_student(student.model, student.lora), tmp_path / "whole")
    lr = torch.rand(1, 3, 12, 16)
    ours = Restorer.load(out, config=CONFIG)
    expected = Restorer.load(whole, config=CONFIG)
    torch.testing.assert_close(ours.restore_tensor(lr, 0), expected.restore_tensor(lr, 0), rtol=0, atol=1e-5)
    assert ours.fast == expected.fast == FastPath(pack=False, attention=False, winograd=False)
    sizes = [sum(p.stat().st_size for p in (f / student_folder(f)).glob("*.safetensors")) for f in (out, whole)]
    assert sizes[0] < 0.93 * sizes[1]


def student_folder(folder: Path) -> str:
    return "unet" if (folder / "unet").is_dir() else "transformer"


def test_another_prompt_is_refused(sd3: Path, tmp_path: Path) -> None:
    own = Restorer.load(sd3, prompt_embeds=sd3 / "prompts", config=CONFIG)
    assert own.sources["prompt_embeds"] == str(sd3 / "prompts")
    for name in ("prompt_embeds", "pool_embeds"):
        tensors = load_file(sd3 / "prompts" / "default" / f"{name}.safetensors")
        save_file({key: tensor + 1 for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="folded for its own prompt, and another was given"):
        Restorer.load(sd3, prompt_embeds=tmp_path)


def test_has_no_plain_form_and_no_base(sd3: Path) -> None:
    with pytest.raises(UserError, match="has no plain form"):
        Restorer.load(sd3, fast=PLAIN)
    with pytest.raises(UserError, match=r"is a folded student.*name the base"):
        load_backbone(sd3)
    with pytest.raises(OSError, match="no file named"):  # diffusers must not take it for a model with missing weights
        SD3Transformer2DModel.from_pretrained(sd3, subfolder="transformer", local_files_only=True)


def test_card_and_record_say_that_it_is_folded(sd3: Path) -> None:
    assert json.loads((sd3 / "tsd_student.json").read_text())["folded"] is True
    card = (sd3 / "README.md").read_text()
    assert "only `tsd` loads it" in card
    assert "from_pretrained" not in card
    assert "transformer/folded.safetensors" in card
    assert "model/transformer/folded.safetensors" in Restorer.load(sd3, config=CONFIG).weights_sha256


def test_of_another_version_is_refused(sd3: Path, tmp_path: Path) -> None:
    for entry in sd3.iterdir():
        if entry.name != "transformer":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text((sd3 / "transformer" / "config.json").read_text())
    state = load_file(sd3 / "transformer" / "folded.safetensors")
    state.pop(next(iter(state)))
    save_file(state, tmp_path / "transformer" / "folded.safetensors")
    with pytest.raises(UserError, match="another version of this program; export it anew"):
        Restorer.load(tmp_path)


@pytest.mark.parametrize("settings", [{"what": "lora"}, {"text_encoders": True}])
def test_only_a_merged_student_without_text_encoders_is_folded(
    student_of: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="fold"):
        folded(student_of("sd3"), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
