"""Small pictures for the tests of reading and of writing."""

import numpy as np
from PIL import ImageCms

from tsd.images import Picture

HEIGHT, WIDTH = 12, 17
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*channels: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, *channels)).astype(dtype)


def smooth(*channels: int) -> np.ndarray:
    """Something a lossy format keeps."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    layers = [60 + 8 * x, 200 - 9 * y, 40 + 5 * x + 6 * y, 255 - 6 * x][: channels[0] if channels else 1]
    array = np.stack(layers, axis=-1).astype(np.uint8)
    return array if channels else array[..., 0]


def eight(picture: Picture) -> np.ndarray:
    return np.rint(picture.color * 255).astype(np.uint8)
