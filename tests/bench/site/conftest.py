"""A run of two methods on three images, made through the records' own classes, with names as hostile as they get."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.records.records import Records
from bench.records.schema import ImageRow, Plan, PlanMethod, PlanMetric, PlanSet, Restoration, ScoreRow
from bench.site.build import SiteRequest, build
from bench.site.timings import Timing, Timings
from bench.testsets import manifest

HOSTILE = ("__proto__", "<img src=x onerror=alert(1)>", "\"'`&amp; Ünï∕cödé \u2028")
"""Names of images, which are whatever their files were called."""
MEAN = "</script><script>window.hacked = 1</script>"
"""Ends the name of a method in tables."""
SIZE = (96, 64)
PSNR = PlanMetric("psnr", "PSNR", "image", True, True, 2, "psnr on luma", [])
LPIPS = PlanMetric("lpips", "LPIPS", "image", True, False, 4, "lpips alex", [])
METHODS = ("bicubic", "my-net")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Noise of few colours: every pixel differs from its neighbours."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write_testset(root: Path, names: tuple[str, ...]) -> None:
    """The test set `mini` with these images, where `bench.testsets` finds it."""
    entries = []
    for index, name in enumerate(names):
        entry = {"name": f"{name}.png"}
        for side, size in (("lr", (SIZE[0] // 4, SIZE[1] // 4)), ("hr", SIZE)):
            data = png(picture(100 + index, size))
            path = root / "mini" / f"test_{side.upper()}" / entry["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            entry[f"{side}_sha256"] = hashlib.sha256(data).hexdigest()
        entries.append(entry)
    content = {
        "schema": 1,
        "name": "mini",
        "display": "Mini",
        "count": len(names),
        "scale": 4,
        "source": "tests",
        "licence": "Apache-2.0",
        "folders": [],
        "images": entries,
    }
    (root / "mini" / "manifest.json").write_text(json.dumps(content))


def write_run(
    out: Path, names: tuple[str, ...], datasets: Path, methods: tuple[str, ...] = METHODS, speed: float = 1.0
) -> Path:
    """Images and records of `methods`. Method number m has PSNR 20 + 2 m + number of the image, and LPIPS .4 - .1 m.

    The picture of method m differs from the ground truth by 8 (m + 1) levels, in a window at (32, 16) by much more.
    """
    records = Records(out)
    digests = {
        side: {
            path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (datasets / "mini" / folder).iterdir()
        }
        for side, folder in (("lr", "test_LR"), ("hr", "test_HR"))
    }
    for number, method in enumerate(methods):
        handle = records.of("mini", method)
        provenance = {"weights": {"net<b>.pth": "ab" * 32}, "settings": {"note": MEAN}, "remarks": ["a <remark>"]}
        environment = {"platform": "Linux", "versions": {"torch": "2.6"}, "accelerator": None, "processor": "CPU"}
        environment |= {"threads": 1, "dtype": "fp32"}
        handle.write_run(Restoration(method, "mini", "0" * 64, 42, provenance, {"key": environment}))
        for index, name in enumerate(sorted(names)):
            truth = np.asarray(Image.open(datasets / "mini" / "test_HR" / f"{name}.png")).astype(int)
            pixels = truth + 8 * (number + 1)
            pixels[16:32, 32:48] += 60
            data = png(pixels.clip(0, 255).astype(np.uint8))
            handle.image_path(name).parent.mkdir(parents=True, exist_ok=True)
            handle.image_path(name).write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            lr, hr = digests["lr"][name], digests["hr"][name]
            seconds = 0.01 * 10**number / speed
            handle.add_image(ImageRow(name, 1, lr, hr, sha256, *SIZE, seconds, "key", None))
            gain = 2 * number if index else -1 * number  # better on all images but the first
            for metric, value in ((PSNR, 20.0 + gain + index), (LPIPS, 0.4 - 0.1 * number + 0.01 * index)):
                handle.add_score(ScoreRow(metric.name, name, value, sha256, hr, 1, metric.protocol, {}, {}, None))
    displays = {"bicubic": "Bicubic", "my-net": f"My net {MEAN}"}
    records.write_plan(
        Plan(
            "table1",
            "Table 1: one-step <methods>",
            "mini",
            42,
            "table1.csv",
            "bicubic",
            [PlanSet("mini", "Mini", sorted(names), len(names))],
            [PlanMethod(name, displays.get(name, name), 1, {"mini": []}) for name in methods],
            [PSNR, LPIPS, replace(LPIPS, name="dists", display="DISTS", missing=["DISTS needs <b>weights</b>"])],
        )
    )
    return out


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `folder/index.html` and `single.html`, two sites of a run whose names are `HOSTILE`.

    `several/index.html` has a second run of another seed beside it, with FLIP maps, originals and timings.
    """
    root = tmp_path_factory.mktemp("site")
    write_testset(root / "datasets", HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "DATASETS", root / "datasets")
        run = write_run(root / "run & co", HOSTILE, root / "datasets")
        build(SiteRequest((run,), root / "folder"))
        build(SiteRequest((run,), root / "single.html", single_file=True))
        other = write_run(root / "other <run>", HOSTILE, root / "datasets", speed=2.0)
        handle = Records(other).of("mini", "my-net")
        handle.write_run(replace(handle.run(), seed=7))
        timings = {name: Timing(0.1 * 3**at, 0.05 * 3**at, 0.2 * 3**at, {}) for at, name in enumerate(METHODS)}
        request = SiteRequest((run, other), root / "several", flip=True, originals="copy")
        build(replace(request, timings=(Timings("<timed>", 256, "A CPU", timings),)))
    return root


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of plain names, which a test may damage."""
    write_testset(tmp_path / "datasets", ("one", "two", "three"))
    monkeypatch.setattr(manifest, "DATASETS", tmp_path / "datasets")
    return write_run(tmp_path / "run", ("one", "two", "three"), tmp_path / "datasets")
