"""Reads and writes records: what was restored, what was scored, and what a table consists of.

Under the output folder of a run:

    records/<table>.json                              the plan of a table: its test sets, rows and columns
    records/verification.json                         what `bench verify` found on the machine of the run, if attached
    records/publications.jsonl                        one line for each time that `bench publish` sent these records
    records/<test set>/<method>/run.json              what produced the images: method, weights, settings, environments
    records/<test set>/<method>/images.jsonl          one line per restored image
    records/<test set>/<method>/scores.<metric>.jsonl one line per score
    records/<test set>/<method>/rescored.jsonl        one line per metric that `bench verify --rescore` computed again
    records/<test set>/<method>/<file>.rank<N>.<ending>   rows of process N of a shared run, until they are merged
    images/<test set>/<method>/<name>.png             the images (not tracked by git)
    images/.work/<test set>/<method>[.rank<N>]/       inputs, outputs and logs of a method's own process
    superseded/                                       records moved aside by `--redo`

A kill at any time leaves complete lines and at most one torn one, whose work is done again (bench/records/lines.py). If
a key has two rows, the later one counts. A finished file is rewritten in order, atomically. Error messages are recorded
without this machine's absolute paths.

In a shared run (bench/ranks.py) every process except the first writes to its own files. Readers see all files
together. The first process merges them when a job is done or when a killed run is resumed.

This module imports only the standard library and the ground: a table must be renderable without torch.
"""

import re
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from bench.errors import without_paths
from bench.records.lines import append_line, read_lines, read_object, rewrite_lines, set_aside, write_object
from bench.records.schema import (
    ImageRow,
    Plan,
    PlanMethod,
    PlanMetric,
    PlanSet,
    Publication,
    RecordError,
    Rescored,
    Restoration,
    ScoreRow,
    Verification,
    VerifiedMetric,
    from_json,
    list_from_json,
    to_json,
)
from tsd.files import alone_in, is_plain_name, remove_unfinished, sha256_file

RowT = TypeVar("RowT", ImageRow, ScoreRow)


class Records:
    """The records under one output folder. The folder is created when something is first written.

    Args:
        rank: the rank of this process in a shared run. Only rank 0 moves, merges and finishes files.
    """

    def __init__(self, out: Path, rank: int = 0) -> None:
        self.out = Path(out)
        self.root = self.out / "records"
        self.rank = rank

    def of(self, testset: str, method: str) -> "MethodRecords":
        """The records of one method on one test set, which need not exist.

        Raises:
            RecordError: one of the names cannot name a folder.
        """
        for name in (testset, method):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise RecordError(f"{name!r} cannot name a folder; use letters, digits, '.', '_' and '-'")
        return MethodRecords(self.out, testset, method, self.rank)

    def measured(self) -> list[tuple[str, str]]:
        """Every (test set, method) that has a run, in alphabetical order."""
        runs = [from_json(Restoration, read_object(path), path) for path in sorted(self.root.glob("*/*/run.json"))]
        return [(run.testset, run.method) for run in runs]

    def read_plan(self, table: str) -> Plan | None:
        path = self.root / f"{table}.json"
        if not path.exists():
            return None
        raw = read_object(path)
        for key, cls in (("testsets", PlanSet), ("methods", PlanMethod), ("metrics", PlanMetric)):
            raw[key] = list_from_json(cls, raw, key, path)
        return from_json(Plan, raw, path)

    def plans(self) -> list[Plan]:
        """The plans of all tables of scores, by name; those of timings, which have rows, are not among them."""
        paths = sorted(path for path in self.root.glob("*.json") if path != self._verification)
        plans = [self.read_plan(path.stem) for path in paths if "rows" not in read_object(path)]
        return [plan for plan in plans if plan is not None]

    def write_plan(self, plan: Plan) -> None:
        write_object(self.root / f"{plan.table}.json", asdict(plan))

    def read_verification(self) -> Verification | None:
        """What `bench verify --attach` wrote; None if it did not."""
        if not self._verification.exists():
            return None
        raw = read_object(self._verification)
        raw["metrics"] = list_from_json(VerifiedMetric, raw, "metrics", self._verification)
        return from_json(Verification, raw, self._verification)

    def write_verification(self, verification: Verification) -> Path:
        write_object(self._verification, asdict(verification))
        return self._verification

    def publications(self) -> list[Publication]:
        """What `bench publish` wrote, the oldest first."""
        lines = read_lines(self._publications) if self._publications.exists() else ()
        return [from_json(Publication, raw, where) for raw, where in lines]

    def add_publication(self, publication: Publication) -> None:
        append_line(self._publications, to_json(publication))

    @property
    def _publications(self) -> Path:
        return self.root / "publications.jsonl"

    @property
    def _verification(self) -> Path:
        return self.root / "verification.json"

    @contextmanager
    def lock(self) -> Generator[None]:
        """Locks the output folder for this run. The kernel releases the lock when the process ends, however it ends.

        In a shared run the first process holds the lock for all.

        Raises:
            UserError: another process holds the lock.
        """
        if self.rank:
            yield
            return
        images = self.out / "images"
        images.mkdir(parents=True, exist_ok=True)
        busy = f"another `bench` run is writing to {self.out}: wait for it, or choose another --out"
        with alone_in(images, busy):
            remove_unfinished(self.out)
            for folder in (self.root, images):
                remove_unfinished(folder, below=True)
            yield


@dataclass(frozen=True)
class MethodRecords:
    """The records of one method on one test set, as one process of a run reads and writes them.

    Reading returns the rows of all processes. Writing goes to the files of this process.

    Attributes:
        out: the output folder of the run.
        rank: the rank of this process. Only rank 0 may call `finish`, `finish_scores`, `set_aside` and `clear_work`.
    """

    out: Path
    testset: str
    method: str
    rank: int = 0

    @property
    def folder(self) -> Path:
        return self.out / "records" / self.testset / self.method

    @property
    def work_folder(self) -> Path:
        """The folder for a method's own process, beside the images, which git ignores."""
        name = f"{self.method}.rank{self.rank}" if self.rank else self.method
        return self.out / "images" / ".work" / self.testset / name

    def clear_work(self) -> None:
        """Removes what the method's processes of all ranks left to be resumed, but keeps their logs."""
        place = self.out / "images" / ".work" / self.testset
        for folder in (place / self.method, *place.glob(f"{self.method}.rank*")):
            for left in folder.iterdir() if folder.is_dir() else ():
                if left.is_dir():
                    shutil.rmtree(left)

    def run(self) -> Restoration | None:
        """The run, with the environments of all its processes."""
        first, *others = _parts(self._run)
        if not first.exists():
            return None
        run = from_json(Restoration, read_object(first), first)
        for path in others:
            run.environments.update(from_json(Restoration, read_object(path), path).environments)
        return run

    def write_run(self, run: Restoration) -> None:
        write_object(_of_rank(self._run, self.rank), asdict(run))

    def images(self) -> dict[str, ImageRow]:
        """The last row of every image, by name."""
        return _read_rows(ImageRow, self._images)

    def add_image(self, row: ImageRow) -> None:
        _append(_of_rank(self._images, self.rank), row)

    def images_bytes(self, rank: int) -> int:
        """The size in bytes of the file of process `rank`, as this process sees it; 0 without a file."""
        return _size(_of_rank(self._images, rank))

    def image_path(self, name: str) -> Path:
        """The PNG of an image.

        Raises:
            RecordError: the name leads out of the folder.
        """
        if not is_plain_name(name):
            raise RecordError(f"{name!r} is no image's name: it leads out of the folder of {self.method}")
        return self.out / "images" / self.testset / self.method / f"{name}.png"

    def has(self, image: ImageRow) -> bool:
        """Whether the PNG of this row is on disk with exactly the recorded bytes."""
        path = self.image_path(image.name)
        return image.sr_sha256 is not None and path.exists() and sha256_file(path) == image.sr_sha256

    def metrics(self) -> list[str]:
        """Names of the metrics that have a file of scores."""
        paths = self.folder.glob("scores.*.jsonl")
        return sorted({re.sub(r"^scores\.|(\.rank\d+)?\.jsonl$", "", path.name) for path in paths})

    def scores(self, metric: str) -> dict[str, ScoreRow]:
        """The last row of every image, by name. A set-level metric has one row, named `WHOLE_SET`."""
        return _read_rows(ScoreRow, self._scores(metric))

    def add_score(self, row: ScoreRow) -> None:
        _append(_of_rank(self._scores(row.metric), self.rank), row)

    def scores_bytes(self, metric: str, rank: int) -> int:
        """The size in bytes of the file of process `rank`, as this process sees it; 0 without a file."""
        return _size(_of_rank(self._scores(metric), rank))

    def rescorings(self) -> dict[str, Rescored]:
        """The last time that each metric was computed again, by its name."""
        path = self.folder / "rescored.jsonl"
        rows = [from_json(Rescored, raw, where) for raw, where in (read_lines(path) if path.exists() else ())]
        return {row.metric: row for row in rows}

    def add_rescoring(self, row: Rescored) -> None:
        append_line(self.folder / "rescored.jsonl", to_json(row))

    def finish_scores(self, metric: str, order: Iterable[str]) -> None:
        """Merges the scores of all processes and sorts them by `order`."""
        _finish(ScoreRow, self._scores(metric), order)

    def finish(self, order: Iterable[str]) -> None:
        """Merges the images and runs of all processes, sorts images by `order`, drops environments without a row."""
        rows = _finish(ImageRow, self._images, order)
        run = self.run()
        if run is not None:
            used = {row.environment for row in rows.values()}
            environments = {key: content for key, content in run.environments.items() if key in used}
            write_object(self._run, asdict(replace(run, environments=environments)))
            _remove(_parts(self._run)[1:])

    def set_aside(self) -> Path:
        """Moves the records to `superseded/` and returns their new folder."""
        return set_aside(self.folder, self.out / "superseded" / self.testset, self.method)

    @property
    def _run(self) -> Path:
        return self.folder / "run.json"

    @property
    def _images(self) -> Path:
        return self.folder / "images.jsonl"

    def _scores(self, metric: str) -> Path:
        return self.folder / f"scores.{metric}.jsonl"


def _append(path: Path, row: ImageRow | ScoreRow) -> None:
    if row.error is not None:
        row = replace(row, error=without_paths(row.error))
    append_line(path, to_json(row))


def _of_rank(path: Path, rank: int) -> Path:
    """The file that a process writes: `images.jsonl` for rank 0, `images.rank2.jsonl` for rank 2."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path


def _parts(path: Path) -> list[Path]:
    """`path`, which need not exist, and the same file of the other processes of a shared run, whose rows are newer."""
    return [path, *sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def _finish(cls: type[RowT], path: Path, order: Iterable[str]) -> dict[str, RowT]:
    """Rewrites a file with one row per key: first in `order`, then the rows that `order` does not name, as they came.

    The files of the other processes of a shared run are merged into it and removed. Returns the rows, by key.
    """
    if not any(part.exists() for part in _parts(path)):
        return {}
    rows = _read_rows(cls, path)
    keys = dict.fromkeys([key for key in order if key in rows])
    keys |= dict.fromkeys(rows)
    rewrite_lines(path, [to_json(rows[key]) for key in keys])
    _remove(_parts(path)[1:])
    return rows


def _read_rows(cls: type[RowT], path: Path) -> dict[str, RowT]:
    rows: dict[str, RowT] = {}
    for part in _parts(path):
        rows |= _read_part(cls, part) if part.exists() else {}
    return rows


def _read_part(cls: type[RowT], path: Path) -> dict[str, RowT]:
    rows: dict[str, RowT] = {}
    for raw, where in read_lines(path):
        row = from_json(cls, raw, where)
        if (row.error is None) != ((row.sr_sha256 if isinstance(row, ImageRow) else row.value) is not None):
            raise RecordError(f"{where}: a row has either a result or an error")
        if not is_plain_name(row.name):
            raise RecordError(f"{where}: {row.name!r} is no image's name: it leads out of its folder")
        rows[row.key] = row
    return rows
