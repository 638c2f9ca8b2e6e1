"""`bench score`: pairing by name, every fault at once, the table and the JSON."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from scipy import stats
from skimage import data

from bench.cli import main
from bench.metrics import METRICS, MetricSpec, SetScorer, get_metric
from bench.report.folders import FolderError, find_pairs, format_scores, score_pairs

NAMES = ("b", "a", "c")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Three pairs of 40x32 images, and no weights of any metric."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    sr, hr = tmp_path / "sr", tmp_path / "hr"
    rng = np.random.default_rng(0)
    for folder in (sr, hr):
        folder.mkdir()
    for index, name in enumerate(NAMES):
        image = data.astronaut()[40 * index : 40 * index + 32, 100:140]
        Image.fromarray(image).save(hr / f"{name}.png")
        worse = (image + rng.normal(0, 5 + 5 * index, image.shape)).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(worse).save(sr / f"{name}.png")
    return sr, hr


def test_json_has_exactly_the_documented_form(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    sr, hr = folders
    assert main(["score", str(sr), "--hr", str(hr), "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out, parse_constant=pytest.fail)
    assert list(result) == ["n", "metrics", "missing"]
    assert result["n"] == 3
    assert list(result["metrics"]) == ["psnr", "ssim"]
    assert list(result["missing"]) == ["lpips", "dists", "fid", "niqe", "musiq", "maniqa", "clipiqa"]
    assert "at least 96x192 pixels" in result["missing"]["niqe"]
    assert "alexnet-owt-7be5be79.pth" in result["missing"]["lpips"]
    psnr = result["metrics"]["psnr"]
    assert list(psnr) == ["mean", "ci95", "per_image"]
    assert list(psnr["per_image"]) == ["a.png", "b.png", "c.png"]
    values = list(psnr["per_image"].values())
    assert psnr["mean"] == pytest.approx(np.mean(values))
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert psnr["ci95"] == pytest.approx([low, high])


def test_table_shows_values_intervals_and_what_is_missing(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sr, hr = folders
    assert main(["score", str(sr), "--hr", str(hr), "--metrics", "psnr,ssim", "musiq"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "mean", "95", "%", "interval"]
    assert [line.split()[:2] for line in lines[1:3]] == [["PSNR", "↑"], ["SSIM", "↑"]]
    assert lines[3] == "3 images"
    assert lines[4].startswith("- MUSIQ: MUSIQ needs musiq_koniq_ckpt-e95806b9.pth (108.6 MB, ")


def test_pairing_is_by_stem_and_not_by_order(folders: tuple[Path, Path]) -> None:
    sr, hr = folders
    before = score_pairs(find_pairs(sr, hr), [METRICS["psnr"]])["metrics"]["psnr"]["per_image"]
    Image.open(hr / "b.png").save(hr / "b.BMP")
    (hr / "b.png").unlink()
    (sr / "notes.txt").write_text("ignored")
    (sr / "._a.png").write_text("ignored")
    (sr / "sub.png").mkdir()
    after = score_pairs(find_pairs(sr, hr), [METRICS["psnr"]])["metrics"]["psnr"]["per_image"]
    assert after == before


def test_every_fault_is_listed_and_nothing_is_scored(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sr, hr = folders
    image = data.astronaut()[:32, :40]
    for name in ("deep", "alpha", "empty", "truncated", "text", "size", "twice"):
        Image.fromarray(image).save(hr / f"{name}.png")
    Image.fromarray(image[..., 0].astype(np.uint16)).save(sr / "deep.png")
    Image.fromarray(image).convert("RGBA").save(sr / "alpha.png")
    (sr / "empty.png").touch()
    (sr / "truncated.png").write_bytes((hr / "b.png").read_bytes()[:-400])
    (sr / "text.png").write_text("not an image")
    Image.fromarray(image[:31]).save(sr / "size.png")
    Image.fromarray(image).save(sr / "twice.png")
    Image.fromarray(image).save(sr / "twice.jpg")
    Image.fromarray(image).save(sr / "extra.png")
    (sr / "a.png").unlink()
    assert main(["score", str(sr), "--hr", str(hr), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for fault in (
        f"{sr}/deep.png: 16-bit",
        f"{sr}/alpha.png: has an alpha channel",
        f"{sr}/empty.png: empty file",
        f"{sr}/truncated.png: cannot be read",
        f"{sr}/text.png: cannot be read",
        f"{sr}/size.png: 40x31, but {hr}/size.png is 40x32",
        f"{sr}/twice.png: same stem as twice.jpg",
        f"{sr}/extra.png: no partner in {hr}",
        f"{hr}/a.png: no partner in {sr}",
        "9 problems",
    ):
        assert fault in captured.err
    assert "Traceback" not in captured.err


def test_names_with_a_suffix_and_outputs_of_the_first_images_alone(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sr, hr = folders
    before = [(pair.sr.stem, pair.hr) for pair in find_pairs(sr, hr)]
    for name in NAMES:
        (sr / f"{name}.png").rename(sr / f"{name}_x4.png")
    assert [(pair.sr.stem.removesuffix("_x4"), pair.hr) for pair in find_pairs(sr, hr)] == before
    assert "names are taken without _x4, as in a_x4" in capsys.readouterr().err
    (sr / "c_x4.png").unlink()
    with pytest.raises(FolderError, match=rf"{hr}/a\.png, {hr}/b\.png, {hr}/c\.png: no partner in {sr}"):
        find_pairs(sr, hr)
    assert [pair.name for pair in find_pairs(sr, hr, limit=2)] == ["a_x4.png", "b_x4.png"]


@pytest.mark.parametrize(
    ("which", "fault"), [("absent", "no such folder"), ("empty", "no images"), ("file", "empty file")]
)
def test_folders_that_are_none(which: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / which
    if which == "empty":
        target.mkdir()
    if which == "file":
        target.touch()
    assert main(["score", str(target)]) == 2
    assert fault in capsys.readouterr().err


def test_two_images_are_a_pair_whatever_their_names(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sr, hr = folders
    (other,) = [pair for pair in find_pairs(sr, hr) if pair.name == "b.png"]
    copy = tmp_path / "result.png"
    copy.write_bytes(other.sr.read_bytes())
    assert main(["score", str(copy), "--hr", str(other.hr), "--metrics", "psnr", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]["psnr"]["per_image"]
    assert found == {"result.png": score_pairs([other], [get_metric("psnr")])["metrics"]["psnr"]["mean"]}
    assert main(["score", str(copy), "--hr", str(hr)]) == 2
    assert f"{copy}: a file beside a folder; expected two folders or two files" in capsys.readouterr().err


def test_without_ground_truth_reference_metrics_say_so(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(folders[0]), "--metrics", "psnr", "fid", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"] == {}
    assert result["missing"] == {
        name: f"{METRICS[name].display} compares with a ground truth: give its folder with --hr"
        for name in ("psnr", "fid")
    }


def test_a_metric_that_fails_for_one_image_is_missing_as_a_whole(folders: tuple[Path, Path]) -> None:
    sr, hr = folders
    for folder in (sr, hr):
        Image.new("RGB", (10, 10)).save(folder / "tiny.png")
    result = score_pairs(find_pairs(sr, hr), [METRICS["psnr"], METRICS["ssim"]])
    assert list(result["metrics"]) == ["psnr"]
    assert result["missing"] == {"ssim": "SSIM needs images of at least 11x11 pixels; tiny.png is 10x10"}


def test_limit_takes_the_first_by_name_and_one_image_has_no_interval(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sr, hr = folders
    arguments = ["score", str(sr), "--hr", str(hr), "--metrics", "psnr", "--limit", "1"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 1
    assert list(result["metrics"]["psnr"]["per_image"]) == ["a.png"]
    assert result["metrics"]["psnr"]["ci95"] is None
    assert main(arguments) == 0
    assert "1 image\n" in capsys.readouterr().out
    assert main([*arguments[:-1], "0"]) == 2


def test_unknown_metric_is_an_error_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / "absent"), "--metrics", "pnsr"]) == 2
    assert "Did you mean psnr?" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("device", "message"), [("cuda", "finds no CUDA device"), ("gpu", "no device is called")])
def test_a_device_that_is_not_there_is_an_error(
    device: str, message: str, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sr, hr = folders
    assert main(["score", str(sr), "--hr", str(hr), "--device", device]) == 2
    assert message in capsys.readouterr().err


def test_equal_images_keep_the_json_valid(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    hr = folders[1]
    assert main(["score", str(hr), "--hr", str(hr), "--metrics", "psnr", "ssim", "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["metrics"]["psnr"]["mean"] == pytest.approx(80, abs=1e-4)
    assert result["metrics"]["psnr"]["ci95"] == [result["metrics"]["psnr"]["mean"]] * 2
    assert result["metrics"]["ssim"]["mean"] == pytest.approx(1)


def test_a_metric_of_sets_shows_n_in_place_of_an_interval() -> None:
    result = {"n": 7, "metrics": {"fid": {"mean": 123.456, "ci95": None, "per_image": {}}}, "missing": {}}
    assert "FID ↓   123.46  - (N = 7)" in format_scores(result, get_metric)


def test_folder_error_counts() -> None:
    assert str(FolderError(["x: bad"])) == "nothing was scored: 1 problem\n  x: bad"


def test_a_metric_of_sets_gets_both_sets_by_name(folders: tuple[Path, Path]) -> None:
    def loader(spec: MetricSpec, device: str) -> SetScorer:
        return lambda sr, hr: float(len(sr)) if sr.keys() == hr.keys() and sr != hr else -1.0

    spec = replace(METRICS["fid"], weights=(), loader=loader)
    result = score_pairs(find_pairs(*folders), [spec])
    assert result["metrics"] == {"fid": {"mean": 3.0, "ci95": None, "per_image": {}}}


def psnr(sr: Path, hr: Path) -> float:
    return score_pairs(find_pairs(sr, hr), [get_metric("psnr")])["metrics"]["psnr"]["mean"]


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_photograph_taken_upright_is_scored_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The ground truth is stored on its side or on its head, as cameras do, and the restored image is not."""
    (tmp_path / "hr").mkdir()
    (tmp_path / "sr").mkdir()
    image = Image.fromarray(data.astronaut()[:48, 100:140])
    image.save(tmp_path / "sr" / "a.png")
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    image.transpose(turned).save(tmp_path / "hr" / f"a{suffix}", exif=exif, **settings)
    assert psnr(tmp_path / "sr", tmp_path / "hr") > 45


def test_hidden_and_system_files_are_no_images_and_names_of_both_unicode_forms_fit(folders: tuple[Path, Path]) -> None:
    sr, hr = folders
    (sr / "b.png").rename(sr / "caf\u00e9.png")
    (hr / "b.png").rename(hr / "cafe\u0301.png")
    before = len(find_pairs(sr, hr))
    for folder in folders:
        for name in ("._a.png", "Thumbs.db", ".DS_Store", "@eaDir/a.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"metadata")
    pairs = find_pairs(sr, hr)
    assert [pair.name for pair in pairs] == ["a.png", "c.png", "caf\u00e9.png"]
    assert len(pairs) == before
    Image.new("RGB", (40, 32)).save(sr / "cafe\u0301.png")
    with pytest.raises(FolderError, match="same stem"):
        find_pairs(sr, hr)


def test_another_colour_profile_is_told_and_values_are_compared_as_stored(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = psnr(*folders)
    assert capsys.readouterr().err == ""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)}
    red, green = (slice(at[name] + 4, at[name] + 12) for name in (b"rXYZ", b"gXYZ"))
    profile[red], profile[green] = profile[green], profile[red]
    with Image.open(folders[1] / "a.png") as image:
        image.save(folders[1] / "a.png", icc_profile=bytes(profile))
    assert psnr(*folders) == before
    assert "a.png: in a colour profile other than sRGB; values are compared as stored" in capsys.readouterr().err


def test_an_image_of_a_kind_that_is_not_read_does_not_vanish(folders: tuple[Path, Path]) -> None:
    (folders[0] / "d.cr2").write_bytes(b"II*\0")
    with pytest.raises(FolderError, match=r"d\.cr2: no partner"):
        find_pairs(*folders)
