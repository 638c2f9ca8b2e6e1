"""What can be checked without torch is checked before it is imported, and what a command does not use is not imported.

All wrong calls run in one process of their own, which would tell of torch if any of them imported it.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tsd.config import TrainConfig
from tsd.console.imports import without, without_compiler
from tsd.data.prepared_record import RECORD, SCHEMA, vae_sha256
from tsd.errors import UserError
from tsd.files import free_bytes, mini_model_dir, require_room, require_writable

SCRIPT = """
import contextlib, io, json, sys
from tsd.cli import main

found = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = main(arguments)
    heavy = [name for name in ("torch", "diffusers", "transformers", "datasets", "bitsandbytes") if name in sys.modules]
    found.append([status, said.getvalue(), heavy])
print(json.dumps(found))
"""


def prepared(folder: Path, model: Path, **settings: object) -> Path:
    """A folder as `tsd prepare` describes it, without the data."""
    folder.mkdir()
    values = {"crop": 128, "usm": True, "scale": 4, "degradation": {"name": "full"}, "model_sha256": vae_sha256(model)}
    record = {"schema": SCHEMA, "settings": values | settings, "counts": {"crops": 3, "images": 3}, "files": {}}
    (folder / RECORD).write_text(json.dumps(record))
    return folder


def test_wrong_paths_and_settings_need_no_torch(tmp_path: Path) -> None:
    photos, file, text = tmp_path / "photos", tmp_path / "photos" / "a.png", tmp_path / "text.txt"
    photos.mkdir()
    Image.new("RGB", (16, 16)).save(file)
    text.write_text("no folder")
    nowhere, below = tmp_path / "nowhere", text / "below"
    data = prepared(tmp_path / "data", mini_model_dir())
    other = prepared(tmp_path / "other", mini_model_dir(), model_sha256="0" * 64)
    train = ["train", "--device", "cpu", "--output", tmp_path / "run", "--data"]
    cases = [
        (["restore", file, "--scale", "0"], "scale is 0"),
        (["restore", nowhere], "no such file or folder"),
        (["restore", file, "-o", below], "is a file"),
        (["restore", file, "--model", nowhere], "carries no student"),
        (["restore", file, "--lora", nowhere], "no LoRA folder"),
        (["restore", file, "--prompt-embeds", nowhere], "no prompt folder"),
        (["restore", file, "--tile", "4", "--tile-overlap", "4"], "less than the tile"),
        ([*train, nowhere], "no such file or folder"),
        ([*train, tmp_path / "run"], "no such file or folder"),
        ([*train, photos, "--val-data", nowhere], "validation folder"),
        ([*train, photos, "--model", nowhere], "no model folder"),
        ([*train, photos, "--teacher-lora", nowhere], "no such folder"),
        ([*train, photos, "--preset", "paper"], "fp16 cannot be trained on a CPU"),
        ([*train, photos, "--output", below], "is a file"),
        ([*train, data, "--crop", "64"], "prepared with crops of 128 pixels"),
        ([*train, data, "--no-usm"], "train with --usm"),
        ([*train, data, "--degradation", "light"], "--degrade-anew"),
        ([*train, other], "latents of another VAE"),
        (["prepare", nowhere, "--out", tmp_path / "out"], "no such file or folder"),
        (["prepare", photos, "--out", below], "is a file"),
        (["prepare", photos, "--out", tmp_path / "out", "--model", nowhere], "no model folder"),
        (["prepare", photos, "--out", tmp_path / "out", "--batch-size", "0"], "must be 1 or more"),
        (["degrade", nowhere, "-o", tmp_path / "low"], "no such file or folder"),
        (["degrade", photos, "-o", below], "is a file"),
        (["degrade", photos, "-o", tmp_path / "low", "--scale", "0"], "must be 1 or more"),
        (["export", "--out", below], "is a file"),
        (["export", "--out", photos], "exists"),
        (["export", "--out", tmp_path / "out", "--run", nowhere], "no training run"),
        (["export", "--out", tmp_path / "out", "--model", nowhere], "carries no student"),
        (["export", "--out", tmp_path / "out", "--lora", nowhere], "no such folder"),
        (["prompts", "--model", nowhere, "--out", tmp_path / "out"], "no model folder"),
        (["prompts", "--model", mini_model_dir(), "--out", below], "is a file"),
        (["prompts", "--model", mini_model_dir(), "--out", tmp_path / "out", "--compare", nowhere], "no such folder"),
        (["distill-decoder", nowhere, "--output", tmp_path / "out"], "no such file or folder"),
    ]
    calls = json.dumps([[str(word) for word in arguments] for arguments, _ in cases])
    done = subprocess.run([sys.executable, "-c", SCRIPT, calls], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (arguments, message), (status, said, heavy) in zip(cases, json.loads(done.stdout), strict=True):
        assert (status, heavy) == (2, []), (arguments, said)
        assert message in said, (arguments, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "other", "photos", "text.txt"]


LEAN = """
import sys
from tsd.cli import main

status = main(sys.argv[1:])
unused = ("bitsandbytes", "transformers", "datasets", "peft", "torchvision", "scipy", "torch._dynamo", "triton")
print(status, *(name for name in unused if sys.modules.get(name)))
"""


@pytest.mark.slow
def test_restoring_imports_nothing_that_it_does_not_use_and_says_nothing_of_others(
    tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 12), (40, 90, 160)).save(tmp_path / "a.png")
    command = ["restore", tmp_path / "a.png", "-o", tmp_path / "out", "--process-size", "0", "--device", "cpu"]
    command += ["--model", tiny_sd3_dir, "--lora", tiny_lora_dir]
    done = subprocess.run([sys.executable, "-c", LEAN, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0"
    told = [line for line in done.stderr.splitlines() if not line.startswith("a, ")]  # a stage, on a slow machine
    assert [line.split()[0] for line in told] == ["loading", "1", "image"]


def test_what_is_hidden_is_there_again_afterwards() -> None:
    with without("colorsys_of_nobody", "json"):
        assert sys.modules["colorsys_of_nobody"] is None  # counts as not installed
        assert isinstance(sys.modules["json"], ModuleType)  # imported before: stays
        with pytest.raises(ModuleNotFoundError):
            __import__("colorsys_of_nobody")
    assert "colorsys_of_nobody" not in sys.modules
    compiler = sys.modules.get("torch._dynamo")
    with without_compiler():
        pass
    assert sys.modules.get("torch._dynamo") is compiler


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"b cannot be a folder: .*file is a file"):
        require_writable(tmp_path / "file" / "a" / "b")
    free = free_bytes(tmp_path / "a" / "b")
    require_room(tmp_path, free // 2, "make room")
    with pytest.raises(UserError, match=r"TB, and .* are free there; make room"):
        require_room(tmp_path / "a", 10**18, "make room")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_settings_are_told_as_differences() -> None:
    from dataclasses import replace

    from tsd.commands.train import differences
    from tsd.presets import MINI

    short: TrainConfig = replace(MINI.scaled_to(50), batch_size=1)
    assert differences(short, MINI) == {
        "batch_size": ("1", "8"), "warmup_steps": ("2", "100"), "steps of the phases": ("47 + 3", "3000 + 200"),
    }  # fmt: skip
    assert differences(MINI, MINI) == {}


def test_a_mini_model_goes_on_from_its_own_student_unless_told_otherwise(tmp_path: Path) -> None:
    from tsd.cli import build_parser
    from tsd.commands.train import resolve_config, resolve_settings
    from tsd.presets import MINI

    def resolved(*flags: str) -> tuple[Path | None, list[int | float]]:
        args = build_parser().parse_args(["train", "--data", str(tmp_path), "--output", str(tmp_path / "run"), *flags])
        config = resolve_config(args)
        return resolve_settings(args).init_lora, [config.rank, config.vae_rank, config.lr]

    own = mini_model_dir() / "lora" / "tsdsr"
    fresh = (None, [MINI.rank, MINI.vae_rank, MINI.lr])
    assert resolved() == (own, [64, 96, 0.1 * MINI.lr])  # the ranks are those of its files
    assert resolved("--vae-rank", "96", "--lr", "0.5") == (own, [64, 96, 0.5])
    assert resolved("--from-scratch") == fresh
    assert resolved("--vae-rank", "64") == fresh
    assert resolved("--model", str(mini_model_dir("mini-sd2")))[0] == mini_model_dir("mini-sd2") / "lora" / "tsdsr"
    assert resolved("--model", "sd3")[0] is None
