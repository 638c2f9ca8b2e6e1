"""`tsd restore`: restores files and folders of images; each result is written completely or not at all."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tsd.errors import UserError
from tsd.files import MEGAPIXELS_HELP, READABLE, WRITABLE, find_images, human_size
from tsd.precision import PRECISIONS

if TYPE_CHECKING:
    from tqdm import tqdm

DESCRIPTION = """\
Restores and enlarges images in one step. Folders are searched recursively, and OUT gets the same
sub-folders. Without --model the mini model shipped in the package is used: no download, no GPU.
"""
EPILOG = """\
examples:
  tsd restore photo.jpg                                       writes restored/photo.png
  tsd restore photos/ scan.tif -o restored/ --skip-existing   continue after an interruption
  tsd restore photo.jpg -o photo_x4.webp --color adain
  tsd restore panorama.tif -o out/ --memory 3                 in pieces that fit into 3 GB
  tsd restore photo.png -o out/ --model sd3/ --lora tsdsr/ --prompt-embeds default/ \\
              --device cuda --dtype bf16

files:
  Reads PNG, JPEG (JFIF), WebP, TIFF, BMP, GIF, AVIF, and HEIC where the package pillow-heif is
  installed: gray, palette, alpha (enlarged with the picture), CMYK (converted to sRGB), 16 bit
  (kept in PNG and TIFF). EXIF orientation is applied, the colour profile is kept, other metadata is
  dropped. If a file has several frames or pages, the first is read, with a warning. Hidden and
  system files are left out. A file that cannot be read is listed at the end; the others are still
  done, and the exit status is 1.

large images:
  An image that would not fit into the free memory is restored in pieces, from file to file, which
  is said in one line. PNG and TIFF are written row by row; other formats hold the result at 8 bits.
  --memory 3 plans for 3 GB.

settings:
  Options on the command line win over what restore.json in the LoRA folder recommends, and that
  wins over the defaults, which are those of the TSD-SR authors' script.

models:
  SD3-medium is the hub id stabilityai/stable-diffusion-3-medium-diffusers (gated), or a folder
  with the same files.
"""
SUFFIXES = ("png", "jpg", "webp", "tiff", "bmp")
SETTINGS = ("scale", "color", "posterior", "process_size", "seed", "tile", "tile_overlap", "vae_tile")

LARGE = 2048**2  # processed pixels above which enlarging a small input takes noticeable time


@dataclass(frozen=True)
class Job:
    """One image to restore. `name` is its path inside the given input without suffix; it seeds the posterior sample."""

    source: Path
    name: str
    target: Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb to `tsd`."""
    parser = subparsers.add_parser(
        "restore",
        help="restore and enlarge images with a trained student",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    weights = parser.add_argument_group("weights")
    weights.add_argument(
        "--model", metavar="DIR",
        help="model folder in diffusers layout, or hub id (default: the mini model shipped in the package)",
    )  # fmt: skip
    weights.add_argument("--lora", metavar="DIR", help="student folder (default: lora/tsdsr of the model folder)")
    weights.add_argument(
        "--prompt-embeds", metavar="DIR", help="folder with the prompt embeddings (default: the student's own)"
    )
    weights.add_argument(
        "--decoder", metavar="DIR",
        help="small decoder to use in the VAE's place: faster, nearly the same image (an AutoencoderTiny such as "
        "TAESD3, or what tsd distill-decoder wrote)",
    )  # fmt: skip
    settings = parser.add_argument_group("settings")
    settings.add_argument("--scale", type=int, metavar="N", help="enlargement (default: 4)")
    settings.add_argument(
        "--color", choices=("wavelet", "adain", "none"),
        help="how colours are aligned with the input (default: wavelet)",
    )  # fmt: skip
    settings.add_argument(
        "--posterior", choices=("sample", "mode"),
        help="encode the input as a sample of the encoder's distribution (sample), or as its mean (mode) "
        "(default: sample)",
    )  # fmt: skip
    settings.add_argument(
        "--process-size", type=int, metavar="N",
        help="smallest short side to work at, in output pixels; smaller images are enlarged first; 0: no minimum "
        "(default: 512)",
    )  # fmt: skip
    settings.add_argument(
        "--seed", type=int, metavar="N",
        help="seed of --posterior sample, together with the image's name (default: 42)",
    )  # fmt: skip
    settings.add_argument(
        "--tile", type=_tile, metavar="auto|N",
        help="side of the denoiser's tiles, in latent positions; 0: no tiles, and no pieces either (default: auto, "
        "which is 64)",
    )  # fmt: skip
    settings.add_argument(
        "--tile-overlap", type=int, metavar="N", help="overlap of the tiles, in latent positions (default: 8)"
    )
    settings.add_argument(
        "--vae-tile", action=argparse.BooleanOptionalAction, default=None,
        help="tile the VAE by diffusers' own blending, which shifts tones from tile to tile, in place of pieces "
        "(default: no)",
    )  # fmt: skip
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", metavar="cpu|cuda", help="where to run (default: cuda if there is one, else cpu)")
    machine.add_argument(
        "--dtype", choices=(*PRECISIONS, "auto"), default="fp32",
        help="precision of the networks; auto: bf16 where the device computes in it, else fp32 (default: fp32)",
    )  # fmt: skip
    machine.add_argument(
        "--memory", type=float, metavar="GB",
        help="memory to plan for, in GB; an image that would not fit is restored in pieces (default: what is free)",
    )  # fmt: skip
    machine.add_argument(
        "--quantize", choices=("int8", "fp8"),
        help="matrix products of the denoiser in 8 bits, by torchao: nearly the same image; use it with --compile",
    )  # fmt: skip
    machine.add_argument(
        "--compile", action="store_true",
        help="compile the networks: the first image of each size takes minutes longer, the others less",
    )  # fmt: skip
    machine.add_argument(
        "--plain", action="store_true", help="none of the exact shortcuts: diffusers' own modules, to compare"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write settings, weight hashes and results as JSON")
    parser.add_argument("--verbose", action="store_true", help="print settings and weight hashes before starting")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Restores every input; returns 0, or 1 if some failed."""
    jobs = _plan(args)
    if args.report is not None and args.report.exists() and not args.overwrite:
        raise UserError(f"the report {args.report} exists; name another file or give --overwrite")
    if not jobs:
        return 0

    import torch
    from tqdm import tqdm

    from tsd.config import PLAIN, FastPath, config_for
    from tsd.files import write_text
    from tsd.images import ImageError, read_scan
    from tsd.model.loading import DTYPES
    from tsd.precision import native_precision
    from tsd.restore import Restorer
    from tsd.restore.memory import plan
    from tsd.restore.pieces import restore_file
    from tsd.restore.student import find_student
    from tsd.writing import check_size, write_picture

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and device.partition(":")[0] != "cuda":
        raise UserError(f"the device is {device!r}; expected cpu, cuda or cuda:N")
    overrides = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    model, lora = find_student(args.model, args.lora)
    config = config_for(lora, overrides)
    dtype, why = native_precision(device) if args.dtype == "auto" else (args.dtype, "as asked")
    print(f"loading {model} with {lora} on {device} in {dtype} ({why})", file=sys.stderr)
    restorer = Restorer.load(
        model, lora, args.prompt_embeds, config=config, device=device, dtype=DTYPES[dtype],
        fast=replace(PLAIN if args.plain else FastPath(), compile=args.compile),
        decoder=args.decoder, quantization=args.quantize, report=lambda message: tqdm.write(message, file=sys.stderr),
    )  # fmt: skip
    provenance: dict[str, object] = {}
    if args.verbose or args.report is not None:
        print("hashing the weight files", file=sys.stderr)
        provenance = restorer.provenance()
    if args.verbose:
        print(json.dumps(provenance, indent=2), file=sys.stderr)

    done: list[dict[str, object]] = []
    failed: dict[str, str] = {}
    with _left_to_do(jobs, done, failed), tqdm(jobs, unit="image", file=sys.stderr) as bar:
        for job in bar:
            bar.set_postfix_str(job.name)
            start = time.perf_counter()
            try:
                scan = read_scan(job.source)
                width, height = (config.scale * side for side in scan.size)
                check_size(width, height, job.target)
                planned = plan(restorer, *scan.size, job.target, args.memory)
                work = restorer.processing_size(*scan.size)
                if math.prod(work) > max(LARGE, 2 * config.scale**2 * math.prod(scan.size)):
                    bar.write(
                        f"warning: {job.source}: this long, narrow image is worked at {work[0]}x{work[1]}, which may "
                        f"take long and much memory; --process-size 0 works at the size of the result",
                        file=sys.stderr,
                    )
                if planned.window is None:
                    restored = restorer.restore_picture(
                        scan.picture(), job.name,
                        lambda n, of, name=job.name: bar.set_postfix_str(f"{name}, tile {n} of {of}"),
                    )  # fmt: skip
                    notes = (*scan.notes, *write_picture(restored, job.target))
                else:
                    pixels = planned.window * restorer.backbone.vae_factor
                    bar.write(
                        f"{job.source}: {width}x{height} would take about {human_size(planned.needed_bytes)} in one "
                        f"piece, and {human_size(planned.available_bytes)} may be used: restored in pieces of {pixels} "
                        f"pixels",
                        file=sys.stderr,
                    )
                    with tqdm(unit="tile", leave=False, file=sys.stderr) as tiles:
                        notes = restore_file(
                            restorer, scan, job.target, job.name, window=planned.window, progress=partial(_show, tiles)
                        )
                    notes = (*scan.notes, *notes)
            except ImageError as error:
                failed[str(job.source)] = str(error)
                continue
            except Exception as error:  # one bad image never ends a batch
                known = isinstance(error, UserError | OSError)
                failed[str(job.source)] = f"{job.source}: {'' if known else f'{type(error).__name__}: '}{error}"
                continue
            seconds = time.perf_counter() - start
            bar.write(f"{job.source} -> {job.target} ({width}x{height}, {seconds:.1f} s)", file=sys.stdout)
            for note in notes:
                bar.write(f"warning: {job.source}: {note}", file=sys.stderr)
            done.append({
                "input": str(job.source), "output": str(job.target), "name": job.name, "size": [width, height],
                "seconds": round(seconds, 3), "notes": list(notes),
            })  # fmt: skip
            if planned.window is not None:
                done[-1]["piece_pixels"] = planned.window * restorer.backbone.vae_factor
    if args.report is not None:
        report = {**provenance, "images": done, "failed": failed}
        write_text(args.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if failed:
        print(f"{len(failed)} of {len(jobs)} images failed:", file=sys.stderr)
        for message in failed.values():
            print(f"  {message}", file=sys.stderr)
        return 1
    return 0


def _tile(text: str) -> int | None:
    """The argument of `--tile`; None for `auto`, the side that the settings have otherwise."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected auto or a number of latent positions") from None


def _show(bar: "tqdm[NoReturn]", done: int, total: int) -> None:
    """Shows how many tiles of an image are done."""
    bar.total = total
    bar.update(done - bar.n)


@contextmanager
def _left_to_do(jobs: list[Job], done: Sized, failed: Sized) -> Iterator[None]:
    """Says after an interruption how much is done; what continues is said by the command line itself."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{len(done)} of {len(jobs)} images are done, {len(failed)} failed", file=sys.stderr)
        raise


def _plan(args: argparse.Namespace) -> list[Job]:
    """Pairs inputs with outputs, and refuses bad combinations before any work."""
    jobs = _named_file(args) or _in_folder(args)
    by_target: dict[Path, list[Path]] = {}
    for job in jobs:
        by_target.setdefault(job.target, []).append(job.source)
    for target, sources in by_target.items():
        if len(sources) > 1:
            raise UserError(
                f"{' and '.join(map(str, sources[:3]))} would both be written to {target}; rename one, or restore them "
                f"into different folders"
            )
    resolved = {job.source.resolve() for job in jobs}
    inputs = [job.target for job in jobs if job.target.resolve() in resolved]
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
            jobs.setdefault((path.resolve(), target), Job(path, name.as_posix(), target))
    return list(jobs.values())
