"""Collects the outputs of a script: files decide, not exit codes.

Four of the official scripts swallow errors and end with 0; others crash after the last image. So every expected image
is looked for by name, and how the process ended is reported only for images that are missing.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.pixels import output_fault
from tsd.files import is_hidden


@dataclass
class Collected:
    """The outputs of a run.

    Attributes:
        files: by name, the images that are complete, 8-bit, of the right size, and there once.
        faults: by name, why there is none; an empty text if there is no output at all.
        further: files that belong to no image and that the card does not ignore, as paths under the folder.
    """

    files: dict[str, Path] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)


class OutputNames:
    """Finds the image to which a file under the folder of outputs belongs.

    Args:
        pattern: as `bench.cards.card.Command.outputs`; "*" and "?" stand for parts of one path component.
        ignore: patterns of files that are no outputs, on the path under the folder or on the file's name.
        names: of the expected images. If two fit a file, the longer one counts: "a_b_0.png" of "{name}_*.png" is the
            output of "a_b", not of "a".
    """

    def __init__(self, pattern: str, ignore: Sequence[str], names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        self._pattern = pattern
        self._ignore = tuple(ignore)
        self._known: dict[str, str | None] = {}  # the same files are looked up again and again during a run

    def name_of(self, path: str) -> str | None:
        """The name of the image, or None for a file that is none of the outputs; `path` is under the folder."""
        if path not in self._known:
            self._known[path] = None if self.ignored(path) else next(self._fitting(path), None)
        return self._known[path]

    def with_others(self, others: Iterable[str]) -> "OutputNames":
        """These names together with `others`, whose files may lie in the same folder."""
        return OutputNames(self._pattern, self._ignore, self._names.union(others))

    def _fitting(self, path: str) -> Iterator[str]:
        """Yields the names with which the pattern matches `path`, longer ones first."""
        for length in self._lengths:
            for start in range(len(path) - length + 1):
                name = path[start : start + length]
                if name in self._names and re.fullmatch(_regex(self._pattern, name), path):
                    yield name

    def ignored(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(fnmatch.fnmatchcase(path, way) or fnmatch.fnmatchcase(name, way) for way in self._ignore)

    def found(self, folder: Path) -> tuple[dict[str, list[str]], list[str]]:
        """The files under `folder` by image, and the further ones; paths under the folder, sorted."""
        by_name: dict[str, list[str]] = {}
        unmatched = []
        for path in sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()):
            if any(map(is_hidden, path.split("/"))):
                continue
            name = self.name_of(path)
            if name is not None:
                by_name.setdefault(name, []).append(path)
            elif not self.ignored(path):
                unmatched.append(path)
        return by_name, unmatched


def collect(folder: Path, names: OutputNames, sizes: Mapping[str, tuple[int, int]]) -> Collected:
    """Looks at every file under `folder` and decodes every output.

    Args:
        sizes: (width, height) of each expected image's input.
    """
    by_name, unmatched = names.found(folder)
    result = Collected(unmatched=unmatched)
    for name, size in sizes.items():
        paths = by_name.get(name, [])
        if len(paths) > 1:
            result.faults[name] = f"twice: {' and '.join(paths[:3])}; expected one file"
        elif not paths:
            result.faults[name] = ""
        elif fault := _fault(folder / paths[0], paths[0], size):
            result.faults[name] = fault
        else:
            result.files[name] = folder / paths[0]
    return result


def _fault(path: Path, shown: str, lr_size: tuple[int, int]) -> str:
    """What is wrong with an output; empty where nothing is."""
    from tsd.images import ImageError, read_picture

    try:
        return output_fault(read_picture(path), shown, lr_size)
    except ImageError as error:
        return f"unreadable: {shown} is no whole image ({type(error.__cause__ or error).__name__})"


def _regex(pattern: str, name: str) -> str:
    """The pattern with one image's name in it."""
    wild = re.escape(pattern.replace("{name}", "\0")).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return wild.replace(re.escape("\0"), re.escape(name))
