"""Turns a method of any of the three protocols into one `Work`, which makes the images of a row one by one.

A method that restores one image at a time is timed. Published images are copied. A process over a whole folder is run
once, and its outputs are copied as they appear; where its card has a patch for it, it times its images itself.
"""

import contextlib
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.device import synchronize
from bench.errors import one_line, without_paths
from bench.methods.base import FolderMethod, FolderRunner, Method
from bench.options import RunOptions
from bench.pixels import PNG_SIGNATURE, checked_pixels, output_fault, png, read_image
from bench.provenance import image_seed
from tsd.errors import UserError

if TYPE_CHECKING:
    from bench.testsets.manifest import TestImage, TestSet

Maker = Callable[["TestImage", int | None], tuple[bytes, tuple[int, int], float | None]]
"""(image, seed) -> PNG bytes, (width, height), seconds or None if nothing was timed. Raises the reason if there is no
image."""

NOTHING_CAME = "its process ended and left neither an image nor a reason"


@dataclass(frozen=True)
class Work:
    """What a method has to do on one test set, in the same form for all protocols.

    Attributes:
        makers: yields each of the given images exactly once, with its maker, in the order in which they are made.
            Closing the generator ends the method's process.
        seeded: whether every image is made from its own seed; otherwise its row records no seed.
        environment: returns the environment of the method's own process, JSON-able; None for a method without one. It
            is called once, after the first image was yielded.
    """

    makers: Callable[[Sequence["TestImage"]], Generator[tuple["TestImage", Maker]]]
    seeded: bool = False
    environment: Callable[[], dict[str, Any] | None] = lambda: None


def work_of(
    method: Method | FolderMethod | FolderRunner, testset: "TestSet", options: RunOptions, folder: Path
) -> Work:
    """The work of a loaded method.

    Args:
        folder: place for the inputs, outputs and logs of a method's own process.

    Raises:
        UserError: the published images do not fit `testset`.
    """
    if isinstance(method, FolderRunner):
        return Work(
            lambda images: _run_folder(method, images, options.seed, folder),
            method.seeded(),
            lambda: _process_environment(method),
        )
    if isinstance(method, FolderMethod):
        return _each(_copier(method.outputs(testset)))
    return Work(lambda images: _timed(method, images, options), seeded=True)


def failing_work(reason: str) -> Work:
    """The work of a method that could not be loaded: every image fails with the reason."""
    return _each(_failing(reason))


def _each(make: Maker) -> Work:
    return Work(lambda images: ((image, make) for image in images))


def _timed(method: Method, images: Sequence["TestImage"], options: RunOptions) -> Generator[tuple["TestImage", Maker]]:
    """Yields every image with the maker that restores it and measures the time.

    The first image is restored once more beforehand, as a warm-up that is not recorded. An error in the warm-up is
    ignored: the same image then fails again, and its row records the reason.
    """
    make = _timer(method, options.device)
    with contextlib.suppress(Exception):
        make(images[0], image_seed(options.seed, images[0].name))
    for image in images:
        yield image, make


def _timer(method: Method, device: str) -> Maker:
    """The maker that decodes, restores with timing, checks and encodes."""
    import torch

    def make(image: "TestImage", seed: int | None) -> tuple[bytes, tuple[int, int], float | None]:
        lr = read_image(image.lr)
        height, width = lr.shape[-2:]
        with torch.no_grad():
            synchronize(device)
            start = time.perf_counter()
            sr = method.restore(lr, seed or 0)
            synchronize(device)
            seconds = time.perf_counter() - start
        pixels = checked_pixels(sr, height, width)
        return png(pixels), (pixels.shape[1], pixels.shape[0]), seconds

    return make


def _copier(outputs: Mapping[str, Path], seconds: float | None = None) -> Maker:
    """The maker that copies finished images: an 8-bit RGB PNG byte for byte, other 8-bit formats as a PNG.

    Args:
        seconds: how long the image took, where that was measured.
    """
    from tsd.images import picture_size, read_picture

    def make(image: "TestImage", seed: int | None) -> tuple[bytes, tuple[int, int], float | None]:
        path = outputs[image.name]
        data = path.read_bytes()
        sr = read_picture(data)
        if fault := output_fault(sr, path.name, picture_size(image.lr)):
            raise ValueError(fault)
        pixels = sr.to_rgb8()
        unchanged = data.startswith(PNG_SIGNATURE) and sr.mode == "RGB" and sr.as_stored
        return data if unchanged else png(pixels), (pixels.shape[1], pixels.shape[0]), seconds

    return make


def _failing(reason: str) -> Maker:
    """The maker of an image that cannot be made: it raises the reason."""

    def make(image: "TestImage", seed: int | None) -> tuple[bytes, tuple[int, int], float | None]:
        raise UserError(reason)

    return make


def _run_folder(
    runner: FolderRunner, images: Sequence["TestImage"], seed: int, work: Path
) -> Generator[tuple["TestImage", Maker]]:
    """Runs `runner` over `images` and yields each of them exactly once, with the maker that checks and encodes it.

    Images come in the order in which they are done. The maker of an image without an output raises the reason that the
    runner gives, or the error that ended the runner. Closing the generator closes that of the runner.

    Args:
        seed: the run's seed, from which the seed of each image is derived.
        work: the runner's own folder; created if it does not exist.
    """
    waiting = {image.name: image for image in images}
    seeds = {name: image_seed(seed, name) for name in waiting}
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    outputs = None
    reason = NOTHING_CAME
    try:
        outputs = runner.restore_folder({name: image.lr.absolute() for name, image in waiting.items()}, seeds, work)
        for name, output in outputs:
            if name not in waiting:
                raise ValueError(f"an output for {name!r}, which was not asked for or came before")
            failed = isinstance(output, str)
            yield waiting.pop(name), _failing(output) if failed else _copier({name: output}, runner.seconds(name))
    except Exception as error:
        reason = one_line(error)
    finally:
        close = getattr(outputs, "close", None)  # if it is a generator, closing it stops the runner's process
        if close is not None:
            close()
    for image in waiting.values():
        yield image, _failing(reason)


def _process_environment(runner: FolderRunner) -> dict[str, Any]:
    """The environment of the runner's process; if it is not known because nothing started, the reason."""
    try:
        return json.loads(json.dumps(runner.environment(), allow_nan=False))
    except Exception as error:
        return {"unknown": without_paths(one_line(error))}
