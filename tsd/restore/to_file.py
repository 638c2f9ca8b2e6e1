"""From a decoded image to the file of its result: in one piece or in several, with a text that says how it was made.

The command line and the page of `tsd app` both restore this way, so that they write the same bytes.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tsd import __version__
from tsd.batch import Job, Written
from tsd.config import enlarged_size
from tsd.console.stages import WRITE, Progress, silent
from tsd.files import human_size
from tsd.images import Scan
from tsd.restore.memory import plan
from tsd.restore.pieces import restore_file
from tsd.restore.restorer import Restorer
from tsd.writing import write_picture

LARGE = 2048**2
"""Processed pixels above which enlarging a small input takes noticeable time."""


def restore_to_file(
    restorer: Restorer,
    scan: Scan,
    job: Job,
    memory_gb: float | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
) -> Written:
    """Restores `scan` into `job.target`, in pieces where it would not fit into memory.

    Args:
        memory_gb: memory of the whole process to plan for, in GB; by default what is free.
        say: called before the work with a line about what is out of the ordinary: a long and narrow image, pieces.

    Raises:
        UserError: an unusable size, values that are NaN or infinite, or not enough memory.
        ImageError: the format of the target cannot hold the result.
    """
    planned = plan(restorer, *scan.size, job.target, memory_gb)
    scale, work = restorer.config.scale, restorer.processing_size(*scan.size)
    if math.prod(work) > max(LARGE, 2 * scale**2 * math.prod(scan.size)):
        say(
            f"warning: {job.source}: this long, narrow image is worked at {work[0]}x{work[1]}, which may take long "
            f"and much memory; --process-size 0 works at the size of the result"
        )
    text = settings_text(restorer, job.name)
    if planned.window is None:
        picture = restorer.restore_picture(scan.picture(), job.name, progress)
        progress(WRITE, 0, 1)
        notes = write_picture(picture, job.target, text)
        progress(WRITE, 1, 1)
        return Written(picture.size, notes)
    pixels = planned.window * restorer.backbone.vae_factor
    size = enlarged_size(*scan.size, scale)
    say(
        f"{job.source}: {size[0]}x{size[1]} would take about {human_size(planned.needed_bytes)} in one piece, and "
        f"{human_size(planned.available_bytes)} may be used: restored in pieces of {pixels} pixels"
    )
    notes = restore_file(restorer, scan, job.target, job.name, window=planned.window, progress=progress, text=text)
    return Written(size, notes, {"piece_pixels": pixels})


def settings_text(restorer: Restorer, name: str) -> str:
    """What a result says about itself: JSON in ASCII, equal for equal settings, without a path of this machine.

    A model on the hub is named by its id, one in a folder by the last part of its path. The name of the image is told
    only where the seed is made of it, which is with `posterior` "sample".
    """
    facts = {
        "version": __version__,
        **{part: _name_of(source) for part, source in restorer.sources.items()},
        "settings": asdict(restorer.config),
        **({"name": name} if restorer.config.posterior == "sample" else {}),
        "dtype": str(restorer.backbone.dtype).removeprefix("torch."),
        "device": restorer.backbone.device.type,
        **({"quantization": restorer.quantization} if restorer.quantization else {}),
    }
    return json.dumps(facts)


def _name_of(source: str) -> str:
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.exists() else source
