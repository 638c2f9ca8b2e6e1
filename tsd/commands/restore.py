"""`tsd restore`: restores files and folders of images; each result is written completely or not at all."""

import argparse
import json
import math
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.batch import FILES, Job, Written, add_files, plan_jobs, run_batch, status_of
from tsd.console.imports import TRAINING, without, without_compiler
from tsd.errors import UserError
from tsd.files import WRITABLE, free_bytes, human_size, is_mini_model, mini_model_dir, require_room, require_writable
from tsd.precision import PRECISIONS

if TYPE_CHECKING:
    from tsd.config import RestoreConfig
    from tsd.console import stages
    from tsd.images import Picture, Scan

DESCRIPTION = """\
Restores and enlarges images in one step. Folders are searched recursively, and OUT gets the same
sub-folders. Without --model the mini model shipped in the package is used: no download, no GPU.
"""
EPILOG = f"""\
examples:
  tsd restore photo.jpg                                       writes restored/photo.png
  tsd restore photos/ scan.tif -o restored/ --skip-existing   continue after an interruption
  tsd restore photo.jpg -o photo_x4.webp --color adain
  tsd restore panorama.tif -o out/ --memory 3                 in pieces that fit into 3 GB
  tsd restore photo.png -o out/ --model sd3/ --lora tsdsr/ --prompt-embeds default/ \\
              --device cuda --dtype bf16

{FILES}
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
SETTINGS = ("scale", "color", "posterior", "process_size", "seed", "tile", "tile_overlap", "vae_tile")

LEAST_BYTES_PER_PIXEL = 0.1
"""No photograph of 8 bits is smaller as a file of any of the formats, so that less room than that cannot be enough."""
LARGE = 2048**2  # processed pixels above which enlarging a small input takes noticeable time


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb to `tsd`."""
    parser = subparsers.add_parser(
        "restore",
        help="restore and enlarge images with a trained student",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_files(parser)
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
        "--decoder", metavar="DIR|mini",
        help="small decoder to use in the VAE's place: faster, nearly the same image (an AutoencoderTiny such as "
        "TAESD3, or what tsd distill-decoder wrote; mini: the one shipped with the mini model)",
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
    jobs = plan_jobs(args)
    if args.report is not None and args.report.exists() and not args.overwrite:
        raise UserError(f"the report {args.report} exists; name another file or give --overwrite")
    if not jobs:
        return 0
    model, lora, config = _student(args)
    _say_sizes(jobs, config)
    if args.compile or args.quantize:
        return _restore(args, jobs, model, lora, config)
    with without(*TRAINING), without_compiler():
        return _restore(args, jobs, model, lora, config)


def _student(args: argparse.Namespace) -> "tuple[str | Path, Path, RestoreConfig]":
    """The model, the student's folder and its settings, checked as far as that needs no torch."""
    from tsd.config import config_for
    from tsd.model.loading import resolve_model
    from tsd.restore.student import find_student

    if args.device is not None and args.device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"the device is {args.device!r}; expected cpu, cuda or cuda:N")
    overrides = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    model, lora = find_student(args.model, args.lora)
    if not lora.is_dir():
        raise UserError(f"no LoRA folder at {lora}; expected one with a student's two files")
    if args.prompt_embeds is not None and not Path(args.prompt_embeds).expanduser().is_dir():
        raise UserError(f"no prompt folder at {args.prompt_embeds}")
    config = config_for(lora, overrides)
    resolve_model(model)
    require_writable(args.output if args.output.suffix.lower() not in WRITABLE else args.output.parent)
    if args.report is not None:
        require_writable(args.report.parent)
    return model, lora, config


def _say_sizes(jobs: list[Job], config: "RestoreConfig") -> None:
    """Says before the work how large the results will be, and refuses a disk without room for them."""
    from tsd.images import ImageError, picture_size

    sizes = []
    for job in jobs:
        with suppress(ImageError, OSError):  # told when its turn comes
            width, height = picture_size(job.source)
            sizes.append((config.scale * width, config.scale * height))
    if not sizes:
        return
    pixels = [width * height for width, height in sizes]
    low, high = ("x".join(map(str, sizes[pixels.index(end)])) for end in (min(pixels), max(pixels)))
    place = jobs[0].target.parent
    require_room(place, int(LEAST_BYTES_PER_PIXEL * sum(pixels)), "choose another output (-o)")
    print(
        f"{len(jobs)} image{'s' * (len(jobs) > 1)} of {low if low == high else f'{low} to {high}'} pixels, "
        f"{sum(pixels) / 1e6:,.1f} megapixels in all; up to {human_size(3 * sum(pixels))} at 8 bits, "
        f"{human_size(free_bytes(place))} are free",
        file=sys.stderr,
    )


def _restore(
    args: argparse.Namespace, jobs: list[Job], model: "str | Path", lora: Path, config: "RestoreConfig"
) -> int:
    """What needs torch: loads the student and restores the images; returns the exit status of `run`."""
    import torch

    from tsd.config import PLAIN, FastPath
    from tsd.console.progress import Progress
    from tsd.files import write_text
    from tsd.precision import native_precision, torch_dtype
    from tsd.restore import Restorer
    from tsd.restore.memory import plan
    from tsd.restore.pieces import restore_file

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype, why = native_precision(device) if args.dtype == "auto" else (args.dtype, "as asked")
    print(f"loading {model} with {lora} on {device} in {dtype} ({why})", file=sys.stderr)
    if is_mini_model(model):
        print(
            "note: a mini model of the package is a test model for damaged images enlarged x4; what is clean, or is "
            "enlarged by less than 2, it hardly improves: name a real student by --model and --lora",
            file=sys.stderr,
        )
    restorer = Restorer.load(
        model, lora, args.prompt_embeds, config=config, device=device, dtype=torch_dtype(dtype),
        fast=replace(PLAIN if args.plain else FastPath(), compile=args.compile),
        decoder=mini_model_dir() / "decoder" if args.decoder == "mini" else args.decoder,
        quantization=args.quantize, report=lambda message: Progress.write(message, file=sys.stderr),
    )  # fmt: skip
    provenance: dict[str, object] = {}
    if args.verbose or args.report is not None:
        print("hashing the weight files", file=sys.stderr)
        provenance = restorer.provenance()
    if args.verbose:
        print(json.dumps(provenance, indent=2), file=sys.stderr)

    def restore(scan: "Scan", job: Job, progress: "stages.Progress") -> "Picture | Written":
        planned = plan(restorer, *scan.size, job.target, args.memory)
        work = restorer.processing_size(*scan.size)
        if math.prod(work) > max(LARGE, 2 * config.scale**2 * math.prod(scan.size)):
            Progress.write(
                f"warning: {job.source}: this long, narrow image is worked at {work[0]}x{work[1]}, which may take long "
                f"and much memory; --process-size 0 works at the size of the result",
                file=sys.stderr,
            )
        if planned.window is None:
            return restorer.restore_picture(scan.picture(), job.name, progress)
        pixels = planned.window * restorer.backbone.vae_factor
        size = (config.scale * scan.size[0], config.scale * scan.size[1])
        Progress.write(
            f"{job.source}: {size[0]}x{size[1]} would take about {human_size(planned.needed_bytes)} in one piece, and "
            f"{human_size(planned.available_bytes)} may be used: restored in pieces of {pixels} pixels",
            file=sys.stderr,
        )
        notes = restore_file(restorer, scan, job.target, job.name, window=planned.window, progress=progress)
        return Written(size, tuple(notes), {"piece_pixels": pixels})

    outcome = run_batch(jobs, config.scale, restore)
    if args.report is not None:
        report = {**provenance, "images": outcome.done, "failed": outcome.failed}
        write_text(args.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return status_of(outcome)


def _tile(text: str) -> int | None:
    """The argument of `--tile`; None for `auto`, the side that the settings have otherwise."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected auto or a number of latent positions") from None
