"""Where high-quality images come from: folders on disk, or data sets through Hugging Face `datasets`.

A source is an ordered sequence of `SourceImage`s. Nothing is decoded here: an image travels as a path or as the bytes
of its file, so that decoding happens in the worker processes and a damaged file cannot end the iteration.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tsd.console.progress import Progress
from tsd.data.hf import import_datasets
from tsd.errors import UserError
from tsd.files import READABLE, find_images, printable, sha256_file


@dataclass(frozen=True)
class SourceImage:
    """One image of a source, not decoded.

    Attributes:
        index: its place in the source.
        name: unique within the source; crops and degradations are seeded with it.
        picture: a file, or `datasets`' undecoded form `{"bytes": ..., "path": ...}`.
        caption: the source's own caption (from a `.txt` file or a column); empty if there is none.
        stream_state: a streaming source's position after this image; None for images where it is not kept.
    """

    index: int
    name: str
    picture: Path | Mapping[str, Any]
    caption: str = ""
    stream_state: dict[str, Any] | None = None


class Source(Protocol):
    """An ordered sequence of images that can be read from the middle on."""

    @property
    def length(self) -> int | None:
        """The number of images; None if a stream does not know it."""
        ...

    def describe(self) -> dict[str, Any]:
        """The values that name this source in a record and show that it has changed; no paths of this machine."""
        ...

    def images(self, start: int, stream_state: dict[str, Any] | None, state_every: int) -> Iterator[SourceImage]:
        """The images from number `start` on.

        Args:
            stream_state: the `SourceImage.stream_state` of image `start` − 1, for sources that have one.
            state_every: size of the groups of images; the last image of each group has its `stream_state` set.
        """
        ...

    def stamp(self, name: str) -> "Stamp | None":
        """What an image's content is recognised by later; None if its files do not lie on this machine."""
        ...

    def is_unchanged(self, name: str, stamp: "Stamp") -> bool:
        """Whether the image still has the content of which the stamp was made."""
        ...


@dataclass(frozen=True)
class Stamp:
    """Sizes and times of change of an image's files, and a hash of their content, which decides where times differ."""

    times: str
    sha256: str


class FolderSource:
    """Image files and folders, the latter searched with their sub-folders in sorted order.

    A name is the folder's own name and the path below it, `DIV2K_train_HR/0001.png`, since data sets number their files
    alike. Images in the folder `exclude`, that of the results, are left out. With `caption_files`, the caption of
    `a.png` is the text of `a.txt` beside it.

    Raises UserError: file or folder missing, no image found, two images of one name, and, if there is no fallback
    caption, missing `.txt` files (all are counted, twenty are listed).
    """

    def __init__(
        self,
        paths: list[Path],
        *,
        caption_files: bool = False,
        fallback: bool = False,
        limit: int | None = None,
        exclude: Path | None = None,
    ) -> None:
        self.caption_files = caption_files
        files: dict[str, Path] = {}
        for given in paths:
            for name, path in _named_files(given, exclude):
                if name in files:
                    raise UserError(f"{files[name]} and {path} would both be called {name}; rename one")
                files[name] = path
        self.files = dict(itertools.islice(files.items(), limit))
        if caption_files and not fallback:
            missing = [path for path in self.files.values() if not path.with_suffix(".txt").is_file()]
            if missing:
                shown = "\n  ".join(map(str, missing[:20])) + ("\n  …" if len(missing) > 20 else "")
                raise UserError(
                    f"{len(missing)} of {len(self.files)} images have no .txt file beside them; add them, or give "
                    f"--caption TEXT or --caption-model ID for those without:\n  {shown}"
                )

    @property
    def length(self) -> int:
        return len(self.files)

    def describe(self) -> dict[str, Any]:
        """A hash of the files' names and sizes, which changes when files are added, removed or replaced."""
        digest = hashlib.sha256()
        for name, path in Progress(self.files.items(), "listing images", unit="image", delay=2):
            digest.update(f"{name}\0{path.lstat().st_size if not path.exists() else path.stat().st_size}\n".encode())
        return {"kind": "folders", "images": len(self.files), "names_sha256": digest.hexdigest()}

    def images(self, start: int, stream_state: dict[str, Any] | None, state_every: int) -> Iterator[SourceImage]:
        for index, (name, path) in enumerate(itertools.islice(self.files.items(), start, None), start):
            yield SourceImage(index, name, path, _text(path.with_suffix(".txt")) if self.caption_files else "")

    def stamp(self, name: str) -> Stamp:
        return Stamp(self._times(name), self._content(name))

    def is_unchanged(self, name: str, stamp: Stamp) -> bool:
        return self._times(name) == stamp.times or self._content(name) == stamp.sha256

    def _times(self, name: str) -> str:
        return " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in map(os.stat, self._files_of(name)))

    def _content(self, name: str) -> str:
        return " ".join(map(sha256_file, self._files_of(name)))

    def _files_of(self, name: str) -> list[Path]:
        """The image and its caption, as far as they can be read."""
        path = self.files[name]
        wanted = [path, path.with_suffix(".txt")] if self.caption_files else [path]
        return [file for file in wanted if os.access(file, os.R_OK)]


class HubSource:
    """A data set of Hugging Face `datasets`.

    It is loaded by `load_dataset` (hub id, or a folder of images, parquet or Arrow files) or was written by
    `save_to_disk`. When streaming, images are fetched as they are needed and not kept; a resumed run continues from a
    position that `datasets` itself reports. A name is `SPLIT/00000012`.

    Raises UserError: no `datasets`, no such data set, split or column, or no network.
    """

    def __init__(
        self,
        name: str,
        *,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        image_column: str = "image",
        caption_column: str | None = None,
        streaming: bool = False,
        limit: int | None = None,
    ) -> None:
        self.split, self.image_column, self.caption_column, self.limit = split, image_column, caption_column, limit
        self.streaming = streaming
        self._settings = {"kind": "datasets", "name": Path(name).name if Path(name).is_dir() else name}
        self._settings |= {"config": config, "split": split, "revision": revision, "streaming": streaming}
        self._settings |= {"image_column": image_column, "caption_column": caption_column, "limit": limit}
        data = _load(name, config, split, revision, streaming)
        columns = list(data.features or next(iter(data), {}))
        if absent := [column for column in (image_column, caption_column) if column and column not in columns]:
            raise UserError(
                f"{name} has no column {', '.join(map(repr, absent))} (found: {', '.join(map(repr, columns))}); give "
                f"--image-column and --caption-column"
            )
        data = data.select_columns([image_column, *([caption_column] if caption_column else [])])
        self._data = data.cast_column(image_column, import_datasets().Image(decode=False))

    @property
    def length(self) -> int | None:
        if self.streaming:
            splits = self._data.info.splits or {}
            known = splits[self.split].num_examples if self.split in splits else None
        else:
            known = len(self._data)
        return known or self.limit if self.limit is None or not known else min(known, self.limit)

    def describe(self) -> dict[str, Any]:
        """The arguments and, unless streaming, the length (a change that keeps the length is not noticed)."""
        return self._settings if self.streaming else self._settings | {"images": self.length}

    def images(self, start: int, stream_state: dict[str, Any] | None, state_every: int) -> Iterator[SourceImage]:
        if not self.streaming:
            rows = (self._data[index] for index in range(start, len(self._data)))
        elif stream_state is not None:
            self._data.load_state_dict(stream_state)
            rows = iter(self._data)
        else:
            rows = iter(self._data.skip(start) if start else self._data)
        for index in itertools.count(start) if self.limit is None else range(start, self.limit):
            row = next(rows, None)
            if row is None:
                return
            keep_state = self.streaming and (index + 1) % state_every == 0
            caption = row[self.caption_column] if self.caption_column else ""
            if isinstance(caption, list):  # several captions of one image, as in COCO: takes the first
                caption = caption[0] if caption else ""
            yield SourceImage(
                index,
                f"{self.split}/{index:08d}",
                row[self.image_column] or {},
                " ".join(str(caption or "").split()),
                self._data.state_dict() if keep_state else None,
            )

    def stamp(self, name: str) -> None:
        return None

    def is_unchanged(self, name: str, stamp: Stamp) -> bool:
        return True


def _named_files(given: Path, exclude: Path | None) -> Iterator[tuple[str, Path]]:
    if given.is_file():
        yield printable(given.name), given
    elif given.is_dir():
        found = find_images(given, exclude=exclude).images
        if not found:
            raise UserError(f"no images in {given} or its sub-folders; looked for {', '.join(READABLE)}")
        folder = given.resolve().name
        # Arrow holds UTF-8 alone; a file name may be in another encoding.
        yield from ((printable(f"{folder}/{path.relative_to(given).as_posix()}"), path) for path in found)
    else:
        raise UserError(f"no such file or folder: {given}")


def _text(path: Path) -> str:
    """The caption in a text file, on one line; empty if the file is missing or not text."""
    try:
        return " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        return ""


def _load(name: str, config: str | None, split: str, revision: str | None, streaming: bool) -> Any:
    datasets = import_datasets()
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise UserError(f"{name} has no split {split!r} (found: {', '.join(map(repr, found))})")
                found = found[split]
            return found.to_iterable_dataset() if streaming else found
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=streaming)
    except UserError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # ConnectionError is an OSError
        raise UserError(f"the data set {name!r} (split {split!r}) could not be opened: {error}") from error
