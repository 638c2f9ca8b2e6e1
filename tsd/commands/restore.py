"""`tsd restore`: restores files and folders of images; each result is written completely or not at all."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.batch import FILES, Job, Written, add_files, described, input_sizes, plan_jobs, run_batch, status_of
from tsd.console.imports import TRAINING, without, without_compiler
from tsd.errors import UserError
from tsd.files import human_size, is_mini_model, mini_model_dir, require_writable
from tsd.precision import PRECISIONS

if TYPE_CHECKING:
    from tsd.config import RestoreConfig
    from tsd.console import stages
    from tsd.images import Scan
    from tsd.restore import Restorer

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
  wins over the defaults, which are those of the TSD-SR authors' script. A PNG holds them as text.

models:
  SD3-medium is the hub id stabilityai/stable-diffusion-3-medium-diffusers (gated), or a folder
  with the same files.
"""
SETTINGS = ("scale", "color", "posterior", "process_size", "seed", "tile", "tile_overlap", "vae_tile")


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
    add_student(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write settings, weight hashes and results as JSON")
    parser.add_argument("--verbose", action="store_true", help="print settings and weight hashes before starting")
    parser.set_defaults(func=run)


def add_student(parser: argparse.ArgumentParser) -> None:
    """The arguments that `find` and `load` take: weights, settings, and the machine."""
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
    settings.add_argument(
        "--scale", type=_scale, metavar="N",
        help="enlargement, 1 or more, fractions too: 2.5 (default: 4, which the students are trained for). Sides are "
        "rounded to the nearest pixel, halves up",
    )  # fmt: skip
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


def run(args: argparse.Namespace) -> int:
    """Restores every input; returns 0, or 1 if some failed."""
    jobs = plan_jobs(args)
    if args.report is not None and args.report.exists() and not args.overwrite:
        raise UserError(f"the report {args.report} exists; name another file or give --overwrite")
    if not jobs:
        return 0
    model, lora, config = find(args)
    if args.report is not None:
        require_writable(args.report.parent)
    sizes = input_sizes(jobs)
    said = described(sizes, config.scale) if sizes else ""  # refuses a full disk before torch is imported
    with only_what_is_used(args):
        return _restore(args, jobs, model, lora, config, sizes, said)


@contextmanager
def only_what_is_used(args: argparse.Namespace) -> Iterator[None]:
    """Inside the block nothing is imported that these arguments have no use for, which would take seconds."""
    if args.compile or args.quantize:
        yield
        return
    with without(*TRAINING), without_compiler():
        yield


def find(args: argparse.Namespace) -> "tuple[str | Path, Path, RestoreConfig]":
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
    return model, lora, config


def load(args: argparse.Namespace, model: "str | Path", lora: Path, config: "RestoreConfig") -> "Restorer":
    """Loads what `find` has found, and says on what and in which precision."""
    import torch

    from tsd.config import PLAIN, FastPath
    from tsd.console.progress import Progress
    from tsd.precision import native_precision, torch_dtype
    from tsd.restore import Restorer

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype, why = native_precision(device) if args.dtype == "auto" else (args.dtype, "as asked")
    print(f"loading {model} with {lora} on {device} in {dtype} ({why})", file=sys.stderr)
    if is_mini_model(model):
        print(
            "note: a mini model of the package is a test model for damaged images enlarged x4; what is clean, or is "
            "enlarged by less than 2, it hardly improves: name a real student by --model and --lora",
            file=sys.stderr,
        )
    return Restorer.load(
        model, lora, args.prompt_embeds, config=config, device=device, dtype=torch_dtype(dtype),
        fast=replace(PLAIN if args.plain else FastPath(), compile=args.compile),
        decoder=mini_model_dir() / "decoder" if args.decoder == "mini" else args.decoder,
        quantization=args.quantize, report=lambda message: Progress.write(message, file=sys.stderr),
    )  # fmt: skip


def _restore(
    args: argparse.Namespace,
    jobs: list[Job],
    model: "str | Path",
    lora: Path,
    config: "RestoreConfig",
    sizes: dict[Job, tuple[int, int]],
    said: str,
) -> int:
    """What needs torch: loads the student and restores the images; returns the exit status of `run`."""
    from tsd.console.progress import Progress
    from tsd.files import write_text
    from tsd.restore.to_file import restore_to_file

    restorer = load(args, model, lora, config)
    if sizes:
        print(f"{said}; {_expected(restorer, sizes, args.memory)}", file=sys.stderr)
    provenance: dict[str, object] = {}
    if args.verbose or args.report is not None:
        print("hashing the weight files", file=sys.stderr)
        provenance = restorer.provenance()
    if args.verbose:
        print(json.dumps(provenance, indent=2), file=sys.stderr)

    def restore(scan: "Scan", job: Job, progress: "stages.Progress") -> Written:
        say = partial(Progress.write, file=sys.stderr)
        return restore_to_file(restorer, scan, job, args.memory, progress, say)

    outcome = run_batch(jobs, config.scale, restore)
    if args.report is not None:
        report = {**provenance, "images": outcome.done, "failed": outcome.failed}
        write_text(args.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return status_of(outcome)


def _expected(restorer: "Restorer", sizes: dict[Job, tuple[int, int]], memory_gb: float | None) -> str:
    """What the batch takes of memory and time, in words."""
    from tsd.console.progress import clock
    from tsd.restore.expected import timed_pace
    from tsd.restore.memory import plan

    plans = {}
    for job, size in sizes.items():
        with suppress(UserError):  # told when its turn comes
            plans[job] = plan(restorer, *size, job.target, memory_gb)
    if not plans:
        return "none fits into memory"
    needed, pieces = max(p.needed_bytes for p in plans.values()), sum(p.window is not None for p in plans.values())
    available = human_size(min(p.available_bytes for p in plans.values()))
    text = f"memory up to {human_size(needed)} of {available} that may be used"
    if pieces:
        text = f"memory up to {available}, {pieces} of them in pieces"
    pace = None
    with suppress(UserError):  # networks that fail are told with every image
        pace = timed_pace(restorer, [sizes[job] for job in plans])
    if pace is None:
        return f"{text}; how long it takes shows on the way"
    seconds = sum(pace.seconds(restorer, *sizes[job], in_pieces=p.window is not None) for job, p in plans.items())
    return f"{text}; about {clock(seconds)}, by one tile that was timed"


def _scale(text: str) -> float:
    """The argument of `--scale`; whole numbers stay whole, as reports have them."""
    try:
        scale = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number such as 4 or 2.5") from None
    return int(scale) if scale.is_integer() else scale


def _tile(text: str) -> int | None:
    """The argument of `--tile`; None for `auto`, the side that the settings have otherwise."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected auto or a number of latent positions") from None
