"""Golden logs as data, and the command that compares this machine with one, on three small images."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.cards.card import cards
from bench.cards.schema import Published
from bench.metrics import METRICS
from bench.records.records import Records
from bench.testsets.manifest import TestSet, names_of
from bench.verify import golden, outputs
from bench.verify.golden import TOLERANCES, golden_names, read_golden
from tsd.errors import UserError

Bench = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", golden_names())
def test_the_shipped_logs_are_whole(name: str) -> None:
    """Reading checks their number of images and that the means are those that the log prints."""
    log = read_golden(name)
    assert log.names() == set(names_of(log.testset) or ())
    assert set(log.metrics) == set(METRICS)
    log.check_fits(log.names())
    with pytest.raises(UserError, match=r"does not fit the test set .*without a figure: none; without an image: "):
        log.check_fits(set(sorted(log.names())[1:]))


def test_every_tolerance_has_a_reason() -> None:
    assert set(TOLERANCES) == set(METRICS)
    assert all(tolerance.reason for tolerance in TOLERANCES.values())


@pytest.mark.parametrize("fault", ["number", "count", "mean"])
def test_a_damaged_log_is_refused(tmp_path: Path, fault: str) -> None:
    for ending in ("toml", "csv"):
        shutil.copy(golden.GOLDEN / f"osediff-realsr.{ending}", tmp_path)
    path = tmp_path / "osediff-realsr.csv"
    lines = path.read_text().splitlines()
    if fault == "count":
        lines.pop()
    else:
        lines[1] = lines[1].replace("25.793726", "twenty" if fault == "number" else "35.793726")
    path.write_text("\n".join(lines) + "\n")
    says = {"number": "expected a name and a number", "count": "expected 100 images", "mean": "the log prints 25.1511"}
    with pytest.raises(UserError, match=says[fault]):
        read_golden("osediff-realsr", tmp_path)


@pytest.fixture
def log(tiny: TestSet, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Published images of a method "mine" for the set `mini`, and a golden log of their PSNR and SSIM."""
    published = tmp_path / "data" / "mini" / "mine"
    published.mkdir(parents=True)
    rows = ["name,psnr,ssim"]
    for image in tiny.images:
        with Image.open(image.lr) as lr:
            lr.resize((80, 64), Image.Resampling.BICUBIC).save(published / f"{image.name}.png")
        assert image.hr is not None
        scores = [METRICS[name].load("cpu")(published / f"{image.name}.png", image.hr) for name in ("psnr", "ssim")]
        rows.append(",".join([image.name, *(f"{score:.6f}" for score in scores)]))
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "mine-mini.csv").write_text("\n".join(rows) + "\n")
    (folder / "mine-mini.toml").write_text(
        'method = "mine"\ntestset = "mini"\nimages = 3\nwhole_set = { fid = 100.0 }\nmeans = {}\n'
        'source = "here"\nlicence = "Apache-2.0"\nwritten = "today"\n'
    )
    monkeypatch.setattr(golden.read_golden, "__defaults__", (folder,))
    monkeypatch.setattr(golden, "GOLDEN", folder)
    monkeypatch.setenv("TSD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder / "mine-mini.csv"


def test_a_right_machine_is_told_so_and_tables_say_it(log: Path, bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert bench("run", "--methods", "bicubic", "--metrics", "psnr", "ssim", "--no-figure", "--out", out)[0] == 0
    status, text, _ = bench("verify", "--attach", out)
    assert status == 0
    verdicts = {line.split()[1]: line.split()[-1] for line in text.splitlines() if line.startswith("mine-mini ")}
    assert verdicts == {"PSNR": "agrees", "SSIM": "agrees", "·": verdicts.get("·")} or verdicts == {
        "PSNR": "agrees", "SSIM": "agrees",
    }  # fmt: skip
    assert "mine-mini · fid: FID needs pt_inception" in text
    assert "`bench fetch fid`" in text
    assert "six decimals" in text
    verification = Records(out).read_verification()
    assert verification is not None
    assert [found.metric for found in verification.metrics] == ["psnr", "ssim"]
    table = bench("table", "--out", out)[1]
    assert f"- Verified on {verification.date} on " in table
    assert "against the log of mine's authors for their images of Mini, 3 images: PSNR (largest difference " in table


def test_a_wrong_value_is_found_and_named(log: Path, bench: Bench, tmp_path: Path) -> None:
    lines = log.read_text().splitlines()
    name, psnr, ssim = lines[2].split(",")
    log.write_text("\n".join([*lines[:2], f"{name},{float(psnr) + 0.001:.6f},{ssim}", *lines[3:]]) + "\n")
    status, text, _ = bench("verify", "--metrics", "psnr", "ssim")
    assert status == 1
    assert "DIFFERS" in text
    assert f"mine-mini · PSNR: furthest on {name}" in text
    result = json.loads(bench("verify", "--metrics", "psnr", "--json")[1])
    assert result["verification"]["metrics"][0]["largest"] == pytest.approx(0.001, abs=1e-5)
    assert bench("verify", "--metrics", "psnr", "--limit", "1")[0] == 0, "the first image is right"


def test_a_log_of_other_images_is_refused(log: Path, bench: Bench) -> None:
    log.write_text(log.read_text().replace("photo1", "photo9"))
    for arguments in ([], ["--limit", "2"]):
        status, _, error = bench("verify", "--metrics", "psnr", *arguments)
        assert status == 2
        assert "does not fit the test set mini" in error


def test_what_is_missing_is_named_with_its_command(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TSD_DATA", str(tmp_path))
    status, text, _ = bench("verify", "osediff-drealsr", "--metrics", "psnr")
    assert status == 2
    assert "`bench fetch drealsr`" in text
    assert "`bench fetch osediff-published`" in text


def test_published_images_beside_ours(
    log: Path, tiny: TestSet, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours are the published ones, but for one image that is 2 levels brighter in one pixel's red."""
    card = replace(cards()["osediff"], name="mine", display="Mine", published=(Published("mini", "here"),))
    monkeypatch.setattr(outputs, "cards", lambda: {"mine": card})
    published = tmp_path / "data" / "mini" / "mine"
    ours = shutil.copytree(published, tmp_path / "ours")
    with Image.open(ours / "photo1.png") as image:
        red, green, blue = image.getpixel((3, 5))
        image.putpixel((3, 5), (red + 2 if red < 254 else red - 2, green, blue))
        image.save(ours / "photo1.png")
    out = tmp_path / "out"
    run = ("run", "--methods", f"mine=folder:{ours}", "--metrics", "psnr", "--no-figure", "--out", out)
    assert bench(*run)[0] == 0
    status, text, _ = bench("verify", "method:mine", "--metrics", "psnr", "--run", out)
    assert status == 0
    assert "nothing printed for it" in text
    luma = 2 * 65.481 / 255
    decibels = 10 * np.log10(255**2 / (luma**2 / (80 * 64) + 1e-8))
    assert f"2 of 3 equal at every pixel; the others {decibels:.2f} dB PSNR-Y from theirs, at most 2 levels" in text
    (out / "images" / "mini" / "mine" / "photo0.png").unlink()
    status, _, error = bench("verify", "method:mine", "--metrics", "psnr", "--run", out)
    assert status == 2
    assert "1 of 3 absent or changed, first photo0" in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-log"], "no golden log is called 'no-such-log'"),
        (["--metrics", "kid"], "no golden log has kid"),
        (["method:osediff", "--attach", "."], "is checked alone"),
        (["--run", "."], "--run belongs to method:NAME"),
        (["--attach", "nowhere"], "no records there"),
        (["method:sinsr"], "no published images of sinsr are known; there are some of bsrgan, osediff"),
    ],
)
def test_bad_input(bench: Bench, arguments: list[str], says: str) -> None:
    status, _, error = bench("verify", *arguments)
    assert status == 2
    assert says in error
