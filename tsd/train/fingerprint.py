"""Fingerprints of models, LoRA folders and data, which tell whether a checkpoint was made with them.

They are compared on resumption, before anything heavy is loaded, so they must be cheap for a model of many gigabytes:
small files are hashed completely, large ones by their size and sixteen evenly spaced samples, which include the
safetensors header. Retraining changes weights everywhere, so it changes every sample. Absolute paths are not hashed: a
run may be moved.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from tsd.files import as_bytes

SAMPLES = 16
SAMPLE_BYTES = 2**16
MIDDLE_BYTES = 2**12


def of_files(files: Iterable[tuple[str, Path]]) -> str:
    """A short hash over files, given as pairs of the name to hash and the path."""
    digest = hashlib.blake2b(digest_size=8)
    for name, path in sorted(files):
        size = path.stat().st_size
        digest.update(as_bytes(f"{name}\x1f{size}\x1f"))
        with path.open("rb") as file:
            if size <= SAMPLES * SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for number in range(SAMPLES):
                file.seek(number * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def of_folder(folder: Path, parts: Sequence[str] = ("",)) -> str:
    """A short hash over the `.safetensors` and `.json` files below `folder`, or below some of its sub-folders."""
    files = {
        path
        for part in parts
        for suffix in ("*.safetensors", "*.json")
        for path in (folder / part).rglob(suffix)
        if path.is_file()
    }
    return of_files((path.relative_to(folder).as_posix(), path) for path in files)


def of_images(images: Sequence[Path | np.ndarray]) -> str:
    """A short hash over images in their order. Only names and sizes of files are
    hashed: reading a data set would take an hour."""
    digest = hashlib.blake2b(digest_size=8)
    for image in images:
        if isinstance(image, np.ndarray):
            digest.update(f"{image.shape}\x1f".encode() + hashlib.blake2b(image.tobytes()).digest())
        else:
            digest.update(as_bytes(f"{image.name}\x1f{image.stat().st_size}\x1f"))
    return digest.hexdigest()


def of_contents(images: Sequence[Path | np.ndarray]) -> str:
    """A short hash over a sample from the middle of every file of images, in their order.

    Another photograph under the same name differs there, whatever its size.
    """
    digest = hashlib.blake2b(digest_size=8)
    for image in images:
        if not isinstance(image, np.ndarray):
            stat = image.stat()
            digest.update(_middle(image, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@functools.cache
def _middle(path: Path, size: int, modified_ns: int) -> bytes:
    """Read once for each state of a file: while it trains, a run asks again at every image that it cannot read."""
    with path.open("rb") as file:
        file.seek(size // 2)
        return hashlib.blake2b(file.read(MIDDLE_BYTES)).digest()


def of_text(text: str) -> str:
    """A short hash over a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def of_tensors(tensors: Sequence[Tensor]) -> str:
    """A short hash over the tensors' shapes and their values in fp32."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}\x1f".encode() + tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()
