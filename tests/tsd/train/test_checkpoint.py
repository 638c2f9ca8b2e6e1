"""What a checkpoint is recognised by, which ones are kept, and checkpoints of the first release."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tsd.errors import UserError
from tsd.presets import MINI
from tsd.train import fingerprint
from tsd.train.checkpoint import TrainState, check_same_run, checkpoints, prune, remove_unfinished

RECORD: dict[str, Any] = {"stage": "student", "global_batch": 8, "model": "a", "data": "b", "teacher_lora": None}


def save(folder: Path, step: int = 1) -> Path:
    return TrainState({"student.vae": {"x": torch.ones(2)}}, {}, step=step).save(folder, MINI, RECORD)


@pytest.mark.parametrize(
    ("key", "value"), [("model", "z"), ("data", "z"), ("teacher_lora", "z"), ("stage", "teacher"), ("global_batch", 4)]
)
def test_another_run_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    checkpoint = save(tmp_path)
    check_same_run(checkpoint, MINI, RECORD)
    with pytest.raises(UserError, match=f"{key}: {RECORD[key]!r} then, {value!r} now"):
        check_same_run(checkpoint, MINI, RECORD | {key: value})


def test_the_global_batch_may_be_split_anew(tmp_path: Path) -> None:
    checkpoint = save(tmp_path)
    check_same_run(checkpoint, dataclasses.replace(MINI, batch_size=1, gradient_accumulation=2), RECORD)


def test_checkpoints_of_the_first_release_are_resumed(tmp_path: Path) -> None:
    """They have no record, no `best_step`, and do not know settings that came later."""
    checkpoint = save(tmp_path)
    (checkpoint / "record.json").unlink()
    old = json.loads(MINI.to_json())
    del old["optimizer"], old["gradient_checkpointing"], old["degrade_anew"]
    (checkpoint / "config.json").write_text(json.dumps(old))
    saved = torch.load(checkpoint / "state.pt", weights_only=True)
    del saved["best_step"]
    torch.save(saved, checkpoint / "state.pt")
    check_same_run(checkpoint, MINI, RECORD)
    state = TrainState({"student.vae": {"x": torch.zeros(2)}}, {})
    state.load(checkpoint)
    assert state.step == 1
    assert state.tensors["student.vae"]["x"].tolist() == [1, 1]
    with pytest.raises(UserError, match="optimizer: 'adamw' then, 'adamw8bit' now"):
        check_same_run(checkpoint, dataclasses.replace(MINI, optimizer="adamw8bit"), RECORD)
    with pytest.raises(UserError, match="batch_size: 8 then, 4 now"):  # without a record the split counts
        check_same_run(checkpoint, dataclasses.replace(MINI, batch_size=4), RECORD)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    prune(tmp_path, keep=2, best_step=2)
    assert [int(path.name[-7:]) for path in checkpoints(tmp_path)] == [2, 4, 5]
    prune(tmp_path, keep=1)
    assert [int(path.name[-7:]) for path in checkpoints(tmp_path)] == [5]


def test_half_written_ones_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-abc").mkdir(parents=True)
    save(tmp_path)
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000001"]


@pytest.mark.parametrize("file", ["config.json", "record.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    checkpoint = save(tmp_path)
    (checkpoint / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"{file} is damaged .*remove .*checkpoint-0000001 and resume"):
        check_same_run(checkpoint, MINI, RECORD)


def test_fingerprints_see_content_and_not_the_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "unet").mkdir(parents=True)
        data = np.random.default_rng(0).bytes(5 * 2**20)
        (tmp_path / name / "unet" / "x.safetensors").write_bytes(data)
        (tmp_path / name / "readme.txt").write_text(name)
    first = fingerprint.of_folder(tmp_path / "a", ("unet",))
    assert first == fingerprint.of_folder(tmp_path / "b", ("unet",))
    retrained = np.random.default_rng(1).bytes(5 * 2**20)
    (tmp_path / "b" / "unet" / "x.safetensors").write_bytes(retrained)
    assert first != fingerprint.of_folder(tmp_path / "b", ("unet",))
    images = [np.zeros((4, 4, 3), np.uint8), tmp_path / "a" / "readme.txt"]
    assert fingerprint.of_images(images) == fingerprint.of_images(images)
    assert fingerprint.of_images(images) != fingerprint.of_images(images[::-1])
    assert fingerprint.of_images(images[:1]) != fingerprint.of_images([np.ones((4, 4, 3), np.uint8)])
    prompt = torch.arange(6.0).view(2, 3)
    assert fingerprint.of_tensors([prompt]) == fingerprint.of_tensors([prompt.double()])
    assert fingerprint.of_tensors([prompt]) != fingerprint.of_tensors([prompt.view(3, 2)])
