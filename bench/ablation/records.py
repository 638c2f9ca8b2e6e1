"""The compact records of a sweep: three small files from which a report is made, and which can be committed.

    sweep.json     the question, the domain, base and code, and the environments by key
    cells.jsonl    one line per cell or reference row: arm, seed, key, overrides, scores of the set, costs, curve
    images.npz     scores of single images: for each measure an array (lines of cells.jsonl, images) of integers in
                   units of 10^-`decimals`, the names of the images, and the lines' names

They are made anew from the cells' folders whenever those are there.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.ablation.cells import Job, read_json, read_lines, write_json, write_lines
from bench.ablation.domain import Measure
from bench.ablation.experiment import Experiment
from bench.provenance import environment_key
from tsd.errors import UserError
from tsd.files import atomic_path

SCHEMA = 1
ABSENT = np.iinfo(np.int32).min
"""Stands in images.npz where an image has no score."""


@dataclass(frozen=True)
class Row:
    """A cell or a reference row, as one line of cells.jsonl.

    Attributes:
        arm: the arm's name; None for a reference.
        reference: the reference's name; None for an arm.
        overrides: what the experiment's file set for the arm.
        scores: the set's score by measure.
        curve: the learning curve, {"step": 40, "fd": 51.2}.
        log: of each column of the training log the mean over the second half.
        seconds, cpu_seconds, peak_mib: costs, those of interrupted calls included as far as they were recorded; None
            for references.
        calls: how many calls of the command the cell took.
        environment: key in sweep.json.
        commit: of this repository.
        images: scores by measure and image; kept in images.npz.
    """

    arm: str | None
    reference: str | None
    seed: int
    key: str
    overrides: Mapping[str, Any]
    scores: Mapping[str, float]
    curve: Sequence[Mapping[str, float]] = ()
    log: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mib: float | None = None
    calls: int = 1
    base: str = ""
    code: str = ""
    environment: str = ""
    commit: str | None = None
    images: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.arm if self.arm is not None else f"reference {self.reference}"


@dataclass(frozen=True)
class SweepRecords:
    """Everything a report is made from. `environments` by their key; `domain` as `open_domain` takes it."""

    rows: tuple[Row, ...]
    environments: Mapping[str, Mapping[str, Any]]
    domain: str = ""

    def of_arm(self, arm: str) -> dict[int, Row]:
        """The cells of an arm by seed."""
        return {row.seed: row for row in self.rows if row.arm == arm}

    def of_reference(self, name: str) -> dict[int, Row]:
        """The rows of a reference by seed."""
        return {row.seed: row for row in self.rows if row.reference == name}

    def references(self) -> list[str]:
        """The names of the references, in the order of the rows."""
        return list(dict.fromkeys(row.reference for row in self.rows if row.reference is not None))


def collect(experiment: Experiment, jobs: Iterable[Job], measures: Sequence[Measure]) -> SweepRecords:
    """The records of all jobs that are done, read from their folders.

    Raises:
        UserError: a file of a done cell cannot be read.
    """
    rows: list[Row] = []
    environments: dict[str, Mapping[str, Any]] = {}
    for job in jobs:
        if job.state() != "done":
            continue
        done = read_json(job.folder / "done.json") or {}
        environment = done.get("environment", {})
        commit = environment.get("git_commit")
        key = environment_key({name: value for name, value in environment.items() if name != "git_commit"})
        environments[key] = environment
        common: dict[str, Any] = {
            "seed": job.seed, "key": job.key, "base": job.origin["base"], "code": job.origin["code"],
            "environment": key, "commit": commit,
        }  # fmt: skip
        if job.cell is not None:
            scores, images = read_scores(job.folder, measures)
            rows.append(
                Row(
                    arm=job.cell.arm,
                    reference=None,
                    overrides=experiment.overrides(experiment.arm(job.cell.arm)),
                    scores=scores,
                    images=images,
                    curve=read_lines(job.folder / "curve.jsonl"),
                    log=_log_means(read_lines(job.folder / "log.jsonl")),
                    seconds=done["seconds"],
                    cpu_seconds=done["cpu_seconds"],
                    peak_mib=done["peak_mib"],
                    calls=done["calls"],
                    **common,
                )
            )
        for folder in _reference_folders(job):
            scores, images = read_scores(folder, measures)
            name = folder.name if job.cell is None else f"{job.cell.arm}: {folder.name}"
            rows.append(Row(arm=None, reference=name, overrides={}, scores=scores, images=images, **common))
    return SweepRecords(tuple(sorted(rows, key=lambda row: row.seed)), environments, experiment.domain)


def read_scores(folder: Path, measures: Sequence[Measure]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The set's score by measure, and the scores of single images by measure and image.

    Raises:
        UserError: no scores, no row of the set, or a measure without a finite score.
    """
    path = folder / "scores.jsonl"
    if not path.is_file():
        raise UserError(f"{folder.name}: the domain left no scores.jsonl; expected it at the end of a run")
    found: dict[str, float] | None = None
    images: dict[str, dict[str, float]] = {}
    for row in read_lines(path):
        if row.get("image") is None:
            found = row
            continue
        for measure in measures:
            if measure.per_image and row.get(measure.name) is not None:
                images.setdefault(measure.name, {})[row["image"]] = float(row[measure.name])
    if found is None:
        raise UserError(f'{folder.name}, scores.jsonl: no row with "image": null; expected the scores of the set')
    scores = {measure.name: found.get(measure.name) for measure in measures}
    for name, value in scores.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{folder.name}, scores.jsonl: {name} of the set is {value!r}; expected a finite number")
    return {name: float(value) for name, value in scores.items() if value is not None}, images


def write_records(out: Path, experiment: Experiment, records: SweepRecords, measures: Sequence[Measure]) -> None:
    """Writes the three files into `out`."""
    write_json(
        out / "sweep.json",
        {
            "schema": SCHEMA,
            "name": experiment.name,
            "question": experiment.question,
            "domain": experiment.domain,
            "environments": {key: dict(content) for key, content in sorted(records.environments.items())},
        },
    )
    contents = [asdict(row) for row in records.rows]
    for content in contents:
        del content["images"]
    write_lines(out / "cells.jsonl", contents, allow_nan=False)
    _write_images(out / "images.npz", records, measures)


def read_records(out: Path) -> SweepRecords:
    """The records in `out`.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    path = out / "cells.jsonl"
    about = read_json(out / "sweep.json")
    if about is None or not path.is_file():
        raise UserError(
            f"no records of a sweep in {out}: expected sweep.json, cells.jsonl and images.npz, as made there"
        )
    if about.get("schema") != SCHEMA:
        raise UserError(f"{out / 'sweep.json'}: schema {about.get('schema')!r}; this version reads {SCHEMA}")
    images = _read_images(out / "images.npz")
    rows = []
    for number, content in enumerate(read_lines(path)):
        try:
            row = Row(**{**content, "images": {name: scores[number] for name, scores in images.items()}})
        except (TypeError, IndexError) as error:
            raise UserError(f"{path}, line {number + 1} is no row of a sweep: {error}") from error
        rows.append(row)
    return SweepRecords(tuple(rows), about.get("environments", {}), about.get("domain", ""))


def refuse_other_settings(records: SweepRecords, experiment: Experiment, out: Path) -> None:
    """Makes sure that records without their cells belong to the file, and to one another.

    Raises:
        UserError: a row was made with other settings than the file's, or with another base or code than the rest.
    """
    for row in records.rows:
        if row.arm is None or row.arm not in {arm.name for arm in experiment.arms}:
            continue
        expected = json.loads(json.dumps(experiment.overrides(experiment.arm(row.arm))))
        if dict(row.overrides) != expected:
            raise UserError(
                f"{out / 'cells.jsonl'}: {row.arm}, seed {row.seed} was made with {dict(row.overrides)}; the file now "
                f"has {expected}. Nothing is mixed: measure anew in another --out"
            )
    for name in ("base", "code"):
        values = sorted({getattr(row, name) for row in records.rows})
        if len(values) > 1:
            raise UserError(f"{out / 'cells.jsonl'}: rows of more than one {name} ({', '.join(values)}); expected one")


def _reference_folders(job: Job) -> list[Path]:
    """The folders of reference rows of a job: in the domain's order for a seed's, by name for those of a cell."""
    if job.cell is None:
        return [job.folder / name for name in job.origin["references"]]
    return sorted((path for path in (job.folder / "references").glob("*") if path.is_dir()), key=_by_number)


def _by_number(path: Path) -> tuple[str, float]:
    """Sorts "unsharp 0.3" before "unsharp 0.15" by the number, not by the letters."""
    words, _, last = path.name.rpartition(" ")
    try:
        return words, float(last)
    except ValueError:
        return path.name, 0.0


def _log_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    second_half = rows[len(rows) // 2 :]
    means: dict[str, float] = {}
    for name in dict.fromkeys(key for row in second_half for key in row):
        values = [row[name] for row in second_half if isinstance(row.get(name), int | float)]
        if name != "step" and values and all(map(math.isfinite, values)):
            means[name] = math.fsum(values) / len(values)
    return means


def _write_images(path: Path, records: SweepRecords, measures: Sequence[Measure]) -> None:
    arrays: dict[str, Any] = {"rows": np.array([f"{row.name}, seed {row.seed}" for row in records.rows], dtype=str)}
    for measure in measures:
        names = list(dict.fromkeys(image for row in records.rows for image in row.images.get(measure.name, ())))
        if not names:
            continue
        values = [[row.images.get(measure.name, {}).get(image) for image in names] for row in records.rows]
        decimals = measure.digits + 2
        arrays[f"{measure.name}.decimals"] = np.array(decimals)
        arrays[f"{measure.name}.images"] = np.array(names, dtype=str)
        arrays[measure.name] = _as_integers(values, decimals)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _as_integers(values: Sequence[Sequence[float | None]], decimals: int) -> NDArray[np.int32]:
    """Rounded to `decimals`: integers of a small range compress to half the size of floats."""
    floats = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=np.float64)
    limit = np.iinfo(np.int32).max
    scaled = np.clip(np.rint(floats * 10**decimals), -limit, limit)
    return np.where(np.isnan(floats), ABSENT, np.nan_to_num(scaled)).astype(np.int32)


def _read_images(path: Path) -> dict[str, list[dict[str, float]]]:
    """By measure, for each row the scores by image."""
    if not path.is_file():
        return {}
    found: dict[str, list[dict[str, float]]] = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            if name == "rows" or name.endswith((".decimals", ".images")):
                continue
            names = arrays[f"{name}.images"].tolist()
            scale = 10.0 ** -int(arrays[f"{name}.decimals"])
            found[name] = [
                {image: value * scale for image, value in zip(names, line, strict=True) if value != ABSENT}
                for line in arrays[name].tolist()
            ]
    return found
