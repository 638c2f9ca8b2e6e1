"""Published outputs: a folder of finished images is a method like any other, and nothing is run for it.

`folder:PATH` looks for the images of test set T in PATH/T, where there is such a folder, else in PATH itself. Images
are matched by name (stem), never by order; every image of the test set must be there, in the size of its ground truth
(x4 of the input where there is none). Nothing is resized to fit: a wrong size means outputs of something else.

The cards describe the images that authors published: bench/methods/published/published.py.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.methods.base import MethodSpec
from bench.options import SCALE, RunOptions
from bench.provenance import cached_sha256
from bench.store.missing import Missing
from tsd.errors import UserError, some
from tsd.files import find_images, same_form

if TYPE_CHECKING:
    from bench.testsets.manifest import TestImage, TestSet


@dataclass(frozen=True)
class PublishedOutputs:
    """A folder of one method's images, or one such folder per test set inside it.

    Attributes:
        root: the folder.
        testset: the test set that will be read, if known; it decides which folder the provenance covers.
        origin: where the images were published, as recorded facts.
        suffix: what may follow the image's name in the file names ("_BSRGAN").
        images_sha256: what `sha256_of_files` must give for the folder; None where it is not known.
        names: the names of all published images, for the message about an altered folder.
    """

    root: Path
    testset: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""
    images_sha256: str | None = None
    names: tuple[str, ...] = ()

    def folder(self, testset: str | None) -> Path:
        """`root/testset` where that is a folder, else `root`."""
        if testset is not None and (self.root / testset).is_dir():
            return self.root / testset
        return self.root

    def outputs(self, testset: "TestSet") -> dict[str, Path]:
        folder = self.folder(testset.name)
        found = images_by_stem(folder, self.suffix)
        faults = [f"{image.name}: no image of this name" for image in testset.images if image.name not in found]
        if faults:
            names = {image.name for image in testset.images}
            spare = [path.name for stem, path in found.items() if stem not in names]
            if spare:
                faults.append(f"(images there that match no name: {some(spare)}; names must be equal, without suffix)")
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
        """Where the images come from and one hash over all of them; see `FolderMethod`.

        Raises:
            UserError: the folder's images are not those that were published.
        """
        folder = self.folder(self.testset)
        images = images_by_stem(folder, self.suffix)
        found = sha256_of_files(images)
        if self.images_sha256 is not None and found != self.images_sha256:
            raise UserError(
                f"the {len(images)} images in {folder} are not the published ones{self._difference(images)}: one hash "
                f"over all of them is {found[:16]}…, expected {self.images_sha256[:16]}…. Get them again, or measure "
                f"them for what they are with NAME=folder:{folder}"
            )
        return {**self.origin, "images": len(images), "images_sha256": found}

    def _difference(self, images: Mapping[str, Path]) -> str:
        """Says how the folder's names differ from the published ones, or that only the content does."""
        absent = [name for name in self.names if name not in images]
        spare = [path.name for name, path in images.items() if self.names and name not in self.names]
        parts = [f"{len(absent)} absent: {some(absent)}"] if absent else []
        parts += [f"{len(spare)} too many: {some(spare)}"] if spare else []
        return f" ({'; '.join(parts) or 'some were altered, re-encoded or are of another release'})"


def images_by_stem(folder: Path, suffix: str = "") -> dict[str, Path]:
    """The images directly inside `folder` (`tsd.files.find_images`), by stem in Unicode's composed form, sorted.

    Args:
        suffix: taken off the stems that end in it.

    Raises:
        UserError: no such folder, or two images of the same stem.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; expected one with the finished images of a method")
    images: dict[str, Path] = {}
    found = find_images(folder, recursive=False).images
    for name, path in sorted((same_form(path.stem).removesuffix(suffix) + path.suffix, path) for path in found):
        stem = Path(name).stem
        if stem in images:
            raise UserError(f"{folder} holds both {images[stem].name} and {path.name}; expected one image a name")
        images[stem] = path
    return images


def sha256_of_files(files: Mapping[str, Path]) -> str:
    """One hash over names and contents: sha256 of the lines "<sha256>  <name>" in the order of `files`."""
    from tqdm import tqdm

    total = hashlib.sha256()
    for name, path in tqdm(files.items(), desc="hashing", unit="file", delay=2, leave=False, file=sys.stderr):
        total.update(f"{cached_sha256(path)}  {name}\n".encode())
    return total.hexdigest()


def folder_spec(root: Path, name: str, display: str) -> MethodSpec:
    """The row of `folder:PATH`."""

    def load(options: RunOptions) -> PublishedOutputs:
        if not root.is_dir():
            raise UserError(missing(options)[0].line())
        return PublishedOutputs(root, options.testset)

    def missing(options: RunOptions) -> list[Missing]:
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
        how="published outputs",
        verified="names and sizes",
    )


def _size_fault(image: "TestImage", path: Path) -> list[str]:
    """What is wrong with the size of `path`, or that it is no image; at most one line."""
    from tsd.images import ImageError, picture_size

    try:
        found = picture_size(path)
    except ImageError as error:
        return [f"{image.name}: {path.name} is not a readable image ({type(error.__cause__ or error).__name__})"]
    if image.hr is not None:
        expected = picture_size(image.hr)
    else:
        width, height = picture_size(image.lr)
        expected = (width * SCALE, height * SCALE)
    if found == expected:
        return []
    return [f"{image.name}: {path.name} is {found[0]}x{found[1]}, expected {expected[0]}x{expected[1]}"]
