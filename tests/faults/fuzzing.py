"""Broken inputs from a seed: a reader gives a clear error or the right result; no traceback, hang or silent change.

Needs no torch. What a mutation that keeps a file well-formed does to a number inside it, nobody can see: such a file is
refused where a hash guards it, and counted as right here where none does.
"""

import json
import os
import random
import shutil
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tsd.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 30
WORDS = (
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"9" * 5000,
    b'""',
    b"[]",
    b"{}",
    b'"../../x"',
    b"\xff",
    b"[" * 9000,
)


class Lost(Exception):
    """A reader went on with something wrong."""


@dataclass
class Outcome:
    """How many mutants gave the right result, how many a clear error, and what was lost."""

    cases: int = 0
    right: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A form of input.

    Attributes:
        originals: file name -> content.
        read: reads the mutant at a path; raises UserError, or `Lost` for a wrong result.
        text: whether values are replaced too, as an editor would.
    """

    name: str
    originals: dict[str, bytes]
    read: Callable[[Path], None]
    text: bool = False


def mutated(content: bytes, draw: random.Random, text: bool) -> bytes:
    """One to three small changes: bits, cuts, repeats, noise, extreme numbers; of text also values and lines."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content) or 1)
        end = min(len(content), at + draw.choice((1, 4, 16, 200)))
        kind = draw.randrange(10 if text else 7)
        if kind == 0:
            content = (
                content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :] if content else b"\0"
            )
        elif kind == 1:
            content = content[:at]
        elif kind == 2:
            content = content[:at] + content[end:]
        elif kind == 3:
            content = content[:at] + content[at:end] * 2 + content[end:]
        elif kind == 4:
            content = content[:at] + draw.randbytes(end - at) + content[end:]
        elif kind == 5:
            content = content[:at] + draw.choice((b"\xff", b"\0", b"\x7f")) * (end - at) + content[end:]
        elif kind == 6:
            content = content[:at] + draw.randbytes(draw.choice((1, 30))) + content[at:]
        elif kind == 7:
            content = with_value(content, draw)
        else:
            lines = content.split(b"\n")
            chosen = draw.randrange(len(lines))
            lines[chosen : chosen + 1] = [] if kind == 8 else [lines[chosen], lines[chosen]]
            content = b"\n".join(lines)
    return content


def with_value(content: bytes, draw: random.Random) -> bytes:
    """One value of JSON or TOML becomes another: what stands between a separator and the next."""
    starts = [index + 1 for index, byte in enumerate(content) if byte in b":=[,"]
    if not starts:
        return content
    start = draw.choice(starts)
    ends = [index for index in range(start, len(content)) if content[index] in b",]}\n"]
    return content[:start] + b" " + draw.choice(WORDS) + content[ends[0] if ends else len(content) :]


@contextmanager
def time_limit() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise Lost(f"hangs: not done after {LIMIT_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(place: Path, seed: int, mutants: int) -> dict[str, Outcome]:
    """Feeds `mutants` broken inputs of each form to its reader."""
    found = {}
    for subject in subjects():
        outcome = found[subject.name] = Outcome()
        for name, content in subject.originals.items():
            subject.read(write(place / subject.name / f"original {name}" / name, content))  # must not raise
        for number in range(mutants):
            draw = random.Random(f"{seed} {subject.name} {number}")
            name = draw.choice(sorted(subject.originals))
            path = write(
                place / subject.name / str(number) / name, mutated(subject.originals[name], draw, subject.text)
            )
            outcome.cases += 1
            try:
                with time_limit(), warnings.catch_warnings(action="ignore"):
                    subject.read(path)
                outcome.right += 1
            except UserError as error:
                outcome.refused += 1
                if not str(error).strip():
                    outcome.lost.append(f"mutant {number} of {name}: an error without a message")
            except Lost as error:
                outcome.lost.append(f"mutant {number} of {name}: {error}")
            except Exception as error:
                outcome.lost.append(f"mutant {number} of {name}: {type(error).__name__}: {str(error)[:150]}")
            shutil.rmtree(path.parent)
    return found


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# -- what is read ------------------------------------------------------------------------------------------------------


def subjects() -> list[Subject]:
    """Images, safetensors, checkpoints, cards, records, manifests and archives."""
    return [images(), safetensors(), checkpoints(), cards(), records(), manifests(), archives()]


def images() -> Subject:
    from tsd.images import read_picture

    y, x = np.mgrid[0:40, 0:56]
    pixels = np.stack([x * 4, y * 6, (x * y) % 256], axis=-1).astype(np.uint8)
    picture = Image.fromarray(pixels)
    originals = {}
    for name, options in {
        "a.png": {}, "b.jpg": {"quality": 90}, "c.webp": {"lossless": True}, "d.tif": {"compression": "tiff_lzw"},
        "e.bmp": {}, "f.gif": {}, "g.tif": {},
    }.items():  # fmt: skip
        file = BytesIO()
        picture.save(file, Image.registered_extensions()[Path(name).suffix], **options)
        originals[name] = file.getvalue()
    file = BytesIO()
    Image.fromarray((x * y).astype(np.uint16)).save(file, "PNG")
    originals["h.png"] = file.getvalue()
    right = {}

    def read(path: Path) -> None:
        color = read_picture(path).color
        if color.ndim != 3 or color.shape[2] != 3 or not np.isfinite(color).all() or color.min() < 0 or color.max() > 1:
            raise Lost("not a picture with values from 0 to 1")
        expected = right.setdefault(path.name, color)
        if path.suffix == ".png" and (color.shape != expected.shape or (color != expected).any()):
            raise Lost("other pixels, although PNG has checksums")

    return Subject("images", originals, read)


def safetensors() -> Subject:
    import safetensors.numpy

    from bench.store.content import content_fault

    content = safetensors.numpy.save(
        {"a.weight": np.arange(60, dtype=np.float32).reshape(6, 10), "b": np.ones(3, np.float16)}, {"alpha": "4"}
    )

    def read(path: Path) -> None:
        if fault := content_fault(path, path.name):
            raise UserError(fault)
        try:
            safetensors.numpy.load_file(path)
        except Exception as error:
            raise Lost(f"taken for a file of weights, and does not load: {error}") from error

    return Subject("safetensors", {"net.safetensors": content}, read)


def checkpoints() -> Subject:
    """torch's files, as far as they are looked at without torch: before their hash is recorded."""
    from bench.store.content import content_fault

    file = BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("net/data.pkl", b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.")
        content.writestr("net/data/0", bytes(range(256)))
        content.writestr("net/version", b"3\n", zipfile.ZIP_DEFLATED)

    def read(path: Path) -> None:
        if fault := content_fault(path, path.name):
            raise UserError(fault)

    return Subject("checkpoints", {"net.pth": file.getvalue()}, read)


def cards() -> Subject:
    from bench.cards.card import CARDS, Card, read_card

    def read(path: Path) -> None:
        if not isinstance(read_card(path), Card):
            raise Lost("no card")

    names = ("bsrgan.toml", "adcsr.toml", "pisa-sr.toml")
    return Subject("cards", {name: (CARDS / name).read_bytes() for name in names}, read, text=True)


def records() -> Subject:
    """The records of one method; a row that can no longer be read must not vanish, but for a torn last one."""
    from bench.records.records import Records

    folder = ROOT / "reports" / "mini" / "records"
    originals = {"mini.json": (folder / "table1.json").read_bytes()}
    for name in ("run.json", "images.jsonl", "scores.psnr.jsonl"):
        originals[name] = b"".join((folder / "mini" / "bicubic" / name).read_bytes().splitlines(keepends=True)[:6]) \
            if name.endswith("l") else (folder / "mini" / "bicubic" / name).read_bytes()  # fmt: skip

    def read(path: Path) -> None:
        out = path.parent / "out"
        target = out / "records" / path.name if path.name == "mini.json" else out / "records/mini/bicubic" / path.name
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
        found = Records(out)
        method = found.of("mini", "bicubic")
        if path.name == "mini.json":
            for plan in found.plans():
                for testset in plan.testsets:
                    for name in testset.names:
                        method.image_path(name)
        elif path.name == "run.json":
            run = method.run()
            assert run is not None
            run.identity()
            found.measured()
        else:
            rows = method.images() if path.name == "images.jsonl" else method.scores("psnr")
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            names = {json.loads(line)["name"] for line in whole.splitlines()}
            if rows.keys() != names:
                raise Lost("rows have vanished")
            for name in rows:
                method.image_path(name)

    return Subject("records", originals, read, text=True)


def manifests() -> Subject:
    from bench.testsets import manifest

    source = ROOT / "datasets" / "mini"
    content = json.loads((source / "manifest.json").read_text())
    content["images"] = content["images"][:2]
    content["count"] = 2
    hashes = {entry["lr_sha256"] for entry in content["images"]}

    def read(path: Path) -> None:
        folder = path.parent / "datasets" / "mini"
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "manifest.json")
        for side in ("test_LR", "test_HR"):
            os.symlink(source / side, folder / side)
        before = manifest.DATASETS
        manifest.DATASETS = folder.parent
        try:
            found = manifest.load_testset("mini")
            if not {image.lr_sha256 for image in found.images} <= hashes:
                raise Lost("other images")
            manifest.names_of("mini"), manifest.folders_of("mini"), manifest.lr_size_of("mini")
        finally:
            manifest.DATASETS = before

    return Subject("manifests", {"manifest.json": json.dumps(content, indent=1).encode()}, read, text=True)


def archives() -> Subject:
    from bench.fetch.testsets import extract_testset

    files = {f"All/Set/{side}/{name}.png": bytes([number]) * 300 + os.fsencode(name)
             for side in ("test_LR", "test_HR") for number, name in enumerate("abc")}  # fmt: skip
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in files.items():
            content.writestr(name, data)
        content.writestr("All/Other/test_LR/x.png", b"x")

    def read(path: Path) -> None:
        out = path.parent / "out" / "deep" / "set"
        with path.open("rb") as archive:
            extract_testset(archive, "Set", out)
        known = set(files.values())
        for written in path.parent.rglob("*"):
            if (
                written.is_file()
                and written != path
                and not (written.is_relative_to(out) and written.read_bytes() in known)
            ):
                raise Lost(f"{written.relative_to(path.parent)} holds other bytes, or lies elsewhere")

    return Subject("archives", {"sets.zip": file.getvalue()}, read)
