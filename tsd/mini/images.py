"""The images that the mini model learns from: the Kodak photographs of a manifest, and images drawn from a seed.

Twenty-four photographs are few, and they contain little text and few hard edges. The drawn images add occlusion
edges of every orientation (dead leaves: Lee, Mumford and Huang, 2001), lettering and line work, and textures with
the 1/f spectrum of natural images. Everything here is a pure function of its seed.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from tsd.errors import UserError
from tsd.files import sha256_file
from tsd.seeds import generator_for, seed_for

VALIDATION_NAMES = ("kodim05", "kodim13", "kodim15", "kodim23")
"""Held out of all training; every choice between settings was made on these four, never on the mini test set."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz 0123456789 .,;:!?&%+-=()/"
_SUPERSAMPLING = 2


def load_photos(manifest: Path, data_root: Path | None = None) -> dict[str, Tensor]:
    """Loads the photographs of a manifest, by stem: uint8 tensors (3, H, W), each verified by its sha256.

    `manifest` is a JSON file with `images`: a list of `{"name": "kodim01.png", "sha256": ...}`. The files are searched
    in `data_root` and in `data_root/kodak`; without `data_root`, in `$TSD_DATA`.

    Raises:
        UserError: names every file that is missing or differs.
    """
    root = Path(data_root or os.environ.get("TSD_DATA", ""))
    entries = json.loads(manifest.read_text())["images"]
    photos: dict[str, Tensor] = {}
    faults: list[str] = []
    for entry in entries:
        candidates = [root / entry["name"], root / "kodak" / entry["name"]]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            faults.append(f"{entry['name']}: not found")
        elif sha256_file(path) != entry["sha256"]:
            faults.append(f"{path}: sha256 differs from the manifest's")
        else:
            with Image.open(path) as image:
                photos[path.stem] = pil_to_tensor(image.convert("RGB"))
    if faults:
        listed = "\n  ".join(faults)
        raise UserError(
            f"{len(faults)} of {len(entries)} photographs of {manifest} cannot be used from '{root}':\n  {listed}\n"
            "Put the files there (the manifest names their source), or pass --data-root, or set TSD_DATA."
        )
    return photos


def split_photos(photos: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(training, validation): the photographs of `VALIDATION_NAMES` are held out."""
    training = {name: photo for name, photo in photos.items() if name not in VALIDATION_NAMES}
    validation = {name: photo for name, photo in photos.items() if name in VALIDATION_NAMES}
    return training, validation


def _colour(rng: np.random.Generator, base: np.ndarray | None = None, spread: float = 90.0) -> np.ndarray:
    """An RGB colour, float (3,) in 0..255: mostly brightness, less often strong hue, as in photographs."""
    if base is None:
        return np.clip(rng.uniform(10, 245) + rng.normal(0, 35, 3), 0, 255)
    return np.clip(base + rng.normal(0, spread) + rng.normal(0, spread / 3, 3), 0, 255)


def _pink_noise(rng: np.random.Generator, size: int, exponent: float) -> np.ndarray:
    """Noise with amplitude spectrum f^-exponent, float (size, size), mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) * frequency**-exponent
    noise = np.fft.irfft2(spectrum, s=(size, size))
    return noise / noise.std()


def _shape(rng: np.random.Generator, centre: np.ndarray, radius: float) -> list[tuple[float, float]]:
    """A random ellipse, box, triangle or star as a polygon."""
    corners = int(rng.choice([3, 4, 5, 8, 40, 40]))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 2 * np.pi)
    radii = radius * (1.0 if corners > 8 else rng.uniform(0.5, 1.0, corners))
    turn, squeeze = rng.uniform(0, np.pi), rng.uniform(0.25, 1.0)
    x, y = radii * np.cos(angles), radii * np.sin(angles) * squeeze
    cos, sin = np.cos(turn), np.sin(turn)
    return list(zip(centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y, strict=True))


def _draw_leaves(rng: np.random.Generator, canvas: Image.Image) -> None:
    """Draws opaque shapes with radii from a power law, one over the other."""
    draw, size = ImageDraw.Draw(canvas), canvas.width
    base = _colour(rng)
    smallest, largest = size / 60, size / 3
    uniform = rng.uniform(size=int(rng.integers(150, 400)))
    radii = np.sort((smallest**-2 + uniform * (largest**-2 - smallest**-2)) ** -0.5)[::-1]
    for radius in radii:
        centre = rng.uniform(-0.1 * size, 1.1 * size, 2)
        fill = tuple(_colour(rng, base if rng.random() < 0.7 else None).astype(int).tolist())
        draw.polygon(_shape(rng, centre, radius), fill=fill)


def _draw_text(rng: np.random.Generator, canvas: Image.Image) -> None:
    """Draws straight lines and lines of text of several sizes and slants on a plain ground."""
    draw, size = ImageDraw.Draw(canvas), canvas.width
    for _ in range(int(rng.integers(4, 9))):
        ink = tuple(_colour(rng).astype(int).tolist())
        start, end = rng.uniform(0, size, 2), rng.uniform(0, size, 2)
        draw.line([*start, *end], fill=ink, width=int(rng.integers(1, 12)))
    for _ in range(int(rng.integers(5, 12))):
        letters = "".join(rng.choice(list(_LETTERS), size=int(rng.integers(4, 24))))
        font = ImageFont.load_default(size=float(rng.integers(size // 36, size // 6)))
        box = font.getbbox(letters)
        line = Image.new("L", (max(int(box[2]) + 8, 1), max(int(box[3]) + 8, 1)))
        ImageDraw.Draw(line).text((4, 4), letters, fill=255, font=font)
        slant = rng.normal(0, 12) if rng.random() < 0.6 else rng.uniform(0, 360)
        line = line.rotate(slant, Image.Resampling.BICUBIC, expand=True)
        ink = tuple(_colour(rng).astype(int).tolist())
        where = rng.uniform(-0.2 * size, 0.8 * size, 2).astype(int).tolist()
        canvas.paste(Image.new("RGB", line.size, ink), (where[0], where[1]), line)


def _gratings(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes, checks and rings of changing period between two colours, float (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size - rng.uniform(0, 1, (2, 1, 1))
    turn = rng.uniform(0, 2 * np.pi)
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    count = rng.uniform(4, 40)
    wave = [np.sin(2 * np.pi * count * (u + 0.4 * u * u)), np.sin(2 * np.pi * count * np.hypot(u, v))]
    wave.append(np.sin(2 * np.pi * count * u) * np.sin(2 * np.pi * count * v))
    mix = wave[int(rng.integers(3))] * rng.choice([1.0, 6.0])
    mix = np.clip(0.5 + 0.5 * mix, 0, 1)[..., None]
    return mix * _colour(rng) + (1 - mix) * _colour(rng)


def procedural_image(seed: int, index: int, size: int = 256) -> Tensor:
    """Drawn image number `index` of the series `seed`: uint8 (3, size, size).

    Two of every four images are dead leaves, one is text and one a grating; all have shading and 1/f texture.
    """
    rng = np.random.default_rng(seed_for(seed, "procedural", index))
    kind = index % 4
    canvas = Image.new("RGB", (size * _SUPERSAMPLING, size * _SUPERSAMPLING), tuple(_colour(rng).astype(int).tolist()))
    if kind == 3:
        pixels = _gratings(rng, size)
    else:
        (_draw_text if kind == 2 else _draw_leaves)(rng, canvas)
        pixels = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float64)
    texture = _pink_noise(rng, size, exponent=rng.uniform(0.6, 1.4)) * rng.uniform(0, 14)
    shading = 1 + 0.2 * rng.uniform() * _pink_noise(rng, size, exponent=2.0)
    pixels = pixels * shading[..., None] + texture[..., None]
    return torch.from_numpy(np.clip(np.round(pixels), 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def random_crops(
    photos: Sequence[Tensor],
    drawn: Sequence[Tensor],
    *,
    size: int,
    batch: int,
    drawn_share: float,
    seed: tuple[int | str, ...],
) -> Tensor:
    """A batch of square crops, flipped and turned at random: float (batch, 3, size, size) in [-1, 1].

    A share `drawn_share` of the crops comes from `drawn`, the others from `photos`. `seed` identifies the draw (for
    example `(seed, "vae", step)`): the same `seed` gives the same crops, whatever was drawn before.
    """
    generator = generator_for(*seed)

    def below(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    crops = []
    for _ in range(batch):
        pool = drawn if float(torch.rand((), generator=generator)) < drawn_share else photos
        image = pool[below(len(pool))]
        top, left = below(image.shape[1] - size + 1), below(image.shape[2] - size + 1)
        crop = torch.rot90(image[:, top : top + size, left : left + size], below(4), dims=(1, 2))
        crops.append(crop.flip(2) if below(2) else crop)
    return torch.stack(crops).float().div_(127.5).sub_(1)


def validation_crops(photos: dict[str, Tensor], size: int = 256) -> Tensor:
    """Two fixed crops of every validation photograph: float (2·photos, 3, size, size) in [-1, 1]."""
    crops = []
    for photo in photos.values():
        rest_y, rest_x = photo.shape[1] - size, photo.shape[2] - size
        for quarters in (1, 3):
            top, left = rest_y * quarters // 4, rest_x * quarters // 4
            crops.append(photo[:, top : top + size, left : left + size])
    return torch.stack(crops).float().div_(127.5).sub_(1)
