"""The files of the images beside the page: linked where they are, or copied into the site."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from bench.site.collection import Set
from bench.site.pictures import Job

Originals = Literal["", "link", "copy"]
COPIES = "originals"


@dataclass(frozen=True)
class Beside:
    """Where the originals of one picture of every image are: `base`, then the name of the image, then `suffix`.

    `numbered`: in place of the name stand the numbers of image and picture.
    """

    base: str
    suffix: str
    numbered: bool


def originals_of(found: Set, originals: Originals, out: Path) -> list[Beside | None]:
    """One for each method, and for input and ground truth; None for what has no such file, or not of such a name."""
    places = [*(method.files for method in found.methods), found.inputs, found.truths]
    return [_beside(found, files, originals, out) if originals else None for files in places]


def _beside(found: Set, files: Sequence[Path | None], originals: Originals, out: Path) -> Beside | None:
    known = {name: path for name, path in zip(found.names, files, strict=True) if path is not None}
    if not known:
        return None
    first = next(iter(known.values()))
    if originals == "copy":
        same = all(path.suffix == first.suffix for path in known.values())
        return Beside(f"{COPIES}/{found.name}/", first.suffix, True) if same else None
    if any(path != first.parent / f"{name}{first.suffix}" for name, path in known.items()):
        return None
    folder = Path(os.path.relpath(first.parent.absolute(), out.absolute())).as_posix()
    return Beside(f"{quote(folder)}/", first.suffix, False)


def bytes_of(jobs: Sequence[Sequence[Job]]) -> int:
    """Size of all originals."""
    return sum(path.stat().st_size for of_set in jobs for job in of_set for path in job.files if path is not None)


def copied_to(site: Path, job: Job) -> None:
    """Copies the originals of an image."""
    for at, path in enumerate(job.files):
        if path is not None:
            target = site / COPIES / job.testset / f"{job.index}-{at}{path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
