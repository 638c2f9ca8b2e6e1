"""Published outputs: a folder of finished images is a method like any other, and nothing is run for it.

`folder:PATH` looks for the images of test set T in PATH/T, where there is such a folder, else in PATH itself. Images
are matched by name (stem), never by order; every image of the test set must be there, in the size of its ground truth
(x4 of the input where there is none). Nothing is resized to fit: a wrong size means outputs of something else. What
follows every name ("_x4") is found, or said: `folder:PATH,suffix=_x4`.

The cards describe the images that authors published: bench/methods/published/published.py.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.methods.base import MethodSpec
from bench.options import SCALE, RunOptions
from bench.provenance import cached_sha256
from bench.store.missing import Missing
from tsd.errors import UserError, some
from tsd.files import common_suffix, find_images, same_form

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
        names = [image.name for image in testset.images]
        suffix = common_suffix(found, names)
        if suffix:
            found = {stem.removesuffix(suffix): path for stem, path in found.items() if stem.endswith(suffix)}
        absent = [name for name in names if name not in found]
        faults = _absence(folder, absent, found, names) if absent else []
        faults += _size_faults([(image, found[image.name]) for image in testset.images if image.name in found])
        if faults:
            raise UserError(
                f"the outputs in {folder} do not fit the test set {testset.name} ({len(names)} images expected, "
                "matched by name):\n  " + "\n  ".join(faults)
            )
        return {name: found[name] for name in names}

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
    from tsd.console.progress import Progress

    total = hashlib.sha256()
    for name, path in Progress(files.items(), desc="hashing", unit="file", delay=2, leave=False):
        total.update(f"{cached_sha256(path)}  {name}\n".encode())
    return total.hexdigest()


def folder_spec(root: Path, name: str, display: str, suffix: str = "") -> MethodSpec:
    """The row of `folder:PATH`, or of `folder:PATH,suffix=SUFFIX`."""

    def load(options: RunOptions) -> PublishedOutputs:
        if not root.is_dir():
            raise UserError(missing(options)[0].line())
        return PublishedOutputs(root, options.testset, suffix=suffix)

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


def _absence(folder: Path, absent: list[str], found: Mapping[str, Path], names: list[str]) -> list[str]:
    """Says in few lines which names have no image, and what the images are called instead."""
    faults = [f"no image of this name for {len(absent)} of {len(names)}: {some(absent)}"]
    spare = [stem for stem in found if stem not in set(names)]
    endings = Counter(
        stem.removeprefix(name) for stem in spare for name in absent if stem.startswith(name) and stem != name
    )
    for suffix, count in endings.most_common(1):
        if count > 1 or len(absent) == 1:
            verb = "differ" if count > 1 else "differs"
            faults.append(
                f"{count} name{'s' * (count > 1)} {verb} by {suffix}; folder:{folder},suffix={suffix} takes such images"
            )
    if spare:
        faults.append(f"images there that match no name: {some(found[stem].name for stem in spare)}")
    return faults


def _size_faults(outputs: Sequence[tuple["TestImage", Path]]) -> list[str]:
    """What is wrong with the sizes of images, or that they are none; equal faults in one line."""
    from tsd.images import ImageError, picture_size

    faults: dict[str, list[str]] = {}
    for image, path in outputs:
        try:
            found = picture_size(path)
        except ImageError as error:
            reason = f"not a readable image ({type(error.__cause__ or error).__name__})"
            faults.setdefault(reason, []).append(path.name)
            continue
        if image.hr is not None:
            expected = picture_size(image.hr)
        else:
            width, height = picture_size(image.lr)
            expected = (width * SCALE, height * SCALE)
        if found != expected:
            wrong = f"{found[0]}x{found[1]}, expected {expected[0]}x{expected[1]}"
            faults.setdefault(wrong, []).append(path.name)
    return [f"{some(files)}: {fault}" for fault, files in faults.items()]
