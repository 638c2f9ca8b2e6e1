"""A test set of three small images, verified through its own manifest like any other, and the command line on it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import cli
from bench.testsets import manifest
from bench.testsets.manifest import TestSet, load_testset


def write_testset(root: Path, name: str = "mini", count: int = 3, names: Sequence[str] = ()) -> Path:
    """`root/<name>` with a manifest and `count` pairs: HR 80x64, LR 20x16 by integer block means.

    They are named photo0, photo1, … unless `names` has others.

    Made with integer arithmetic alone, so that the files' pixels are the same on every machine.
    """
    folder = root / name
    entries = []
    for index in range(count):
        y, x = np.mgrid[0:64, 0:80]
        noise = np.random.default_rng(index).integers(0, 40, (64, 80, 3))
        waves = np.stack([(x * (3 + index) + y * 2) % 160, (x * y // 7) % 160, ((x // 9 + y // 7) % 2) * 150], axis=-1)
        hr = (waves + noise).astype(np.uint8)
        lr = hr.reshape(16, 4, 20, 4, 3).astype(np.int64).sum(axis=(1, 3)) // 16
        entry = {"name": f"{names[index] if names else f'photo{index}'}.png"}
        for side, pixels in (("lr", lr.astype(np.uint8)), ("hr", hr)):
            path = folder / f"test_{side.upper()}" / entry["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            entry[f"{side}_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(entry)
    manifest = {
        "schema": 1,
        "name": name,
        "display": name.capitalize(),
        "count": count,
        "scale": 4,
        "lr_size": [20, 16],
        "hr_size": [80, 64],
        "source": "tests/bench/conftest.py",
        "licence": "Apache-2.0",
        "folders": [],
        "images": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


SIZES = ((50, 27), (49, 49), (61, 30))


def write_unreferenced(datasets: Path, data: Path) -> Path:
    """The manifest of a RealSRSet of three noisy images of the `SIZES`, and the images in `data`/RealSRSet.

    Enlarged, they are large enough for NIQE.
    """
    entries = []
    for index, (width, height) in enumerate(SIZES):
        y, x = np.mgrid[0:height, 0:width]
        noise = np.random.default_rng(index).integers(0, 120, (height, width, 3))
        pixels = (noise + ((x * (2 + index) + y * 3) % 130)[..., None]).astype(np.uint8)
        path = data / "RealSRSet" / f"scene{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"name": path.name, "lr_sha256": digest, "size": [width, height]})
    manifest = {
        "schema": 1,
        "name": "realsrset",
        "display": "RealSRSet",
        "reference": False,
        "count": len(SIZES),
        "scale": 4,
        "source": "tests/bench/conftest.py",
        "licence": "Apache-2.0",
        "bytes": 1000,
        "folders": ["realsrset", "RealSRSet"],
        "images": entries,
    }
    path = datasets / "realsrset" / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest))
    return data / "RealSRSet"


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A datasets folder with the tiny set under the name `mini`, in place of the repository's."""
    root = tmp_path / "datasets"
    write_testset(root)
    monkeypatch.setattr(manifest, "DATASETS", root)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TSD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture(scope="module")
def datasets_of_five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datasets folder for processes of their own: the tiny set with five images."""
    root = tmp_path_factory.mktemp("datasets")
    write_testset(root, count=5)
    return root


@pytest.fixture
def tiny(datasets: Path) -> TestSet:
    return load_testset("mini")


@pytest.fixture
def unreferenced(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test set without ground truth under $TSD_DATA."""
    monkeypatch.setenv("TSD_DATA", str(tmp_path / "data"))
    return write_unreferenced(datasets, tmp_path / "data")


@pytest.fixture(scope="session")
def testset_writer() -> Callable[..., Path]:
    """`write_testset`, for names of images of one's own."""
    return write_testset


@pytest.fixture
def bench(datasets: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process; returns exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
