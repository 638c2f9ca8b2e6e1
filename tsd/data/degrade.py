"""Real-ESRGAN's second-order degradation: turns a high-quality image into a small one of plausibly low quality.

Twice blur → resize → noise → JPEG, the second time ending in a resize to the target size and a low-pass, in either
order with JPEG (arXiv 2107.10833, section 3). Two parameter sets go by the name "Real-ESRGAN":

    FULL    Real-ESRGAN's own training file; OSEDiff, SeeSR's pair maker and so TSD-SR's training data.
    LIGHT   StableSR, PiSA-SR; DIV2K-Val of the paper's tables was made with it.

Random numbers are drawn in two parts, both on the CPU, so that an image's degradation depends on its seed alone: first
every *choice* (`draw_choices`), then the noise of each stage from a stream of its own. Pixels are computed in double
precision. This takes a third more time, but rounding differences between processors, numbers of threads and devices
stay so small that they practically never survive the rounding to 8 bits. In single precision they do.

Differences from the original: JPEG is libjpeg's (the drawn quality rounded to a whole number, chroma upsampled
smoothly), where the original imitates it in float arithmetic; every image has choices of its own, where the original
shares resizing and the kind of noise within a batch.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.functional import rgb_to_grayscale

from tsd.data.kernels import BlurConfig, draw_blur, draw_final_sinc, gaussian
from tsd.seeds import generator_for, seed_for

ResizeMode = Literal["area", "bilinear", "bicubic"]
RESIZE_MODES: tuple[ResizeMode, ...] = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class StageConfig:
    """One round of blur, resize, noise, JPEG. Ranges are uniform.

    resize_prob: chances of enlarging (1 to resize_range[1]), shrinking (resize_range[0] to 1), keeping.
    noise_range: σ of Gaussian noise in 8-bit levels. poisson_scale_range: multiples of shot noise.
    gray_noise_prob: chance that all three channels get the same noise. jpeg_range: quality.
    """

    blur_prob: float
    blur: BlurConfig
    resize_prob: tuple[float, float, float]
    resize_range: tuple[float, float]
    gaussian_noise_prob: float
    noise_range: tuple[float, float]
    poisson_scale_range: tuple[float, float]
    gray_noise_prob: float
    jpeg_range: tuple[float, float]


@dataclass(frozen=True)
class DegradationConfig:
    """Two stages and the end. jpeg_last_prob: chance that the second JPEG comes after the final resize and low-pass."""

    name: str
    first: StageConfig
    second: StageConfig
    final_sinc_prob: float = 0.8
    jpeg_last_prob: float = 0.5


FULL = DegradationConfig(
    name="full",
    first=StageConfig(
        blur_prob=1.0,
        blur=BlurConfig(sigma=(0.2, 3.0)),
        resize_prob=(0.2, 0.7, 0.1),
        resize_range=(0.15, 1.5),
        gaussian_noise_prob=0.5,
        noise_range=(1.0, 30.0),
        poisson_scale_range=(0.05, 3.0),
        gray_noise_prob=0.4,
        jpeg_range=(30.0, 95.0),
    ),
    second=StageConfig(
        blur_prob=0.8,
        blur=BlurConfig(sigma=(0.2, 1.5)),
        resize_prob=(0.3, 0.4, 0.3),
        resize_range=(0.3, 1.2),
        gaussian_noise_prob=0.5,
        noise_range=(1.0, 25.0),
        poisson_scale_range=(0.05, 2.5),
        gray_noise_prob=0.4,
        jpeg_range=(30.0, 95.0),
    ),
)
LIGHT = DegradationConfig(
    name="light",
    first=replace(
        FULL.first,
        resize_range=(0.3, 1.5),
        noise_range=(1.0, 15.0),
        poisson_scale_range=(0.05, 2.0),
        jpeg_range=(60.0, 95.0),
    ),
    second=replace(
        FULL.second,
        blur_prob=0.5,
        resize_range=(0.6, 1.2),
        noise_range=(1.0, 12.0),
        poisson_scale_range=(0.05, 1.0),
        jpeg_range=(60.0, 100.0),
    ),
)
DEGRADATIONS: dict[str, DegradationConfig] = {config.name: config for config in (FULL, LIGHT)}


@dataclass(frozen=True, eq=False)
class StageChoices:
    """What one stage does to one image. `kernel` is None where the blur is left out."""

    kernel: np.ndarray | None
    resize: float
    resize_mode: ResizeMode
    noise: Literal["gaussian", "poisson"]
    noise_level: float
    gray_noise: bool
    jpeg_quality: int


@dataclass(frozen=True, eq=False)
class Choices:
    """All random choices for one image, except the noise itself."""

    first: StageChoices
    second: StageChoices
    final_mode: ResizeMode
    final_kernel: np.ndarray | None
    jpeg_last: bool


def draw_choices(config: DegradationConfig, seed: int) -> Choices:
    """The choices that belong to `seed`; they do not depend on the image, its size or its device."""
    rng = np.random.default_rng(seed_for(seed, "choices"))
    return Choices(
        first=_draw_stage(rng, config.first),
        second=_draw_stage(rng, config.second),
        final_mode=_draw_mode(rng),
        final_kernel=draw_final_sinc(rng) if rng.random() < config.final_sinc_prob else None,
        jpeg_last=bool(rng.random() < config.jpeg_last_prob),
    )


@torch.no_grad()
def degrade(hr: Tensor, config: DegradationConfig, seed: int, *, scale: int = 4) -> Tensor:
    """Degrade one image.

    hr: (3,H,W) in [0,1], any float type, on any device; H and W multiples of `scale`.
    Returns (3, H/scale, W/scale), float32, on the same device, in whole 8-bit levels k/255.
    The result depends on the arguments alone: not on batches, order, earlier calls or the number of threads.
    Raises ValueError for another shape, for values outside [0,1] and for NaN.
    """
    _check(hr, scale)
    choices = draw_choices(config, seed)
    height, width = hr.shape[-2] // scale, hr.shape[-1] // scale
    x = hr.double()

    first = choices.first
    x = _blur(x, first.kernel)
    # A factor, not a size: as in the original, the sampling grid keeps the drawn factor where the size is rounded down.
    x = _interpolate(x, first.resize_mode, scale_factor=max(first.resize, 1 / min(x.shape[-2:])))
    x = _add_noise(x, first, generator_for(seed, "noise", 1))
    x = jpeg(x, first.jpeg_quality)

    second = choices.second
    x = _blur(x, second.kernel)
    size = (max(1, int(height * second.resize)), max(1, int(width * second.resize)))
    x = _interpolate(x, second.resize_mode, size=size)
    x = _add_noise(x, second, generator_for(seed, "noise", 2))
    if not choices.jpeg_last:
        x = jpeg(x, second.jpeg_quality)
    x = _interpolate(x, choices.final_mode, size=(height, width))
    x = _blur(x, choices.final_kernel)
    if choices.jpeg_last:
        x = jpeg(x, second.jpeg_quality)
    return (_levels(x) / 255).float()


def usm_sharpen(x: Tensor, *, weight: float = 0.5, size: int = 51, threshold: float = 10.0) -> Tensor:
    """Unsharp masking of a ground truth, as Real-ESRGAN does it: (3,H,W) in [0,1] → the same, float32.

    Adds `weight` times what a Gaussian of `size` pixels removes, only (and softly) around places where that exceeds
    `threshold` 8-bit levels, so that flat areas keep their grain as it is.
    """
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8  # OpenCV's σ if only the kernel's size is given: 8 for 51
    kernel = gaussian(size, sigma, sigma)
    x = x.double()
    residual = x - _blur(x, kernel)
    mask = _blur((residual.abs() * 255 > threshold).double(), kernel)
    sharp = (x + weight * residual).clamp(0, 1)
    return (mask * sharp + (1 - mask) * x).clamp(0, 1).float()  # the FFT's mask may leave [0, 1] by a rounding


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Encodes as JPEG and decodes again, always on the CPU: (3,h,w) in [0,1]; chroma at half resolution."""
    data = cast(Tensor, encode_jpeg(_levels(x).to("cpu", torch.uint8), quality))  # returns a list only for a list
    return cast(Tensor, decode_jpeg(data)).to(x.device, x.dtype) / 255


def _draw_stage(rng: np.random.Generator, config: StageConfig) -> StageChoices:
    kernel = draw_blur(rng, config.blur)
    blurred = rng.random() < config.blur_prob
    direction = rng.choice(("up", "down", "keep"), p=config.resize_prob)
    low, high = config.resize_range
    resize = {"up": rng.uniform(1.0, high), "down": rng.uniform(low, 1.0), "keep": 1.0}[str(direction)]
    mode = _draw_mode(rng)
    is_gaussian = rng.random() < config.gaussian_noise_prob
    return StageChoices(
        kernel=kernel if blurred else None,
        resize=resize,
        resize_mode=mode,
        noise="gaussian" if is_gaussian else "poisson",
        noise_level=rng.uniform(*(config.noise_range if is_gaussian else config.poisson_scale_range)),
        gray_noise=bool(rng.random() < config.gray_noise_prob),
        jpeg_quality=round(rng.uniform(*config.jpeg_range)),
    )


def _draw_mode(rng: np.random.Generator) -> ResizeMode:
    return RESIZE_MODES[int(rng.integers(len(RESIZE_MODES)))]


def _check(hr: Tensor, scale: int) -> None:
    if hr.ndim != 3 or hr.shape[0] != 3:
        raise ValueError(f"expected one RGB image of shape (3, H, W), got {tuple(hr.shape)}")
    height, width = hr.shape[-2:]
    if height < scale or width < scale or height % scale or width % scale:
        raise ValueError(f"height and width must be multiples of the scale {scale}: crop the {height}x{width} image")
    low, high = float(hr.min()), float(hr.max())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ValueError(f"expected values in [0, 1], got {low:g} to {high:g}")


def _blur(x: Tensor, kernel: np.ndarray | None) -> Tensor:
    """Filter every channel with `kernel` (symmetric under point reflection), borders continued by reflection.

    Uses the FFT: never slower than a direct convolution at these sizes, up to ten times faster for the large kernels.
    """
    if kernel is None:
        return x
    size = kernel.shape[0]
    height, width = x.shape[-2:]
    x = _reflect(x, size // 2)
    padded = (_fast_length(x.shape[-2]), _fast_length(x.shape[-1]))
    response = torch.fft.rfft2(torch.from_numpy(kernel).to(x.device, x.dtype), s=padded).conj()
    return torch.fft.irfft2(torch.fft.rfft2(x, s=padded) * response, s=padded)[..., :height, :width]


def _fast_length(n: int) -> int:
    """The next length without prime factors above 5: FFTs of other lengths take several times as long."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def _reflect(x: Tensor, pad: int) -> Tensor:
    """Both sides continued by reflection without repeating the edge, for any `pad`."""
    if pad < min(x.shape[-2:]):
        return F.pad(x[None], (pad, pad, pad, pad), mode="reflect")[0]
    return _reflect_often(_reflect_often(x, -2, pad), -1, pad)


def _reflect_often(x: Tensor, dim: int, pad: int) -> Tensor:
    """Reflects along one dimension that is not longer than the padding, which `F.pad` refuses."""
    n = x.shape[dim]
    if n == 1:
        return x.repeat_interleave(2 * pad + 1, dim)
    period = 2 * (n - 1)
    index = torch.arange(-pad, n + pad, device=x.device) % period
    return x.index_select(dim, torch.minimum(index, period - index))


def _interpolate(
    x: Tensor, mode: ResizeMode, *, size: tuple[int, int] | None = None, scale_factor: float | None = None
) -> Tensor:
    """Resize without antialiasing, as the original does."""
    if scale_factor == 1 or size == tuple(x.shape[-2:]):
        return x
    return F.interpolate(x[None], size=size, scale_factor=scale_factor, mode=mode)[0]


def _add_noise(x: Tensor, choices: StageChoices, generator: torch.Generator) -> Tensor:
    if choices.noise == "gaussian":
        shape = (1 if choices.gray_noise else 3, *x.shape[-2:])
        noise = torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device) * (choices.noise_level / 255)
    else:
        noise = choices.noise_level * _shot_noise(rgb_to_grayscale(x) if choices.gray_noise else x, generator)
    return (x + noise).clamp(0, 1)


def _shot_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson noise of an image whose full scale is the number of levels in use, rounded up to a power of two."""
    levels = _levels(x).cpu()
    used = int(torch.bincount(levels.flatten().long(), minlength=256).count_nonzero())
    photons = 2 ** math.ceil(math.log2(used))
    clean = levels / 255
    return (torch.poisson(clean * photons, generator=generator) / photons - clean).to(x.device)


def _levels(x: Tensor) -> Tensor:
    """Whole 8-bit levels 0..255, still float."""
    return (x * 255).round().clamp(0, 255)
