"""Published outputs: a folder of finished images takes part like any other method, without running anything.

`folder:PATH` looks for the images of test set T in PATH/T, where there is such a folder, else in PATH itself. Images
are matched by name (stem), never by order; every image of the test set must be there, in the size of its ground truth
(x4 of the input where there is none). Nothing is resized to fit: a wrong size means outputs of something else.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UserError
from bench.methods.base import SCALE, MethodOptions, MethodSpec
from bench.metrics.images import EXTENSIONS
from bench.missing import Missing
from bench.provenance import sha256_file

if TYPE_CHECKING:
    from bench.testsets import TestImage, TestSet


@dataclass(frozen=True)
class PublishedOutputs:
    """A folder of one method's images, or one such folder per test set inside it.

    Attributes:
        root: the folder.
        testset: the test set about to be read, where known; decides which folder the provenance covers.
        origin: where the images were published, as recorded facts.
    """

    root: Path
    testset: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    def folder(self, testset: str | None) -> Path:
        """`root/testset` where that is a folder, else `root`."""
        if testset is not None and (self.root / testset).is_dir():
            return self.root / testset
        return self.root

    def outputs(self, testset: "TestSet") -> dict[str, Path]:
        folder = self.folder(testset.name)
        found = images_by_stem(folder)
        faults = [f"{image.name}: no image of this name" for image in testset.images if image.name not in found]
        if faults:
            names = {image.name for image in testset.images}
            spare = [path.name for stem, path in found.items() if stem not in names]
            if spare:
                faults.append(f"(images there that match no name: {_some(spare)}; names must be equal, without suffix)")
        for image in testset.images:
            if image.name in found:
                faults += _size_fault(image, found[image.name])
        if faults:
            raise UserError(
                f"the outputs in {folder} do not fit the test set {testset.name} ({len(testset.images)} images "
                "expected, matched by name):\n  " + "\n  ".join(faults)
            )
        return {image.name: found[image.name] for image in testset.images}

    def provenance(self) -> dict[str, object]:
        images = images_by_stem(self.folder(self.testset))
        return {**self.origin, "images": len(images), "images_sha256": sha256_of_files(images)}


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The images directly inside `folder`, by stem, in sorted order; hidden files and other files are left out.

    Raises:
        UserError: no such folder, or two images of the same stem.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; expected one with the finished images of a method")
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in EXTENSIONS or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in images:
            raise UserError(f"{folder} holds both {images[path.stem].name} and {path.name}; expected one image a name")
        images[path.stem] = path
    return images


def sha256_of_files(files: Mapping[str, Path]) -> str:
    """One hash over names and contents: sha256 of the lines "<sha256>  <name>" in the order of `files`."""
    from tqdm import tqdm

    total = hashlib.sha256()
    for name, path in tqdm(files.items(), desc="hashing", unit="file", delay=2, leave=False, file=sys.stderr):
        total.update(f"{sha256_file(path)}  {name}\n".encode())
    return total.hexdigest()


def folder_spec(root: Path, name: str, display: str) -> MethodSpec:
    """The row of `folder:PATH`."""

    def load(options: MethodOptions) -> PublishedOutputs:
        if not root.is_dir():
            raise UserError(missing(options)[0].line())
        return PublishedOutputs(root, options.testset)

    def missing(options: MethodOptions) -> list[Missing]:
        if root.is_dir():
            return []
        return [Missing(root.name, str(root), "the method's authors, or your own run of it", None, None, display)]

    return MethodSpec(
        name=name,
        display=display,
        steps=None,
        kind="published",
        summary=f"finished images in {root.name}/",
        licence="that of the images",
        load=load,
        missing=missing,
    )


OSEDIFF_COMMIT = "fcc4f09c7ed66a9bc0ba9433940d76b343142426"
OSEDIFF_IMAGES = "preset/datasets/benchmark_realsr/results_osediff"


def _osediff_folder(options: MethodOptions) -> Path:
    return options.data() / "realsr" / "osediff"


def _load_osediff(options: MethodOptions) -> PublishedOutputs:
    absent = _missing_osediff(options)
    if absent:
        raise UserError(absent[0].line())
    origin = {"repository": "https://github.com/cswry/OSEDiff", "commit": OSEDIFF_COMMIT, "path": OSEDIFF_IMAGES}
    return PublishedOutputs(_osediff_folder(options), options.testset, origin)


def _missing_osediff(options: MethodOptions) -> list[Missing]:
    if options.testset not in (None, "realsr"):
        return [
            Missing(
                name=f"a set of published images for {options.testset}",
                where="(nowhere: this row exists for realsr only)",
                source="another method, or folder:PATH with images of your own",
                size_bytes=None,
                licence=None,
                needed_by="OSEDiff (published)",
            )
        ]
    if _osediff_folder(options).is_dir():
        return []
    return [
        Missing(
            name="realsr/osediff/",
            where="$TSD_DATA/realsr/osediff/ (or under --data-root)",
            source=f"https://github.com/cswry/OSEDiff at {OSEDIFF_COMMIT[:7]}, folder {OSEDIFF_IMAGES}",
            size_bytes=None,
            licence="Apache-2.0",
            needed_by="OSEDiff (published)",
            fetch="osediff-published",
        )
    ]


OSEDIFF_PUBLISHED = MethodSpec(
    name="osediff-published",
    display="OSEDiff (published)",
    steps=1,
    kind="published",
    summary="the authors' own images for RealSR, as they stand in their repository",
    licence="Apache-2.0",
    load=_load_osediff,
    missing=_missing_osediff,
    testsets=("realsr",),
)


def _size_fault(image: "TestImage", path: Path) -> list[str]:
    """What is wrong with the size of `path`, or that it is no image; at most one line."""
    from PIL import Image, UnidentifiedImageError

    def size_of(file: Path) -> tuple[int, int]:
        with Image.open(file) as opened:
            return opened.size

    try:
        found = size_of(path)
    except (UnidentifiedImageError, OSError) as error:
        return [f"{image.name}: {path.name} is not a readable image ({type(error).__name__})"]
    if image.hr is not None:
        expected = size_of(image.hr)
    else:
        width, height = size_of(image.lr)
        expected = (width * SCALE, height * SCALE)
    if found == expected:
        return []
    return [f"{image.name}: {path.name} is {found[0]}x{found[1]}, expected {expected[0]}x{expected[1]}"]


def _some(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
