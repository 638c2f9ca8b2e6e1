import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from tsd.cli import build_parser, main
from tsd.data.prepared import PreparedDataset
from tsd.presets import MINI


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    return root


def run(*args: object) -> int:
    return main(["prepare", *map(str, args)])


def test_folders_are_prepared_and_left_out_images_listed(photos: Path, tmp_path: Path, tiny_sd3_dir: Path, capsys):
    (photos / "bad.png").write_bytes(b"no image")
    out = tmp_path / "data"
    assert run(photos, "--out", out, "--model", tiny_sd3_dir, "--crop", 32, "--crops-per-image", 2) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"6 crops of 4 images, 0 distinct captions in {out}")
    assert "1 left out" in captured.err
    assert "photos/bad.png: not a readable" in captured.err
    settings = PreparedDataset(out, seed=0).settings
    assert (settings["usm"], settings["degradation"]["name"], settings["seed"]) == (True, "full", 42)


def test_grid_light_and_a_fixed_caption(photos: Path, tmp_path: Path, tiny_sd3_text_dir: Path, capsys):
    out = tmp_path / "data"
    flags = ["--crop", 32, "--grid", "--degradation", "light", "--caption", "a photograph", "--no-t5"]
    assert run(photos, "--out", out, "--model", tiny_sd3_text_dir, *flags) == 0
    assert "6 crops of 3 images, 1 distinct captions" in capsys.readouterr().out
    settings = PreparedDataset(out, seed=0).settings
    assert (settings["mode"], settings["usm"], settings["captions"]["text"]) == ("grid", False, "a photograph")


def test_a_data_set_of_the_library(photos: Path, tmp_path: Path, tiny_sd3_dir: Path, capsys):
    rows = {"picture": [Image.open(path) for path in sorted(photos.glob("*.png"))]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    flags = ["--hub", tmp_path / "set", "--image-column", "picture", "--streaming", "--limit", 2, "--crop", 32]
    assert run(*flags, "--out", tmp_path / "data", "--model", tiny_sd3_dir) == 0
    assert "2 crops of 2 images" in capsys.readouterr().out


def test_the_plan_states_space_and_writes_nothing(photos: Path, tmp_path: Path, tiny_sd3_text_dir: Path, capsys):
    out = tmp_path / "data"
    flags = ["--crop", 32, "--crops-per-image", 2, "--caption", "x", "--plan"]
    assert run(photos, "--out", out, "--model", tiny_sd3_text_dir, *flags) == 0
    text = capsys.readouterr().out
    settings = json.loads(text[: text.index("\n}\n") + 2])
    assert settings["latent_shape"] == [8, 4, 4]
    (first, second) = [line.split() for line in text.splitlines() if line.startswith("embeddings")]
    assert first[-4:] == ["8,012", "1", "8", "kB"]
    assert second[-4:] == ["8,012", "95,000", "761.1", "MB"]
    assert "3 images, at most:" in text
    assert "free where" in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either image folders (PATH ...) or one data set (--hub NAME)"),
        (["{photos}", "--hub", "x/y"], "give either"),
        (["{photos}/absent"], "no such file or folder"),
        (["{photos}", "--caption-files"], "3 of 3 images have no .txt file beside them"),
        (["{photos}", "--caption-column", "text"], "belong to --hub"),
        (["--hub", "x/y", "--caption-files"], "--caption-column NAME"),
        (["{photos}", "--caption", " "], "--caption is empty"),
        (["{photos}", "--crop", "30"], "multiple of 16"),
        (["{photos}", "--crops-per-image", "0"], "must be 1 or more"),
        (["{photos}", "--workers", "-1"], "0 or more"),
        (["{photos}", "--limit", "0"], "--limit must be 1"),
        (["{photos}", "--scale", "0"], "scale must be 1"),
        (["{photos}", "--device", "tpu"], "expected cpu, or cuda"),
        (["{photos}", "--model", "{photos}"], "model of neither family"),
        (["{photos}", "--caption", "x"], "text_encoder"),
    ],
)
def test_bad_arguments_end_with_one_message_and_status_2(
    photos: Path, tmp_path: Path, tiny_sd3_dir: Path, capsys, arguments: list[str], message: str
):
    model = [] if "--model" in arguments else ["--model", tiny_sd3_dir]
    given = [argument.format(photos=photos) for argument in arguments]
    assert run(*given, "--out", tmp_path / "data", *model) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "data").exists()


def printed(out: str) -> list[list[str]]:
    """The commands that `tsd prepare` advises, as words."""
    return [shlex.split(line.removeprefix("try: ")) for line in out.splitlines() if line.startswith("try: ")]


@pytest.mark.parametrize("usm", [[], ["--usm"], ["--no-usm"]])
def test_the_printed_command_trains(
    usm: list[str], photos: Path, tmp_path: Path, tiny_sd3_dir: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run(photos, "--out", "my data", "--model", tiny_sd3_dir, "--crop", 32, "--device", "cpu", *usm) == 0
    ((program, *command),) = printed(capsys.readouterr().out)
    assert program == "tsd"
    few = ["--max-train-steps", "1", "--batch-size", "1", "--device", "cpu", "--tracker", "none"]
    few += ["--rank", "4", "--vae-rank", "4", "--critic-rank", "4"]
    assert main([*command, *few]) == 0
    sharpened = "--no-usm" not in usm  # as the preset of every real model
    assert json.loads((tmp_path / "run" / "config.json").read_text())["usm"] is sharpened
    if not usm:  # the same without the flags that describe the data: they are taken from prepared.json
        bare = [word for word in command if word not in ("--crop", "32", "--usm", "--degradation", "full", "run/")]
        assert main([*bare, "again", *few]) == 0
        assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "run" / "config.json").read_text()


def test_captions_need_prompts_of_their_length_and_the_advice_makes_them(
    photos: Path, tmp_path: Path, tiny_sd3_text_dir: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    flags = ["--crop", 32, "--caption", "a photograph", "--no-t5", "--device", "cpu"]
    assert run(photos, "--out", "data", "--model", tiny_sd3_text_dir, *flags) == 0
    prompts, train = printed(capsys.readouterr().out)
    assert main(prompts[1:]) == 0
    few = ["--max-train-steps", "1", "--batch-size", "1", "--device", "cpu", "--dry-run"]
    assert main([*train[1:], *few]) == 0


def test_a_mini_model_is_prepared_as_its_preset_trains(tmp_path: Path):
    from tsd.commands.prepare import _check

    arguments = build_parser().parse_args(["prepare", str(tmp_path), "--out", str(tmp_path / "data")])
    Image.new("RGB", (130, 130)).save(tmp_path / "a.png")
    _check(arguments)
    assert (arguments.crop, arguments.usm) == (MINI.crop, MINI.usm)
