"""What a record is: the row types, the plan of a table, their validation, and when a score still counts.

Standard library only, like everything between a record and a table.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard, TypeVar

from tsd.errors import UserError

SCHEMA = 1
WHOLE_SET = "*"
"""The name in the row of a set-level score."""
EXTERNAL = "external"
"""Key in an environment: what the method's own process ran in, where it has one."""
DESCRIPTIONS = ("remarks", "patch_reasons")
"""Keys of a method's provenance that are for readers and change no number: editing them does not make records stale."""


class RecordError(UserError):
    """A record file cannot be used as it is."""


class StaleRecords(UserError):
    """The records were made with other weights, settings or data than those asked for now."""


@dataclass(frozen=True)
class ImageRow:
    """One restored image, or the reason why it could not be restored.

    Attributes:
        name: the image's name in its test set (stem).
        seed: the image's own, as the method was given it; None for published outputs and methods without one.
        lr_sha256, hr_sha256, sr_sha256: of the files, input, ground truth, output. `sr_sha256` is None on failure.
        width, height: of the output, in pixels.
        seconds: of `restore` alone, without loading the method, decoding, encoding; None where nothing was run
            here, or a process of its own over the whole folder.
        environment: key into `Restoration.environments`.
        error: None, or one line saying what went wrong.
    """

    name: str
    seed: int | None
    lr_sha256: str
    hr_sha256: str | None
    sr_sha256: str | None
    width: int | None
    height: int | None
    seconds: float | None
    environment: str
    error: str | None

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True)
class ScoreRow:
    """One value of one metric: for one image, or for a whole set (`name` is `WHOLE_SET`).

    Attributes:
        sr_sha256, hr_sha256: of the files that were compared. For a set, `sr_sha256` is `set_sha256` over names and
            files of both sides, and `hr_sha256` is None.
        n: number of images behind the value.
        protocol: the metric's protocol line; a row counts only under the same protocol.
        weights: sha256 of the metric's weight files by file name.
        versions: of the libraries that computed it.
        error: None, or one line saying why there is no value.
    """

    metric: str
    name: str
    value: float | None
    sr_sha256: str
    hr_sha256: str | None
    n: int
    protocol: str
    weights: dict[str, str]
    versions: dict[str, str]
    error: str | None

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True)
class Restoration:
    """What produced the images of one method on one test set.

    Attributes:
        seed: the run's seed, from which each image's is derived.
        provenance: the method's statement of its weights and settings. Method, seed and provenance without
            `DESCRIPTIONS` are the identity of the run: records of two identities are never mixed.
        environments: machine, device, threads, versions and git commit of every process that added rows, by key.
    """

    method: str
    testset: str
    manifest_sha256: str
    seed: int
    provenance: dict[str, Any]
    environments: dict[str, dict[str, Any]]

    def identity(self) -> dict[str, Any]:
        provenance = {key: value for key, value in self.provenance.items() if key not in DESCRIPTIONS}
        return {"method": self.method, "seed": self.seed, **provenance}


@dataclass(frozen=True)
class PlanSet:
    """A test set of a table. `names` are the images every average must consist of; `total` is the full set's size."""

    name: str
    display: str
    names: list[str]
    total: int


@dataclass(frozen=True)
class PlanMethod:
    """A row of a table. `missing` says by test set what kept it from running, one line per file."""

    name: str
    display: str
    steps: int | None
    missing: dict[str, list[str]]


@dataclass(frozen=True)
class PlanMetric:
    """A column of a table. `missing` says what kept it from being measured, one line per file."""

    name: str
    display: str
    level: str
    needs_reference: bool
    higher_is_better: bool
    decimals: int
    protocol: str
    missing: list[str]


@dataclass(frozen=True)
class Plan:
    """What a table consists of: written when a run starts, so that a table can be rendered from records alone."""

    table: str
    title: str
    profile: str
    seed: int
    paper: str | None
    reference: str
    testsets: list[PlanSet]
    methods: list[PlanMethod]
    metrics: list[PlanMetric]


def valid_scores(rows: Mapping[str, ScoreRow], images: Mapping[str, ImageRow], protocol: str) -> dict[str, ScoreRow]:
    """Those image-level scores, with a value, that belong to the images as they are recorded now."""
    return {
        name: row
        for name, row in rows.items()
        if name in images
        and row.value is not None
        and row.protocol == protocol
        and (row.sr_sha256, row.hr_sha256) == (images[name].sr_sha256, images[name].hr_sha256)
    }


def valid_set_score(
    rows: Mapping[str, ScoreRow], images: Mapping[str, ImageRow], names: list[str], protocol: str
) -> ScoreRow | None:
    """The set-level score, with a value, of exactly these images as they are recorded now."""
    row = rows.get(WHOLE_SET)
    if row is None or row.value is None or row.protocol != protocol or not all(name in images for name in names):
        return None
    return row if row.sr_sha256 == set_sha256(images, names) and row.n == len(names) else None


def set_sha256(images: Mapping[str, ImageRow], names: list[str]) -> str:
    """One hash over a set: names with the sha256 of output and ground truth. Changes when any of them does."""
    lines = [f"{name} {images[name].sr_sha256} {images[name].hr_sha256}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_schema(raw: Any, where: object) -> dict[str, Any]:
    """`raw` without its schema number, once that is known to be ours."""
    if not _is_object(raw):
        raise RecordError(f"{where}: expected a JSON object, found {type(raw).__name__}")
    schema = raw.pop("schema", None)
    if schema != SCHEMA:
        raise RecordError(
            f"{where}: written in record schema {schema!r}, this version reads schema {SCHEMA}: use the version of "
            "bench that wrote it, or another --out"
        )
    return raw


T = TypeVar("T")


def from_json(cls: type[T], raw: Any, where: object) -> T:
    """An instance of a dataclass from its JSON object: exactly its keys, each of its type."""
    expected = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    if not _is_object(raw) or set(raw) != set(expected):
        found = sorted(raw) if _is_object(raw) else type(raw).__name__
        raise RecordError(f"{where}: a {cls.__name__} has the keys {sorted(expected)}, found {found}")
    for name, kind in expected.items():
        if not _matches(raw[name], str(getattr(kind, "__name__", kind)) if isinstance(kind, type) else str(kind)):
            raise RecordError(f"{where}: `{name}` must be {kind}, found {raw[name]!r}")
    return cls(**raw)


def _is_object(raw: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object, whose keys are text."""
    return isinstance(raw, dict)


def _matches(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a field's type, given as written ("str", "int | None", "dict[str, str]")."""
    for option in kind.split(" | "):
        base = option.split("[")[0]
        if base == "None" and value is None:
            return True
        if base == "float" and isinstance(value, int | float) and not isinstance(value, bool):
            return math.isfinite(value)
        if base == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if base in ("str", "dict", "list", "bool") and type(value).__name__ == base:
            return True
    return False
