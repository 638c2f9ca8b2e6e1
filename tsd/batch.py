"""A batch of pictures: which file becomes which, and the loop in which one bad file never ends the work.

`tsd restore` and `bench apply` share it. It imports `tsd.images`, which reads and writes, only when the work begins.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.config import enlarged_size
from tsd.errors import UserError
from tsd.files import (
    MEGAPIXELS_HELP,
    READABLE,
    WRITABLE,
    find_images,
    free_bytes,
    human_size,
    real_path,
    require_room,
    require_writable,
)

if TYPE_CHECKING:
    from tsd.console.stages import Progress
    from tsd.images import Picture, Scan

LEAST_BYTES_PER_PIXEL = 0.1
"""No photograph of 8 bits is smaller as a file of any of the formats, so that less room than that cannot be enough."""
SUFFIXES = ("png", "jpg", "webp", "tiff", "bmp")
FILES = """\
files:
  Reads PNG, JPEG (JFIF), WebP, TIFF, BMP, GIF, AVIF, and HEIC where the package pillow-heif is
  installed: gray, palette, alpha (enlarged with the picture), CMYK (converted to sRGB), 16 bit
  (kept in PNG and TIFF). EXIF orientation is applied, the colour profile is kept, other metadata is
  dropped. If a file has several frames or pages, the first is read, with a warning. Hidden and
  system files are left out. A file that cannot be read is listed at the end; the others are still
  done, and the exit status is 1.
"""
"""What the help of a verb says about files."""


@dataclass(frozen=True)
class Job:
    """One image and its result. `name` is its path inside the given input without suffix; seeds are made of it."""

    source: Path
    name: str
    target: Path


@dataclass
class Outcome:
    """What became of a batch.

    Attributes:
        done: one JSON-able entry for each written picture.
        failed: why the others were not written, by input.
    """

    done: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    failed: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Written:
    """A result that is in its file already, since it may be larger than memory.

    Attributes:
        size: (width, height).
        notes: what a user should know about it.
        facts: further entries of the report, JSON-able.
    """

    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    facts: dict[str, object] = field(default_factory=dict[str, object])


def add_files(parser: argparse.ArgumentParser) -> None:
    """The arguments that `plan_jobs` takes: inputs, output, format, and what happens to results that exist."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image files or folders")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("restored"), metavar="OUT",
        help="folder for the results, or a file name if the only input is a file (default: restored/)",
    )  # fmt: skip
    parser.add_argument("--max-megapixels", type=float, metavar="N", help=MEGAPIXELS_HELP)
    parser.add_argument("--format", choices=SUFFIXES, help="format of the results (default: png, or that of OUT)")
    exists = parser.add_mutually_exclusive_group()
    exists.add_argument("--overwrite", action="store_true", help="replace results that exist")
    exists.add_argument("--skip-existing", action="store_true", help="leave results that exist as they are")


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """Pairs inputs with outputs, as `add_files` declares them, before any work.

    Raises:
        UserError: no images, results that exist, two inputs for one result, a result that would replace an input, or a
            folder that cannot be written to.
    """
    named = _named_file(args)
    require_writable(args.output.parent if named else args.output)
    jobs = named or _in_folder(args)
    by_target: dict[Path, list[Path]] = {}
    for job in jobs:
        by_target.setdefault(job.target, []).append(job.source)
    for target, sources in by_target.items():
        if len(sources) > 1:
            raise UserError(
                f"{' and '.join(map(str, sources[:3]))} would both be written to {target}; rename one, or restore them "
                f"into different folders"
            )
    resolved = {real_path(job.source) for job in jobs}
    inputs = [job.target for job in jobs if real_path(job.target) in resolved]
    if inputs:
        raise UserError(
            f"{inputs[0]} is one of the inputs and would be replaced by a result; choose another output (-o)"
        )
    existing = [job for job in jobs if os.path.exists(job.target)]
    if args.skip_existing:
        if existing:
            print(f"{len(existing)} of {len(jobs)} results exist and are left as they are", file=sys.stderr)
        there = set(existing)
        return [job for job in jobs if job not in there]
    if existing and not args.overwrite:
        raise UserError(
            f"{existing[0].target} exists{f', and {len(existing) - 1} more' if len(existing) > 1 else ''}; give "
            f"--overwrite to replace, --skip-existing to do only what is missing, or another output (-o)"
        )
    return jobs


def input_sizes(jobs: Sequence[Job]) -> dict[Job, tuple[int, int]]:
    """(width, height) of the upright inputs, without those that cannot be opened: run_batch tells of them."""
    from tsd.images import ImageError, picture_size

    sizes: dict[Job, tuple[int, int]] = {}
    for job in jobs:
        with suppress(ImageError, OSError):
            sizes[job] = picture_size(job.source)
    return sizes


def described(sizes: dict[Job, tuple[int, int]], scale: float) -> str:
    """`3 images of 512x512 to 2048x2048 pixels, …`: what will come out, and the room for it.

    Args:
        sizes: see `input_sizes`; one or more.

    Raises:
        UserError: the disk cannot hold them.
    """
    results = [enlarged_size(*size, scale) for size in sizes.values()]
    pixels = [width * height for width, height in results]
    low, high = ("x".join(map(str, results[pixels.index(end)])) for end in (min(pixels), max(pixels)))
    place = next(iter(sizes)).target.parent
    require_room(place, int(LEAST_BYTES_PER_PIXEL * sum(pixels)), "choose another output (-o)")
    return (
        f"{len(sizes)} image{'s' * (len(sizes) > 1)} of {low if low == high else f'{low} to {high}'} pixels, "
        f"{sum(pixels) / 1e6:,.1f} megapixels in all; up to {human_size(3 * sum(pixels))} at 8 bits, "
        f"{human_size(free_bytes(place))} are free"
    )


def run_batch(
    jobs: Sequence[Job],
    scale: float,
    restore: "Callable[[Scan, Job, Progress], Picture | Written]",
) -> Outcome:
    """Reads, restores and writes every picture; prints a line for each result and for each note.

    Args:
        scale: how many times as large the results are, to refuse early what a format cannot hold.
        restore: makes the result, or writes it itself; it tells how far it is as `tsd.console.stages` says.

    An interruption says how much is done and ends the batch; no error of a single picture does.
    """
    from tsd.console.progress import Progress, Stages
    from tsd.console.stages import WRITE
    from tsd.images import ImageError, read_scan
    from tsd.writing import check_size, write_picture

    outcome = Outcome()
    try:
        with Progress(jobs, unit="image") as bar:
            for job in bar:
                start = time.perf_counter()
                try:
                    scan = read_scan(job.source)
                    check_size(*enlarged_size(*scan.size, scale), job.target)
                    with Stages(job.name) as stages:
                        result = restore(scan, job, stages)
                        if not isinstance(result, Written):
                            stages(WRITE, 0, 1)
                            result = Written(result.size, tuple(write_picture(result, job.target)))
                            stages(WRITE, 1, 1)
                    notes = (*scan.notes, *result.notes)
                except ImageError as error:
                    outcome.failed[str(job.source)] = str(error)
                    continue
                except Exception as error:  # one bad image never ends a batch
                    known = isinstance(error, UserError | OSError)
                    outcome.failed[str(job.source)] = (
                        f"{job.source}: {'' if known else f'{type(error).__name__}: '}{error}"
                    )
                    continue
                seconds = time.perf_counter() - start
                width, height = result.size
                bar.write(f"{job.source} -> {job.target} ({width}x{height}, {seconds:.1f} s)", file=sys.stdout)
                for note in notes:
                    bar.write(f"warning: {job.source}: {note}", file=sys.stderr)
                outcome.done.append({
                    "input": str(job.source), "output": str(job.target), "name": job.name, "size": [width, height],
                    "seconds": round(seconds, 3), "notes": list(notes), **result.facts,
                })  # fmt: skip
    except KeyboardInterrupt:  # what continues is said by the command line itself
        done, failed = len(outcome.done), len(outcome.failed)
        print(f"{done} of {len(jobs)} images are done, {failed} failed", file=sys.stderr)
        raise
    return outcome


def status_of(outcome: Outcome) -> int:
    """The exit status of a finished batch: 0, or 1 if some failed, which are listed."""
    if not outcome.failed:
        return 0
    print(f"{len(outcome.failed)} of {len(outcome.failed) + len(outcome.done)} images failed:", file=sys.stderr)
    for message in outcome.failed.values():
        print(f"  {message}", file=sys.stderr)
    return 1


def _named_file(args: argparse.Namespace) -> list[Job]:
    """The one job whose output is a file name; no job if the output is a folder."""
    out, (source, *others) = args.output, args.inputs
    if out.suffix.lower() not in WRITABLE or out.is_dir():
        if out.suffix.lower() in READABLE and not out.is_dir():
            raise UserError(
                f"the output {out} would be a {out.suffix}, which is not written; use {', '.join(WRITABLE)}"
            )
        if out.is_file():
            raise UserError(f"the output {out} is a file without an image's suffix; give a folder or an image's name")
        return []
    if others or source.is_dir():
        raise UserError(f"the output {out} is a file name, but there is more than one input; give a folder")
    if not source.is_file():
        raise UserError(f"no such file or folder: {source}")
    if args.format is not None and WRITABLE[out.suffix.lower()] != WRITABLE[f".{args.format}"]:
        raise UserError(f"the output {out} and --format {args.format} disagree; leave one away")
    return [Job(source, source.stem, out)]


def _in_folder(args: argparse.Namespace) -> list[Job]:
    suffix, out = f".{args.format or 'png'}", args.output
    jobs: dict[tuple[Path, Path], Job] = {}
    for given in args.inputs:
        if given.is_dir():
            found = find_images(given, exclude=out)  # earlier results in a folder below the input are no inputs
            passed_over = found.passed_over()
            if not found.images:
                raise UserError(
                    f"no images in {given} or its sub-folders{f', but {passed_over}' if passed_over else ''}; looked "
                    f"for {', '.join(READABLE)}"
                )
            if passed_over:
                print(f"{given}: passed over what is no image: {passed_over}", file=sys.stderr)
            named = [(path, path.relative_to(given).with_suffix("")) for path in found.images]
        elif given.is_file() or given.is_symlink():
            named = [(given, Path(given.stem))]
        else:
            raise UserError(f"no such file or folder: {given}")
        for path, name in named:
            target = (out / name).with_name(name.name + suffix)
            jobs.setdefault((real_path(path), target), Job(path, name.as_posix(), target))
    return list(jobs.values())
