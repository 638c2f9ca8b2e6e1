"""What a script is called with: arguments, variables, inputs; and its seeds."""

import ast
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.methods.external import seed_module
from bench.methods.external.command import arguments, values, variables, visible_gpu, write_inputs
from bench.methods.resize import Bicubic
from bench.pixels import checked_pixels, read_image
from tsd.errors import UserError

SEED_MODULE = Path(str(seed_module.__file__)).with_name("bench_seed.py")


@pytest.fixture
def filled() -> dict[str, str]:
    return values(lr=Path("/w/lr"), sr=Path("/w/sr"), weights=Path("/store"), seed=2**32 + 7)


def test_placeholders_and_nothing_else(filled, make_card) -> None:
    command = make_card(mode="{not a placeholder").command
    assert arguments(command, filled) == [
        *("run.py", "-i", "/w/lr", "-o", "/w/sr", "--ckpt", "/store/tiny.bin", "--seed", "7"),
        *("--mode", "{not a placeholder"),
    ]


def test_variables_are_the_harness_s_without_its_python_and_its_launcher(filled, monkeypatch, make_card) -> None:
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(key, "1")
    for key in ("PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "SLURM_PROCID"):
        monkeypatch.setenv(key, "x")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("https_proxy", "kept")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    command = make_card(command='variables = {PYTHONPATH = ".", HF_HUB_OFFLINE = "0", CKPT = "{weights}/x"}').command
    found = variables(
        command,
        filled,
        python=Path("/env/bin/python"),
        weights=Path("/store"),
        seeds=Path("/w/seeds.json"),
        times=Path("/w/times.jsonl"),
        device="cuda:1",
    )
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "PYTHONHOME", "PYTHONSAFEPATH"} & set(found)
    assert not {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "CONDA_PREFIX", "SLURM_PROCID"} & set(found)
    assert found["PYTHONPATH"].split(os.pathsep) == [str(SEED_MODULE.parent), "."]
    assert found["PATH"].startswith(f"/env/bin{os.pathsep}")
    assert found["VIRTUAL_ENV"] == "/env"
    assert found["https_proxy"] == "kept"
    assert found["CUDA_VISIBLE_DEVICES"] == "6"
    assert (found["HF_HUB_OFFLINE"], found["TRANSFORMERS_OFFLINE"]) == ("0", "1")
    assert found["CKPT"] == "/store/x"
    assert found["TSD_BENCH_WEIGHTS"] == "/store"
    assert found["TSD_BENCH_SEEDS"] == "/w/seeds.json"
    assert found["TSD_BENCH_TIMES"] == "/w/times.jsonl"


@pytest.mark.parametrize(
    ("device", "outer", "expected"),
    [
        ("cpu", None, ""),
        ("cpu", "0,1", ""),
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda", "5", "5"),
        ("cuda:1", "4, 6", "6"),
        ("cuda:1", "GPU-aaaa,GPU-bbbb", "GPU-bbbb"),
    ],
)
def test_the_one_gpu(device: str, outer: str | None, expected: str) -> None:
    assert visible_gpu(device, outer) == expected


def test_a_gpu_that_is_not_visible() -> None:
    with pytest.raises(UserError, match="the device is cuda:1, but CUDA_VISIBLE_DEVICES=4 shows 1 GPUs"):
        visible_gpu("cuda:1", "4")


def test_inputs_are_8_bit_rgb_pngs(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    images = {path.stem: path for path in tmp_path.iterdir()}
    write_inputs(images, tmp_path / "lr", "")
    assert (tmp_path / "lr/a.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    for name, path in images.items():
        with Image.open(path) as before, Image.open(tmp_path / "lr" / f"{name}.png") as after:
            assert (after.format, after.mode) == ("PNG", "RGB")
            assert np.array_equal(np.asarray(before.convert("RGB")), np.asarray(after))


def test_enlarged_inputs_are_those_of_the_row_bicubic(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_inputs({"a": tmp_path / "a.png"}, tmp_path / "lr", "bicubic")
    lr = read_image(tmp_path / "a.png")
    with Image.open(tmp_path / "lr/a.png") as found:
        assert np.array_equal(np.asarray(found), checked_pixels(Bicubic().restore(lr, 0), 16, 20))


def test_the_seed_module_is_python_3_8() -> None:
    ast.parse(SEED_MODULE.read_text(), feature_version=(3, 8))
    names = {node.module for node in ast.walk(ast.parse(SEED_MODULE.read_text())) if isinstance(node, ast.ImportFrom)}
    assert names == set()


SCRIPT = """
import json, random, sys
import bench_seed
drawn = []
for image in sys.argv[1:]:
    seed = bench_seed.seed(image)
    row = [seed, random.random()]
    if "numpy" in sys.modules:
        import numpy, torch
        row += [float(numpy.random.rand()), float(torch.rand(())), torch.Generator().manual_seed(seed).initial_seed()]
    drawn.append(row)
print(json.dumps(drawn))
"""


def draw(tmp_path: Path, *images: str, isolated: bool = False) -> list[list[float]]:
    """What a script draws for each image; isolated: by an interpreter without numpy and torch."""
    seeds = tmp_path / "seeds.json"
    seeds.write_text(json.dumps({"a": 2**40 + 3, "b.v2": 5}))
    env = {"TSD_BENCH_SEEDS": str(seeds), "PYTHONPATH": str(SEED_MODULE.parent)}
    argv = [sys.executable, *(["-S"] if isolated else []), "-c", SCRIPT, *images]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_seed_module_seeds_every_generator_by_image(tmp_path: Path) -> None:
    first, second = draw(tmp_path, "/lr/a.png", "b.v2.png")
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    assert first == [3, random.random(), np.random.rand(), float(torch.rand(())), 3]
    assert draw(tmp_path, "b.v2", "a") == [second, first]
    assert draw(tmp_path, "a.jpg", isolated=True) == [first[:2]]


def test_an_image_without_seed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"KeyError: .*no seed for the image 'c\.png'"):
        draw(tmp_path, "lr/c.png")
    env = {"PYTHONPATH": str(SEED_MODULE.parent)}
    code = "import bench_seed; bench_seed.seed('a')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "works under the harness only" in done.stderr
