import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tsd.cli import main


def picture(path: Path, width: int = 12, height: int = 9, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:height, 0:width]
    array = np.stack([x * 255 // width, y * 255 // height, (x + y) * 5], axis=-1).astype(np.uint8)
    Image.fromarray(array).convert(mode).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tiny_sd3_dir: Path, tiny_lora_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name the tiny model and student, whose restore.json switches the least size of 512 off."""
    lora = tmp_path_factory.mktemp("cli") / "lora"
    shutil.copytree(tiny_lora_dir, lora)
    (lora / "restore.json").write_text('{"process_size": 0, "posterior": "mode"}')
    return ["--model", str(tiny_sd3_dir), "--lora", str(lora), "--device", "cpu"]


def restore(*arguments: object) -> int:
    return main(["restore", *map(str, arguments)])


@pytest.mark.slow
def test_the_console_script(weights: list[str], tmp_path: Path) -> None:
    source, script = picture(tmp_path / "a.jpg"), Path(sys.executable).with_name("tsd")
    done = subprocess.run(
        [script, "restore", source, "-o", tmp_path / "out", *weights, "--report", tmp_path / "r.json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (48, 36)
    assert done.stdout.startswith(f"{source} -> {tmp_path / 'out' / 'a.png'} (48x36, ")
    assert "1/1" in done.stderr  # the progress bar
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["settings"]["process_size"] == 0
    assert report["settings"]["color"] == "wavelet"
    assert len(report["sha256"]["lora/transformer.safetensors"]) == 64
    assert report["images"][0]["size"] == [48, 36]
    assert report["failed"] == {}


@pytest.mark.slow
def test_the_console_script_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("tsd")
    done = subprocess.run([script, "restore", tmp_path / "none.png"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"tsd restore: no such file or folder: {tmp_path / 'none.png'}"]


def test_folders_with_subfolders_formats_and_one_broken_file(
    weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    picture(photos / "a.png")
    picture(photos / "sub" / "b.tif", mode="L")
    picture(photos / "sub" / "c.v2.bmp", 8, 8)
    picture(photos / "d.webp").with_suffix(".txt").write_text("no image")
    picture(photos / ".hidden.png")
    broken = picture(photos / "e.png", 40, 40)
    broken.write_bytes(broken.read_bytes()[:60])
    tiny = picture(photos / "f.png", 7, 20)
    assert restore(photos, "-o", tmp_path / "out", *weights, "--report", tmp_path / "report.json") == 1
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["a.png", "d.png", "sub/b.png", "sub/c.v2.png"]
    with Image.open(tmp_path / "out" / "sub" / "b.png") as image:
        assert (image.mode, image.size) == ("L", (48, 36))
    stderr = capsys.readouterr().err
    assert "2 of 6 images failed" in stderr
    assert f"{broken}: " in stderr
    assert f"{tiny}: an input is (1, 3, h, w) with sides of 8 or more" in stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert sorted(report["failed"]) == [str(broken), str(tiny)]
    assert sorted(image["name"] for image in report["images"]) == ["a", "d", "sub/b", "sub/c.v2"]


def test_existing_results(weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = tmp_path / "photos", tmp_path / "photos" / "out"  # results inside the input folder are no inputs
    picture(photos / "a.png")
    assert restore(photos, "-o", out, *weights) == 0
    before = (out / "a.png").stat().st_mtime_ns
    assert restore(photos, "-o", out, *weights) == 2
    assert "--overwrite to replace, --skip-existing to do only what is missing" in capsys.readouterr().err
    picture(photos / "b.png")
    assert restore(photos, "-o", out, *weights, "--skip-existing") == 0
    assert (out / "a.png").stat().st_mtime_ns == before
    assert (out / "b.png").is_file()
    assert "1 of 2 results exist" in capsys.readouterr().err
    assert restore(photos, "-o", out, *weights, "--skip-existing") == 0
    assert restore(photos, "-o", out, *weights, "--overwrite") == 0
    assert (out / "a.png").stat().st_mtime_ns != before
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]


def test_the_output_may_be_a_file(weights: list[str], tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    with Image.open(source) as image:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(source)
    assert restore(source, "-o", tmp_path / "big.webp", *weights) == 0
    with Image.open(tmp_path / "big.webp") as image:
        assert (image.format, image.mode, image.size) == ("WEBP", "RGBA", (48, 36))


def test_settings_and_notes(weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "a.png", 20, 20, mode="RGBA")
    options = ["--color", "none", "--tile", "4", "--tile-overlap", "1", "--format", "jpg", "--dtype", "bf16"]
    assert restore(source, "-o", tmp_path / "out", *weights, *options, "--scale", "2", "--verbose") == 0
    captured = capsys.readouterr()
    assert '"color": "none"' in captured.err
    assert '"dtype": "bfloat16"' in captured.err
    assert "tile 1 of 4" in captured.err
    assert f"warning: {source}: JPEG has no alpha" in captured.err
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.size == (40, 40)


def test_a_long_narrow_image_enlarged_beyond_need_is_warned_of(
    weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tsd.commands.restore.LARGE", 10_000)
    source = picture(tmp_path / "a.png", 48, 8)
    assert restore(source, "-o", tmp_path / "out", *weights, "--process-size", 64) == 0
    assert "worked at 384x64" in capsys.readouterr().err
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (192, 32)


def test_a_file_and_its_folder_give_the_same_result(weights: list[str], tmp_path: Path) -> None:
    source = picture(tmp_path / "photos" / "a.png")
    sampled = [*weights, "--posterior", "sample"]
    assert restore(source, "-o", tmp_path / "one", *sampled) == 0
    picture(tmp_path / "photos" / "0.png", 16, 16)
    assert restore(tmp_path / "photos", source, "-o", tmp_path / "two", *sampled) == 0
    assert (tmp_path / "one" / "a.png").read_bytes() == (tmp_path / "two" / "a.png").read_bytes()
    assert restore(source, "-o", tmp_path / "three", *sampled, "--seed", 1) == 0
    assert (tmp_path / "one" / "a.png").read_bytes() != (tmp_path / "three" / "a.png").read_bytes()


class TestRefusedBeforeWork:
    """Mistakes in files, folders and names end with status 2 and a message, and nothing is written."""

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
        assert restore(*arguments) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert "loading" not in captured.err
        return captured.err

    def test_two_inputs_with_one_output(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        one, two = picture(tmp_path / "a.png"), picture(tmp_path / "a.jpg")
        message = self.refused(capsys, one, two, "-o", tmp_path / "out")
        assert f"{one} and {two} would both be written to {tmp_path / 'out' / 'a.png'}" in message

    def test_an_input_as_output(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = picture(tmp_path / "a.png")
        assert "is one of the inputs" in self.refused(capsys, source, "-o", tmp_path, "--overwrite")
        assert "is one of the inputs" in self.refused(capsys, source, "-o", source, "--overwrite")

    def test_an_empty_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no images in" in self.refused(capsys, tmp_path, "-o", tmp_path / "out")

    def test_a_file_name_for_several_inputs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        one, two = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
        assert "more than one input" in self.refused(capsys, one, two, "-o", tmp_path / "c.png")
        assert "more than one input" in self.refused(capsys, tmp_path, "-o", tmp_path / "c.png")

    def test_a_missing_input_for_a_named_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no such file" in self.refused(capsys, tmp_path / "a.png", "-o", tmp_path / "c.png")

    def test_a_file_that_is_no_image_as_output(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = picture(tmp_path / "a.png")
        (tmp_path / "notes").write_text("")
        assert "without an image's suffix" in self.refused(capsys, source, "-o", tmp_path / "notes")

    def test_format_and_name_that_disagree(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = picture(tmp_path / "a.png")
        assert "disagree" in self.refused(capsys, source, "-o", tmp_path / "c.webp", "--format", "png")

    def test_an_existing_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source, report = picture(tmp_path / "a.png"), tmp_path / "report.json"
        report.write_text("{}")
        message = self.refused(capsys, source, "-o", tmp_path / "out", "--report", report)
        assert "report.json exists" in message
        assert report.read_text() == "{}"

    def test_a_model_without_student(
        self, tiny_sd3_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = picture(tmp_path / "a.png")
        message = self.refused(capsys, source, "-o", tmp_path / "out", "--model", tiny_sd3_dir)
        assert "--lora DIR" in message

    def test_a_device_of_another_kind(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = picture(tmp_path / "a.png")
        assert "expected cpu, cuda" in self.refused(capsys, source, "-o", tmp_path / "out", "--device", "tpu")

    def test_impossible_settings(self, weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = picture(tmp_path / "a.png")
        message = self.refused(capsys, source, "-o", tmp_path / "out", *weights, "--scale", "0")
        assert "scale is 0; expected an integer of 1 or more" in message
        assert not (tmp_path / "out").exists()


def test_a_hub_id_that_is_not_here_fails_soon_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "a.png")
    lora = tmp_path / "lora"
    lora.mkdir()
    for name in ("transformer", "vae"):
        (lora / f"{name}.safetensors").write_bytes(b"")
    arguments = ["--model", "no-such-owner/no-such-model", "--lora", lora, "--device", "cpu"]
    assert restore(source, "-o", tmp_path / "out", *arguments) == 2
    assert "hf download no-such-owner/no-such-model" in capsys.readouterr().err
