"""How fast training data can be made on the fly: images per second per core, at 512 x 512 and FULL degradation.

`nox -s bench_data` runs it on one core. Beside ours stands the sequential reference order of operations as training
scripts write it: single precision, one OpenCV or NumPy call per step of the Real-ESRGAN paper's section 3, drawn from
the same `draw_choices`, so that both do the same work image by image. Speed is printed, never asserted.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tsd.data.crops import decode, encode_image, to_tensor
from tsd.data.degrade import FULL, LIGHT, Choices, DegradationConfig, StageChoices, degrade, draw_choices, usm_sharpen
from tsd.data.pairs import PairDataset, training_item

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


def test_prepared_items(benchmark, photo: np.ndarray):
    """The same from a prepared folder: what is left is decoding two files and enlarging one of them."""
    files = [{"bytes": encode_image(image), "path": None} for image in (photo[::SCALE, ::SCALE], photo)]

    def run() -> None:
        for index in range(IMAGES):
            lr, hr = (to_tensor(decode(file)) for file in files)
            training_item(lr, hr, index)

    report(benchmark, run)


def test_sharpening(benchmark, photo: np.ndarray):
    hr = to_tensor(photo)

    def run() -> None:
        for _ in range(IMAGES):
            usm_sharpen(hr)

    report(benchmark, run)


def test_the_reference_does_the_same_work(photo: np.ndarray):
    """Without noise, whose streams differ, and without `area`, which OpenCV and torch define differently."""
    quiet = {"noise_range": (0.0, 0.0), "poisson_scale_range": (0.0, 0.0)}
    config = replace(FULL, first=replace(FULL.first, **quiet), second=replace(FULL.second, **quiet))
    compared = 0
    for seed in range(60):
        choices = draw_choices(config, seed)
        if "area" not in (choices.first.resize_mode, choices.second.resize_mode, choices.final_mode):
            ours = degrade(to_tensor(photo), config, seed, scale=SCALE).permute(1, 2, 0).numpy()
            theirs = reference(photo.astype(np.float32) / 255, choices, np.random.default_rng(seed))
            assert -10 * np.log10(np.square(ours - theirs).mean()) > 30, seed
            compared += 1
    assert compared > 10


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
