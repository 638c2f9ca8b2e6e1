"""The schema of records: row types, the plan of a table, their validation, and the rule for when a score still counts.

This module imports only the standard library and the ground, like everything between a record and a table.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, TypeGuard, TypeVar, cast

from tsd.errors import UserError

SCHEMA = 1
WHOLE_SET = "*"
"""The name in the row of a set-level score."""
EXTERNAL = "external"
"""Key in an environment: the environment of the method's own process, if it has one."""
ENVIRONMENT_KEYS = {"accelerator", "dtype", "processor", "threads", "versions"}
"""What tables read of an environment, see `bench.provenance.environment`."""
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
        seed: the seed that the method got for this image; None for published outputs and methods without seeds.
        lr_sha256, hr_sha256, sr_sha256: hashes of the files of input, ground truth and output. `sr_sha256` is None
            on failure.
        width, height: size of the output in pixels.
        seconds: time of `restore` alone, without loading the method, decoding and encoding; None on
            failure and for published outputs. A method that runs in its own process over the whole folder is timed
            there, where its card says what counts; the first image of the process is not.
        environment: key into `Restoration.environments`.
        error: one line that says what went wrong; None on success.
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
        sr_sha256, hr_sha256: hashes of the compared files. For a set, `sr_sha256` is `set_sha256` over names and
            files of both sides, and `hr_sha256` is None.
        n: number of images behind the value.
        protocol: the metric's protocol line; a row counts only under the same protocol.
        weights: sha256 of the metric's weight files by file name.
        versions: versions of the libraries that computed it.
        error: one line that says why there is no value; None if there is one.
        lr_sha256: hash of the input, for metrics that compare with it; None for all others.
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
    lr_sha256: str | None = None

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True)
class Restoration:
    """What produced the images of one method on one test set.

    Attributes:
        seed: the run's seed, from which the seed of each image is derived.
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
    """A test set of a table. Every average is over exactly the images `names`; `total` is the size of the full set."""

    name: str
    display: str
    names: list[str]
    total: int


@dataclass(frozen=True)
class PlanMethod:
    """A row of a table. `missing` says for each test set what kept the method from running, one line per file."""

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
    """What a table consists of. It is written when a run starts, so that a table can be rendered from records alone."""

    table: str
    title: str
    profile: str
    seed: int
    paper: str | None
    reference: str
    testsets: list[PlanSet]
    methods: list[PlanMethod]
    metrics: list[PlanMetric]

    def referring_to(self, reference: str) -> "Plan":
        """This plan with paired differences to the row `reference`.

        Raises:
            UserError: the table has no row of that name.
        """
        names = [method.name for method in self.methods]
        if reference not in names:
            raise UserError(f"no row {reference!r} to refer differences to; the table has {', '.join(names)}")
        return replace(self, reference=reference)


@dataclass(frozen=True)
class VerifiedMetric:
    """One metric, computed here for images whose scores their authors logged.

    Attributes:
        log: name of the golden log ("osediff-realsr").
        about: the log in words that follow "against".
        protocol: the protocol line under which it was computed; it says nothing about scores under another one.
        n, total: images that were compared, and images of the log.
        largest: largest difference of an image, of `image`; of a whole set its difference, and `image` is `WHOLE_SET`.
        mean_change: the difference of the means over the compared images.
        agrees: whether both are within their tolerances; of a part of the images only the largest difference counts.
    """

    metric: str
    display: str
    log: str
    about: str
    protocol: str
    n: int
    total: int
    largest: float
    image: str
    mean_change: float
    agrees: bool


@dataclass(frozen=True)
class Verification:
    """What `bench verify` found on one machine. Attached to a run, its tables say so.

    Attributes:
        date: the day, ISO 8601.
        environment: machine, device and commit, as `bench.provenance.environment` states them.
        versions: of the libraries that compute scores.
    """

    date: str
    environment: dict[str, Any]
    versions: dict[str, str]
    metrics: list[VerifiedMetric]


@dataclass(frozen=True)
class Rescored:
    """One metric of one method on one test set, computed again from the recorded images by `bench verify --rescore`.

    Attributes:
        date: the day, ISO 8601.
        by: who says so, as they wrote it; None if nobody did.
        values_sha256: of the recorded values it was compared with (`values_sha256`). The row says nothing of others.
        n, total: images that were computed again, and images with a recorded value.
        largest: largest difference of an image, of `image`; of a whole set its difference, and `image` is `WHOLE_SET`.
        allowed: the largest difference that counts as the same.
        environment: machine, device and commit, as `bench.provenance.environment` states them.
        versions: of the libraries that compute scores.
    """

    metric: str
    protocol: str
    date: str
    by: str | None
    values_sha256: str
    n: int
    total: int
    largest: float
    image: str
    allowed: float
    agrees: bool
    environment: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class Publication:
    """The records were sent to a data set on the hub.

    Attributes:
        date: the day in UTC, ISO 8601.
        by: who measured, as they wrote it.
        to: the data set, OWNER/NAME.
        bench: the version that sent them.
        images: whether restored images went with them.
    """

    date: str
    by: str
    to: str
    bench: str
    images: bool


def values_sha256(rows: Mapping[str, ScoreRow]) -> str:
    """One hash over scores with their names and the hashes of what they compare. It changes if any of them does."""
    lines = [
        f"{name} {row.value!r} {row.sr_sha256} {row.hr_sha256} {row.lr_sha256}\n" for name, row in sorted(rows.items())
    ]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def valid_scores(rows: Mapping[str, ScoreRow], images: Mapping[str, ImageRow], protocol: str) -> dict[str, ScoreRow]:
    """The image-level scores that have a value and belong to the images as they are recorded now."""
    return {
        name: row
        for name, row in rows.items()
        if name in images
        and row.value is not None
        and row.protocol == protocol
        and (row.sr_sha256, row.hr_sha256) == (images[name].sr_sha256, images[name].hr_sha256)
        and row.lr_sha256 in (None, images[name].lr_sha256)
    }


def valid_set_score(
    rows: Mapping[str, ScoreRow], images: Mapping[str, ImageRow], names: list[str], protocol: str
) -> ScoreRow | None:
    """The set-level score of exactly these images as they are recorded now; None if it is missing or has no value."""
    row = rows.get(WHOLE_SET)
    if row is None or row.value is None or row.protocol != protocol or not all(name in images for name in names):
        return None
    return row if row.sr_sha256 == set_sha256(images, names) and row.n == len(names) else None


def set_sha256(images: Mapping[str, ImageRow], names: list[str]) -> str:
    """One hash over the names and the sha256 of outputs and ground truths of a set. It changes if any of them does."""
    lines = [f"{name} {images[name].sr_sha256} {images[name].hr_sha256}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_schema(raw: Any, where: object) -> dict[str, Any]:
    """Checks the schema number of a record; returns the record without it."""
    if not _is_object(raw):
        raise RecordError(f"{where}: expected a JSON object, found {type(raw).__name__}")
    schema = raw.pop("schema", None)
    if schema != SCHEMA:
        raise RecordError(
            f"{where}: written in record schema {schema!r}, this version reads schema {SCHEMA}: use the version of "
            "bench that wrote it, or another --out"
        )
    return raw


def check_environments(environments: Mapping[str, Any], where: object) -> None:
    """Makes sure that every environment of a record says what tables print of it.

    Raises:
        RecordError: a key is missing, or the versions are no object.
    """
    for key, content in environments.items():
        lacking = sorted(ENVIRONMENT_KEYS - set(content)) if _is_object(content) else sorted(ENVIRONMENT_KEYS)
        if lacking:
            raise RecordError(f"{where}: environment `{key}` lacks {', '.join(lacking)}; expected what `bench` wrote")
        if not _is_object(content["versions"]):
            raise RecordError(f"{where}: `versions` of environment `{key}` must be dict, found {content['versions']!r}")


T = TypeVar("T")


def from_json(cls: type[T], raw: Any, where: object) -> T:
    """Builds a dataclass from a JSON object, which must have exactly its fields, each of the right type.

    A field with a default may be absent: records that were written before it existed stay as they are.
    """
    expected = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    if _is_object(raw):
        raw = {field.name: field.default for field in fields(cls) if field.default is not MISSING} | raw  # type: ignore[arg-type]
    if not _is_object(raw) or set(raw) != set(expected):
        found = sorted(raw) if _is_object(raw) else type(raw).__name__
        raise RecordError(f"{where}: a {cls.__name__} has the keys {sorted(expected)}, found {found}")
    for name, kind in expected.items():
        if not _matches(raw[name], str(getattr(kind, "__name__", kind)) if isinstance(kind, type) else str(kind)):
            raise RecordError(f"{where}: `{name}` must be {kind}, found {raw[name]!r}")
    return cls(**raw)


def list_from_json(cls: type[T], raw: dict[str, Any], key: str, where: object) -> list[T]:
    """Builds the dataclasses of a list in a JSON object."""
    items = raw.get(key)
    if not isinstance(items, list):
        raise RecordError(f"{where}: `{key}` must be a list")
    return [from_json(cls, item, where) for item in cast(list[Any], items)]


def to_json(record: Any) -> dict[str, Any]:
    """The JSON object of a record, without fields that hold their default."""
    content = asdict(record)
    return {
        field.name: content[field.name]
        for field in fields(record)
        if field.default is MISSING or content[field.name] != field.default
    }


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
            return abs(value) <= sys.float_info.max
        if base == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if base in ("str", "dict", "list", "bool") and type(value).__name__ == base:
            return True
    return False
