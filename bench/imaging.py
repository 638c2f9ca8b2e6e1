"""One image through a method: decode, restore under the clock, check, round, encode.

The only place where pixels become 8-bit: clamped to [0, 1] and rounded once, half to even, for every method alike.
"""

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.methods.base import Method
from bench.options import SCALE
from bench.seeds import image_seed

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from bench.testsets import TestImage

OVERSHOOT = 0.5
"""How far outside [0, 1] an output may reach before it is taken for one of another range (-1..1, 0..255)."""


Maker = Callable[["TestImage", int | None], tuple[bytes, tuple[int, int], float | None]]
"""(image, seed) -> PNG bytes, (width, height), seconds or None where nothing was run."""


def read_image(path: Path) -> "Tensor":
    """An 8-bit RGB image file as float32 (1, 3, h, w) in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def checked_pixels(sr: "Tensor", height: int, width: int) -> "np.ndarray":
    """A method's output for an input of height x width as 8-bit pixels (4 height, 4 width, 3).

    Checked, clamped to [0, 1] and rounded, half to even.

    Raises:
        ValueError: the output is not a finite (1, 3, 4h, 4w) image in [0, 1].
    """
    import torch

    expected = (1, 3, SCALE * height, SCALE * width)
    if not isinstance(sr, torch.Tensor) or tuple(sr.shape) != expected:
        found = tuple(sr.shape) if isinstance(sr, torch.Tensor) else type(sr).__name__
        raise ValueError(f"restore returned {found}, expected a tensor of shape {expected}")
    if not sr.is_floating_point():
        raise ValueError(f"restore returned {sr.dtype}, expected floating point in [0, 1]")
    sr = sr.detach().float().cpu()
    broken = int((~torch.isfinite(sr)).sum())
    if broken:
        raise ValueError(f"restore returned {broken} values that are NaN or infinite")
    low, high = float(sr.min()), float(sr.max())
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"restore returned values from {low:.3g} to {high:.3g}, expected [0, 1]")
    return (sr[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def timer(method: Method, device: "torch.device") -> Maker:
    """Decodes, restores under the clock, checks, encodes."""
    import torch

    def make(image: "TestImage", seed: int | None) -> tuple[bytes, tuple[int, int], float | None]:
        lr = read_image(image.lr)
        height, width = lr.shape[-2:]
        with torch.no_grad():
            _synchronize(device)
            start = time.perf_counter()
            sr = method.restore(lr, seed or 0)
            _synchronize(device)
            seconds = time.perf_counter() - start
        pixels = checked_pixels(sr, height, width)
        return _png(pixels), (pixels.shape[1], pixels.shape[0]), seconds

    return make


def warm_up(make: Maker, image: "TestImage", seed: int) -> None:
    """One restoration that is not counted: allocators, kernels and caches settle. It may fail: the counted one of
    the same image fails in the same way, and its row says why."""
    with contextlib.suppress(Exception):
        make(image, image_seed(seed, image.name))


def copier(outputs: dict[str, Path]) -> Maker:
    """Takes over finished images: an 8-bit RGB PNG byte for byte, another 8-bit format as PNG of the same pixels."""
    import numpy as np
    from PIL import Image

    def make(image: "TestImage", seed: int | None) -> tuple[bytes, tuple[int, int], float | None]:
        path = outputs[image.name]
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as sr, Image.open(image.lr) as lr:
            expected = (lr.width * SCALE, lr.height * SCALE)
            if sr.mode not in ("RGB", "L", "P") or sr.size != expected:
                raise ValueError(
                    f"{path.name} is {sr.mode} {sr.width}x{sr.height}, expected 8-bit RGB of "
                    f"{expected[0]}x{expected[1]}"
                )
            pixels = np.asarray(sr.convert("RGB"))
            unchanged = sr.format == "PNG" and sr.mode == "RGB"
        return data if unchanged else _png(pixels), expected, None

    return make


def _png(pixels: "np.ndarray") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _synchronize(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
