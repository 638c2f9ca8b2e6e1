"""How fast training data can be made on the fly: images per second per core, at 512 x 512 and FULL degradation.

`nox -s bench_data` runs it on one core. Beside ours stands the sequential reference order of operations as training
scripts write it: single precision, one OpenCV or NumPy call per step of the Real-ESRGAN paper's section 3, drawn from
the same `draw_choices`, so that both do the same work image by image. Speed is printed, never asserted.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tsd.data.crops import encode_image, to_tensor
from tsd.data.degrade import FULL, LIGHT, Choices, DegradationConfig, StageChoices, degrade, draw_choices, usm_sharpen
from tsd.data.hf import image_features, prompt_features, write_dataset_info, write_shard
from tsd.data.pairs import PairDataset
from tsd.data.prepared import PreparedDataset
from tsd.data.prepared_record import SCHEMA

pytestmark = pytest.mark.benchmark(timer=time.process_time)
SIZE, SCALE, IMAGES = 512, 4, 30
CV_MODES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@pytest.fixture(autouse=True)
def _one_core() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(512, 512, 3) uint8: a photograph of scikit-image."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[:SIZE, :SIZE])


@pytest.mark.parametrize("config", [FULL, LIGHT], ids=lambda config: config.name)
def test_ours(benchmark, photo: np.ndarray, config: DegradationConfig):
    hr = to_tensor(photo)

    def run() -> None:
        for seed in range(IMAGES):
            degrade(hr, config, seed, scale=SCALE)

    report(benchmark, run)


@pytest.mark.parametrize("config", [FULL, LIGHT], ids=lambda config: config.name)
def test_reference_order(benchmark, photo: np.ndarray, config: DegradationConfig):
    hr = photo.astype(np.float32) / 255

    def run() -> None:
        for seed in range(IMAGES):
            reference(hr, draw_choices(config, seed), np.random.default_rng(seed))

    report(benchmark, run)


@pytest.mark.parametrize("usm", [False, True], ids=["plain", "usm"])
def test_training_items(benchmark, photo: np.ndarray, usm: bool):
    """Everything a loader's worker does: crop, turn, (sharpen,) degrade, enlarge again."""
    dataset = PairDataset([photo], crop=SIZE, seed=0, length=IMAGES, usm=usm)

    def run() -> None:
        for index in range(IMAGES):
            dataset[index]

    report(benchmark, run)


def test_prepared_items(benchmark, photo: np.ndarray, tmp_path: Path):
    """The same from a prepared folder of SD3-medium's shapes: two images, a latent and a caption's embeddings."""
    settings = {"crop": SIZE, "scale": SCALE, "usm": True, "latent_shape": [32, 64, 64]}
    settings |= {"prompt_shapes": {"prompt_embeds": [333, 4096], "pool_embeds": [2048]}}
    rng = np.random.default_rng(0)
    embeds, pooled, posterior = (
        rng.standard_normal(shape).astype(np.float16) for shape in ((333, 4096), (2048,), (32, 64, 64))
    )
    hr, lr = ({"bytes": encode_image(image), "path": None} for image in (photo, photo[::SCALE, ::SCALE]))
    crop = {"name": "a", "crop": 0, "top": 0, "left": 0, "hr": hr, "lr": lr, "caption": "a", "posterior": posterior}
    prompt = {"caption": "a", "prompt_embeds": embeds, "pool_embeds": pooled}
    columns = image_features(settings["latent_shape"]), prompt_features(settings["prompt_shapes"])
    write_shard(tmp_path / "data-0.arrow", columns[0], (crop | {"caption_id": i} for i in range(IMAGES)))
    write_shard(tmp_path / "prompts" / "data-0.arrow", columns[1], (prompt for _ in range(IMAGES)))
    for folder, features in zip((tmp_path, tmp_path / "prompts"), columns, strict=True):
        write_dataset_info(folder, features, ["data-0.arrow"], "benchmark")
    counts = {"images": IMAGES, "crops": IMAGES, "captions": IMAGES, "skipped": 0}
    record = {"schema": SCHEMA, "settings": settings, "counts": counts, "files": {}}
    (tmp_path / "prepared.json").write_text(json.dumps(record))
    dataset = PreparedDataset(tmp_path, seed=0)

    def run() -> None:
        for index in range(IMAGES):
            dataset[index]

    report(benchmark, run)


def test_sharpening(benchmark, photo: np.ndarray):
    hr = to_tensor(photo)

    def run() -> None:
        for _ in range(IMAGES):
            usm_sharpen(hr)

    report(benchmark, run)


def test_the_reference_does_the_same_work(photo: np.ndarray):
    """Without noise, whose streams differ, and without `area`, which OpenCV and torch define differently.

    Equal to the last bit where the first resize is left out; else the sampling grids differ by a rounded size.
    """
    quiet = {"noise_range": (0.0, 0.0), "poisson_scale_range": (0.0, 0.0)}
    config = replace(FULL, first=replace(FULL.first, **quiet), second=replace(FULL.second, **quiet))
    compared = same = 0
    for seed in range(60):
        choices = draw_choices(config, seed)
        if "area" not in (choices.first.resize_mode, choices.second.resize_mode, choices.final_mode):
            ours = degrade(to_tensor(photo), config, seed, scale=SCALE).permute(1, 2, 0).numpy()
            theirs = reference(photo.astype(np.float32) / 255, choices, np.random.default_rng(seed))
            assert np.square(ours - theirs).mean() < 10**-2.5, seed  # 25 dB
            same += int(np.abs(ours - theirs).max() < 1e-6)
            compared += 1
    assert compared > 10
    assert same > 1


def reference(x: np.ndarray, choices: Choices, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] → (H / 4, W / 4, 3): step after step, whole images in single precision."""
    height, width = x.shape[0] // SCALE, x.shape[1] // SCALE
    first, second = choices.first, choices.second
    x = blur(x, first.kernel)
    x = resize(x, (int(x.shape[0] * first.resize), int(x.shape[1] * first.resize)), first.resize_mode)
    x = compress(add_noise(x, first, rng), first.jpeg_quality)
    x = blur(x, second.kernel)
    x = resize(x, (int(height * second.resize), int(width * second.resize)), second.resize_mode)
    x = add_noise(x, second, rng)
    if choices.jpeg_last:
        x = blur(resize(x, (height, width), choices.final_mode), choices.final_kernel)
        return compress(x, second.jpeg_quality)
    x = compress(x, second.jpeg_quality)
    x = blur(resize(x, (height, width), choices.final_mode), choices.final_kernel)
    return np.rint(x.clip(0, 1) * 255) / 255


def blur(x: np.ndarray, kernel: np.ndarray | None) -> np.ndarray:
    return x if kernel is None else cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize(x: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    return cv2.resize(x, size[::-1], interpolation=CV_MODES[mode])


def add_noise(x: np.ndarray, choices: StageChoices, rng: np.random.Generator) -> np.ndarray:
    shape = (*x.shape[:2], 1 if choices.gray_noise else 3)
    if choices.noise == "gaussian":
        noise = rng.standard_normal(shape, np.float32) * (choices.noise_level / 255)
    else:
        clean = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None] if choices.gray_noise else x
        levels = np.rint(clean.clip(0, 1) * 255) / 255
        photons = 2 ** np.ceil(np.log2(len(np.unique(levels))))
        noise = choices.noise_level * (rng.poisson(levels * photons) / photons - levels)
    return (x + noise).clip(0, 1).astype(np.float32)


def compress(x: np.ndarray, quality: int) -> np.ndarray:
    levels = np.rint(x.clip(0, 1) * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255


def report(benchmark: Any, run: Callable[[], None]) -> None:
    """Three rounds after one to warm up; the median counts. Processor time: it does not see what else runs here."""
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    rate = IMAGES / benchmark.stats.stats.median
    benchmark.extra_info["images_per_second"] = rate
    print(f"\n{benchmark.name}: {rate:.1f} images per second per core")
