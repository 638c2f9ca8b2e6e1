"""A `FolderRunner` image by image: what came of its process becomes one maker per image, as of any other method."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UserError, one_line
from bench.imaging import Maker, copier
from bench.methods.base import FolderRunner
from bench.seeds import image_seed

if TYPE_CHECKING:
    from bench.testsets import TestImage

NOTHING_CAME = "its process ended and left neither an image nor a reason"


def run_folder(
    runner: FolderRunner, images: Sequence["TestImage"], seed: int, work: Path
) -> Generator[tuple["TestImage", Maker]]:
    """Runs `runner` over `images` and yields each of them exactly once, with what checks and encodes its output.

    Images come in the order in which they are done. The maker of one without an output raises the reason: that of the
    runner, or of the error that ended it. Closing the iterator ends the runner's.

    Args:
        seed: the run's seed, from which each image's is derived.
        work: the runner's own folder; made if it is not there.
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
            yield waiting.pop(name), no_output(output) if isinstance(output, str) else copier({name: output})
    except Exception as error:
        reason = one_line(error)
    finally:
        close = getattr(outputs, "close", None)  # a generator's: it stops its process
        if close is not None:
            close()
    for image in waiting.values():
        yield image, no_output(reason)


def no_output(reason: str) -> Maker:
    """The maker of an image that there is none of: it raises the reason."""

    def make(image: "TestImage", seed: int | None) -> tuple[bytes, tuple[int, int], float | None]:
        raise UserError(reason)

    return make
