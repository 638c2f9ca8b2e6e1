"""What moves between versions of the libraries: the mini set restored and scored in one environment after another.

Each environment writes one file, named after its versions of torch and pyiqa. The table compares every file with that
of the newest versions. Two pictures of each image are scored. The first is the input enlarged by Pillow: the same bytes
everywhere, so that only the metric can move. The second comes from the mini student, where the network moves too.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import provenance
from bench.metrics import METRICS, get_metric, missing_metric
from bench.options import SCALE, RunOptions
from bench.provenance import image_seed
from bench.report.csvs import csv_text
from bench.report.folders import FolderPair, score_pairs
from bench.testsets.manifest import load_testset
from tsd.errors import UserError
from tsd.files import sha256_file, write_atomic, write_text

STUDENT = "tsd-sr-mini"
PICTURES = {"bicubic": "the input, enlarged by Pillow", STUDENT: "restored by the mini student"}
MOVING = ("torch", "pyiqa")
SCHEMA = 1


@dataclass(frozen=True)
class Drift:
    """The scores of one environment.

    Attributes:
        versions: of the libraries that restore and score, by name.
        processor: the machine's, since networks round differently on another one.
        hashes: sha256 of every picture, by kind of picture and image.
        scores: values by kind of picture, metric and image.
    """

    versions: dict[str, str]
    processor: str
    hashes: dict[str, dict[str, str]]
    scores: dict[str, dict[str, dict[str, float]]]

    @property
    def name(self) -> str:
        return "_".join(f"{library}-{self.versions.get(library, 'none')}" for library in MOVING)


def measure(options: RunOptions, folder: Path, limit: int | None = None) -> Drift:
    """Restores and scores the mini set here. The pictures are written into `folder`.

    Metrics whose weights are not here are left out. Values of whole sets (FID) are left out: 18 images are too few.
    """
    from bench.methods import get_method
    from bench.methods.base import Method
    from bench.pixels import checked_pixels, png, read_image
    from tsd.console.progress import Progress

    testset = load_testset("mini", limit=limit)
    student = get_method(STUDENT).load(options)
    assert isinstance(student, Method)
    pairs: dict[str, list[FolderPair]] = {kind: [] for kind in PICTURES}
    for image in Progress(testset.images, "restoring", unit="image", leave=False):
        lr = read_image(image.lr)
        restored = student.restore(lr, image_seed(options.seed, image.name))
        pictures = {
            "bicubic": _enlarged(image.lr),
            STUDENT: png(checked_pixels(restored, *lr.shape[-2:])),
        }
        for kind, content in pictures.items():
            path = folder / kind / f"{image.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
            pairs[kind].append(FolderPair(path.name, path, image.hr))
    specs = [spec for spec in map(get_metric, METRICS) if spec.level == "image" and not missing_metric(spec)]
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for kind, images in pairs.items():
        found = score_pairs(images, specs, options.device)["metrics"]
        scores[kind] = {metric: found[metric]["per_image"] for metric in found}
    hashes = {kind: {pair.name: sha256_file(pair.sr) for pair in images} for kind, images in pairs.items()}
    libraries = tuple(dict.fromkeys((*provenance.SCORE_LIBRARIES, *provenance.RESTORE_LIBRARIES)))
    place = provenance.environment(options.device, options.dtype)
    return Drift(provenance.versions(libraries), str(provenance.machine_name(place)), hashes, scores)


def _enlarged(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as picture:
        lr = picture.convert("RGB")
    buffer = io.BytesIO()
    lr.resize((lr.width * SCALE, lr.height * SCALE), Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue()


def write(drift: Drift, out: Path) -> Path:
    """Writes the file of an environment; one of the same versions is replaced, since it is the same question."""
    path = out / f"{drift.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"schema": SCHEMA, **asdict(drift)}, indent=1, sort_keys=True) + "\n")
    return path


def read(out: Path) -> list[Drift]:
    """Every environment's file in `out`, the newest versions first.

    Raises:
        UserError: a file is not one of these, or they are not about the same images.
    """
    from packaging.version import Version

    found: list[Drift] = []
    for path in sorted(out.glob("*.json")):
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            found.append(Drift(**content))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: expected what `bench verify --drift` writes ({error})") from error
    images = [{kind: sorted(hashes) for kind, hashes in drift.hashes.items()} for drift in found]
    for drift, own in zip(found, images, strict=True):
        if own != images[0]:
            raise UserError(f"{out}: {drift.name} is about other images than {found[0].name}; leave out --limit")
    return sorted(found, key=lambda drift: [Version(drift.versions[name]) for name in MOVING], reverse=True)


@dataclass(frozen=True)
class Move:
    """How far one metric is from the newest versions, in one environment.

    Attributes:
        pictures: how many of the n pictures have other bytes than with the newest versions.
        largest: largest change of an image, and the image that has it.
        mean: change of the mean.
    """

    versions: dict[str, str]
    kind: str
    metric: str
    n: int
    pictures: int
    largest: float
    image: str
    mean: float


def moves(drifts: Sequence[Drift]) -> list[Move]:
    """Every environment against the first, by picture and metric; metrics that only one of the two has are left out."""
    newest, found = drifts[0], list[Move]()
    for drift in drifts[1:]:
        for kind in PICTURES:
            other = sum(drift.hashes[kind][name] != sha for name, sha in newest.hashes[kind].items())
            for metric in (name for name in METRICS if name in newest.scores[kind] and name in drift.scores[kind]):
                found.append(_move(drift, kind, metric, other, newest.scores[kind][metric]))
    return found


def _move(drift: Drift, kind: str, metric: str, pictures: int, newest: Mapping[str, float]) -> Move:
    changes = {name: drift.scores[kind][metric][name] - value for name, value in newest.items()}
    image = max(changes, key=lambda name: abs(changes[name]))
    mean = sum(changes.values()) / len(changes)
    versions = {library: drift.versions[library] for library in MOVING}
    return Move(versions, kind, metric, len(changes), pictures, abs(changes[image]), Path(image).stem, mean)


def tabulated(drifts: Sequence[Drift]) -> tuple[str, str]:
    """The table as Markdown and as CSV."""
    from tabulate import tabulate

    newest, found = drifts[0], moves(drifts)
    rows = [
        (
            *move.versions.values(),
            move.kind,
            get_metric(move.metric).display,
            f"{move.pictures} of {move.n}",
            f"{move.largest:.1e}" if move.largest else "0",
            move.image if move.largest else "",
            f"{move.mean:+.1e}" if move.mean else "0",
        )
        for move in found
    ]
    headers = (*MOVING, "picture", "metric", "other bytes", "largest change", "image", "change of the mean")
    scored = ", ".join(get_metric(name).display for name in newest.scores["bicubic"])
    lines = [
        "# What moves between versions",
        "",
        f"Against {', '.join(f'{library} {newest.versions[library]}' for library in MOVING)} "
        f"({newest.processor}), {len(newest.hashes['bicubic'])} images of the mini set.",
        f"Measured: {scored}. Pictures: " + "; ".join(f"`{kind}`, {words}" for kind, words in PICTURES.items()) + ".",
        "",
        tabulate(rows, headers, "pipe", disable_numparse=True) if rows else "One environment only: nothing to compare.",
        "",
    ]
    processors = sorted({drift.processor for drift in drifts})
    if len(processors) > 1:
        lines += [f"Measured on more than one processor, which moves networks too: {'; '.join(processors)}.", ""]
    columns = (*MOVING, "picture", "metric", "n", "other_bytes", "largest", "image", "mean_change")
    values = [
        (*move.versions.values(), move.kind, move.metric, move.n, move.pictures, move.largest, move.image, move.mean)
        for move in found
    ]
    return "\n".join(lines), csv_text([dict(zip(columns, line, strict=True)) for line in values], columns)
