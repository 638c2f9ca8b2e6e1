"""Uploaded photographs become files to compare and to download: the work behind the page, which knows no browser.

A photograph is restored by the very functions of `tsd restore`, so that its file has the same bytes, and what goes
wrong is told in the same words.
"""

import copy
import math
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tsd.batch import Job, Written, described, input_sizes, run_batch
from tsd.config import enlarged_size
from tsd.console.stages import Progress
from tsd.files import NAME_BYTES, atomic_path, is_plain_name, printable
from tsd.images import Scan
from tsd.restore import Restorer
from tsd.restore.to_file import restore_to_file
from tsd.writing import write_picture

KEPT_SECONDS = 24 * 3600
"""Age at which results are removed although the page is still open: it may run for weeks."""
COMPARED_PIXELS = 64e6
"""Pixels of the largest result that is shown in the browser, which holds it at four bytes each, twice."""
STOPPED = "stopped: this photograph and those after it were not restored"


class Stopped(Exception):
    """The restoration was ended from the page, or because the page ends."""


@dataclass(frozen=True)
class Result:
    """What became of a photograph.

    Attributes:
        name: the file name it was uploaded under; any text.
        error: why there is no result, in the words of the command line; empty if there is one.
        target: the result, a PNG.
        before: the input as a PNG that every browser shows; None where the result is too large to be compared.
        size: (width, height) of the result.
    """

    name: str
    error: str = ""
    target: Path = Path()
    before: Path | None = None
    size: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass
class Workshop:
    """A loaded student and the folder of its results; it restores one photograph at a time.

    Attributes:
        folder: results lie in it, each batch in a folder whose name nobody can guess.
        memory_gb: memory of the whole process to plan for, in GB; by default what is free.
        stopped: batches that were ended.
        busy: held while a photograph is restored.
        closed: nothing is restored any more.
    """

    restorer: Restorer
    folder: Path
    memory_gb: float | None = None
    stopped: set[str] = field(default_factory=set[str])
    busy: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def restore(
        self,
        photographs: Sequence[tuple[Path, str]],
        settings: Mapping[str, Any],
        batch: str,
        progress: Callable[[int, str, int, int], None],
    ) -> Iterator[Result]:
        """Restores photographs one after another; yields what became of each, of bad ones too.

        Args:
            photographs: where each lies, and the name it was uploaded under.
            settings: those of `tsd.config.RestoreConfig` that differ from the student's.
            batch: what `stop` calls this batch.
            progress: called with the number of the photograph, and as `tsd.console.stages` says.

        Raises:
            UserError: impossible settings, or too little room on the disk; nothing was restored.
        """
        config = replace(self.restorer.config, **settings)
        restorer = copy.copy(self.restorer)  # the weights are shared
        restorer.config = config
        self._remove_old()
        folder = self.folder / secrets.token_urlsafe()
        jobs = [
            Job(path, Path(name).stem, target_of(name, folder / str(number)))
            for number, (path, name) in enumerate(photographs)
        ]
        if sizes := input_sizes(jobs):
            described(sizes, config.scale)  # refuses a full disk
        self.stopped.discard(batch)
        for number, (job, (_, name)) in enumerate(zip(jobs, photographs, strict=True)):

            def told(stage: str, done: int, total: int, number: int = number) -> None:
                if self._is_stopped(batch):
                    raise Stopped
                progress(number, stage, done, total)

            with self.busy:
                result = None if self._is_stopped(batch) else self._restore_one(restorer, job, name, told)
            if self._is_stopped(batch) and (result is None or result.error):
                yield Result(name, STOPPED)
                return
            assert result is not None
            yield result

    def stop(self, batch: str) -> None:
        """Ends a batch at the next step of its photograph."""
        self.stopped.add(batch)

    def close(self, timeout: float = 60.0) -> None:
        """Ends all batches, waits until none writes any more, and removes all results."""
        self.closed = True
        held = self.busy.acquire(timeout=timeout)
        shutil.rmtree(self.folder, ignore_errors=True)
        if held:
            self.busy.release()

    def _restore_one(self, restorer: Restorer, job: Job, name: str, progress: Progress) -> Result:
        before: list[Path] = []
        said: list[str] = []

        def restore(scan: Scan, job: Job, shown: Progress) -> Written:
            def told(stage: str, done: int, total: int) -> None:
                shown(stage, done, total)
                progress(stage, done, total)

            if math.prod(enlarged_size(*scan.size, restorer.config.scale)) <= COMPARED_PIXELS:
                before.append(job.target.parent / "input" / "input.png")
                write_picture(replace(scan.picture(), depth=8), before[0])
            return restore_to_file(restorer, scan, job, self.memory_gb, told, said.append)

        outcome = run_batch([job], restorer.config.scale, restore)
        if outcome.failed:
            (reason,) = outcome.failed.values()
            return Result(name, _without_paths(reason, job, name))
        done: Any = outcome.done[0]
        notes = tuple(_without_paths(note, job, name) for note in (*said, *done["notes"]))
        width, height = done["size"]
        return Result(name, "", job.target, before[0] if before else None, (width, height), done["seconds"], notes)

    def _is_stopped(self, batch: str) -> bool:
        return self.closed or batch in self.stopped

    def _remove_old(self) -> None:
        for folder in self.folder.iterdir():
            if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def target_of(name: str, folder: Path) -> Path:
    """Where the result of an upload of this name goes: the command line's name for it, unless that leads elsewhere."""
    stem = Path(name).stem.encode(errors="ignore")[:NAME_BYTES].decode(errors="ignore")
    return folder / f"{stem if is_plain_name(stem) else 'photograph'}.png"


def write_zip(results: Sequence[Result], path: Path) -> None:
    """Writes all results into one archive, uncompressed since PNG is; equal names are numbered."""
    taken: set[str] = set()
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for result in results:
            name, number = printable(result.target.name), 1
            while name.casefold() in taken:
                number += 1
                name = f"{printable(result.target.stem)} ({number}).png"
            taken.add(name.casefold())
            archive.write(result.target, name)


def _without_paths(message: str, job: Job, name: str) -> str:
    """A message with the names that the visitor knows in place of paths on the machine that serves the page."""
    message = message.replace(str(job.source), name).replace(str(job.target), job.target.name)
    return message.removeprefix("warning: ").removeprefix(f"{name}: ")
