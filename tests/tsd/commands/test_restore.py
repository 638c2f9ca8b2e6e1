import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tsd.cli import main
from tsd.errors import UserError
from tsd.restore import Restorer
from tsd.writing import write_picture


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
def test_the_command_as_a_process(weights: list[str], tmp_path: Path, warm: Any) -> None:
    source = picture(tmp_path / "a.jpg")
    arguments = ["restore", source, "-o", tmp_path / "out", *weights, "--report", tmp_path / "r.json"]
    done = warm.run("tsd", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (48, 36)
    assert done.stdout.startswith(f"{source} -> {tmp_path / 'out' / 'a.png'} (48x36, ")
    assert "image 1 of 1" in done.stderr  # progress in plain lines, since stderr is no terminal
    assert re.search(r"1 image of 48x36 pixels, .* free; memory up to .* used; how long it takes shows", done.stderr)
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


def test_settings_and_notes(
    weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tsd.console.progress.SECONDS", 0.0)  # a line for every step
    source = picture(tmp_path / "a.png", 27, 28, mode="RGBA")
    options = ["--color", "none", "--tile", "4", "--tile-overlap", "1", "--format", "jpg", "--dtype", "bf16"]
    assert restore(source, "-o", tmp_path / "out", *weights, *options, "--scale", "1.5", "--verbose") == 0
    captured = capsys.readouterr()
    assert '"color": "none"' in captured.err
    assert '"dtype": "bfloat16"' in captured.err
    for piece in ("encode: piece 0 of 1", "tiles: piece 0 of 4", "decode: piece 0 of 1", "write: piece 0 of 1"):
        assert f"a, {piece}" in captured.err
    assert f"warning: {source}: JPEG has no alpha" in captured.err
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.size == (41, 42)


def test_the_time_of_large_work_is_told_before_it_by_a_tile_that_is_timed(
    weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, options = picture(tmp_path / "a.png", 32, 32), ["--tile", "8", "--tile-overlap", "0"]
    monkeypatch.setattr("tsd.restore.expected.WORTH", 5)
    assert restore(source, "-o", tmp_path / "less", *weights, *options) == 0
    assert "how long it takes shows on the way" in capsys.readouterr().err
    monkeypatch.setattr("tsd.restore.expected.WORTH", 4)
    assert restore(source, "-o", tmp_path / "out", *weights, *options) == 0
    assert re.search(r"of 128x128 pixels, .*; about 0:00:\d\d, by one tile", capsys.readouterr().err)
    assert (tmp_path / "less" / "a.png").read_bytes() == (tmp_path / "out" / "a.png").read_bytes()


def test_a_long_narrow_image_enlarged_beyond_need_is_warned_of(
    weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tsd.restore.to_file.LARGE", 10_000)
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


def test_every_name_works_or_fails_alone(
    weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that are no UTF-8, that another encoding cannot print, and as long as the file system takes."""
    photos, one = tmp_path / "photos", picture(tmp_path / "one.png", 8, 8)
    photos.mkdir()
    names = [b"a.png", b"b_caf\xe9.png", "c_照片.png".encode(), b"x" * 251 + b".png", b"z.png"]
    for name in names:
        shutil.copyfile(one, os.fsencode(photos) + b"/" + name)
    (photos / "y.png").write_bytes(b"no image")
    assert restore(photos, "-o", tmp_path / "out", *weights, "--report", tmp_path / "report.json") == 1
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(names)
    assert "1 of 6 images failed" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "b_caf\udce9" in [image["name"] for image in report["images"]]
    assert restore(photos, "-o", tmp_path / "webp", *weights, "--format", "webp", "--report", tmp_path / "r") == 1
    assert len(os.listdir(tmp_path / "webp")) == 4  # ".webp" makes the long name one byte too long
    assert "2 of 6 images failed" in capsys.readouterr().err


def test_a_terminal_that_cannot_print_a_name_stops_nothing(
    weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = picture(tmp_path / "照片.png", 8, 8), io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert restore(source, "-o", tmp_path / "out", *weights) == 0
    out.seek(0)
    assert "\\u7167\\u7247.png" in out.read()


def test_results_may_lie_in_or_above_the_folder_of_the_images(
    weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "photos" / "inside"
    picture(inside / "a.bmp", 8, 8)
    for out in (inside, inside.parent, tmp_path):
        assert restore(inside, "-o", out, *weights) == 0
        assert (out / "a.png").is_file()
        (out / "a.png").unlink()
    assert restore(inside, "-o", inside, *weights) == 0
    assert restore(inside, "-o", inside, *weights) == 2  # the result is an image of the folder now
    assert f"would both be written to {inside / 'a.png'}" in capsys.readouterr().err
    picture(inside / "b.png", 8, 8)
    (inside / "a.png").unlink()
    assert restore(inside, "-o", inside, *weights) == 2
    assert "is one of the inputs" in capsys.readouterr().err


def test_a_link_and_its_target_are_two_images_and_links_that_lead_nowhere_fail_alone(
    weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    (photos / "link.png").parent.mkdir()
    (photos / "link.png").symlink_to(picture(photos / "a.png", 8, 8))
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "round.png").symlink_to("round.png")
    (tmp_path / "again").symlink_to(photos)
    assert restore(photos, tmp_path / "again", "-o", tmp_path / "out", *weights) == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "link.png"]
    said = capsys.readouterr().err
    assert f"{photos / 'gone.png'}: no such file" in said
    assert f"{photos / 'round.png'}: {os.strerror(errno.ELOOP)}" in said


def test_what_is_passed_over_is_told(weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.gif")
    Image.new("RGB", (8, 8)).save(photos / "b.jfif", "JPEG")
    for name in ("notes.txt", "c.cr2", "._a.gif", "Thumbs.db"):
        (photos / name).write_bytes(b"content")
    assert restore(photos, "-o", tmp_path / "out", *weights) == 1
    said = capsys.readouterr().err
    assert "passed over what is no image: 1 .txt" in said
    assert "1 of 3 images failed" in said
    assert "c.cr2: .cr2 is not read; convert it" in said
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png"]


def test_networks_that_give_nan_make_no_picture(
    weights: list[str], tiny_sd3_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Partly NaN like wholly NaN; the decoder is damaged, since an adapter with NaN is refused when it is loaded."""
    model = tmp_path / "model"
    shutil.copytree(tiny_sd3_dir, model)
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["decoder.conv_out.bias"][1] = float("nan")
    save_file(state, path, {"format": "pt"})
    source, options = picture(tmp_path / "a.png"), ["--model", str(model), *weights[2:]]
    for dtype, advice in (("fp32", "the weights of the model or of the student are damaged"), ("bf16", "fp32")):
        assert restore(source, "-o", tmp_path / "out", *options, "--dtype", dtype) == 1
        said = capsys.readouterr().err
        assert "1 of 1 images failed" in said
        assert "values that are NaN or infinite" in said
        assert advice in said
    assert not (tmp_path / "out").exists()
    restorer = Restorer.load(model, weights[3])
    for image in (source, Image.open(source), np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)):
        with pytest.raises(UserError, match="NaN or infinite"):
            restorer(image)


def test_a_size_that_the_format_cannot_hold_is_refused_before_the_work(
    weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "wide.png", 4200, 8)
    picture(tmp_path / "in" / "small.png", 8, 8)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", *weights, "--format", "webp") == 1
    assert "16800x32 image could not be written as WEBP, whose sides end at 16383" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["small.webp"]


def test_an_image_that_does_not_fit_is_restored_in_pieces(
    weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "small.png")
    wide = picture(tmp_path / "in" / "wide.png", 700, 8)
    monkeypatch.setattr("tsd.restore.memory._free_bytes", lambda: 19_000_000)
    options = ["-o", tmp_path / "out", *weights, "--tile", "auto", "--tile-overlap", "0"]
    assert restore(tmp_path / "in", *options, "--report", tmp_path / "report.json") == 0
    said = capsys.readouterr().err
    assert f"{wide}: 2800x32 would take about 14.0 MB in one piece, and 13.3 MB may be used: restored in pieces" in said
    assert "small.png: " not in said
    small, large = json.loads((tmp_path / "report.json").read_text())["images"]
    assert "piece_pixels" not in small
    assert large["piece_pixels"] >= 600
    with Image.open(tmp_path / "out" / "wide.png") as image:
        assert image.size == (2800, 32)
    assert sorted(os.listdir(tmp_path / "out")) == ["small.png", "wide.png"]
    with pytest.raises(SystemExit):
        restore(wide, "--tile", "many")
    assert "expected auto or a number of latent positions" in capsys.readouterr().err


def test_black_and_white_stays_so_also_in_three_channels(weights: list[str], tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", mode="L")
    with Image.open(source) as image:
        image.convert("RGB").save(tmp_path / "b.png")
    assert restore(tmp_path / "b.png", "-o", tmp_path / "out", *weights, "--color", "none") == 0
    with Image.open(tmp_path / "out" / "b.png") as image:
        assert image.mode == "RGB"
        assert np.ptp(np.asarray(image).astype(int), axis=2).max() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_says_what_is_done_and_what_continues(
    weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: int, status: int,
) -> None:  # fmt: skip
    for name in ("a", "b", "c"):
        picture(tmp_path / "in" / f"{name}.png", 8, 8)
    write = write_picture

    def write_and_signal(*arguments: object) -> tuple[str, ...]:
        notes = write(*arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), number)
        return notes

    monkeypatch.setattr("tsd.restore.to_file.write_picture", write_and_signal)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert restore(tmp_path / "in", "-o", tmp_path / "out", *weights) == status
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert "0 of 3 images are done" in said or "1 of 3 images are done" in said
    assert "the same command with --skip-existing continues" in said
    monkeypatch.undo()
    assert restore(tmp_path / "in", "-o", tmp_path / "out", *weights, "--skip-existing") == 0
    assert len(os.listdir(tmp_path / "out")) == 3


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
        assert "scale is 0; expected a number of 1 or more" in message
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
