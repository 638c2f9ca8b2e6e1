"""`tsd restore`: restores files and folders of images; each result is written completely or not at all."""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.batch import FILES, Job, add_files, plan_jobs, run_batch, status_of
from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.precision import PRECISIONS

if TYPE_CHECKING:
    from tsd.images import Picture

DESCRIPTION = """\
Restores and enlarges images in one step. Folders are searched recursively, and OUT gets the same
sub-folders. Without --model the mini model shipped in the package is used: no download, no GPU.
"""
EPILOG = f"""\
examples:
  tsd restore photo.jpg                                       writes restored/photo.png
  tsd restore photos/ scan.tif -o restored/ --skip-existing   continue after an interruption
  tsd restore photo.jpg -o photo_x4.webp --color adain
  tsd restore photo.png -o out/ --model sd3/ --lora tsdsr/ --prompt-embeds default/ \\
              --device cuda --dtype bf16

{FILES}
settings:
  Options on the command line win over what restore.json in the LoRA folder recommends, and that
  wins over the defaults, which are those of the TSD-SR authors' script.

models:
  SD3-medium is the hub id stabilityai/stable-diffusion-3-medium-diffusers (gated), or a folder
  with the same files.
"""
SETTINGS = ("scale", "color", "posterior", "process_size", "seed", "tile", "tile_overlap", "vae_tile")

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
        "--tile", type=int, metavar="N",
        help="side of the denoiser's tiles, in latent positions; 0: no tiles (default: 64)",
    )  # fmt: skip
    settings.add_argument(
        "--tile-overlap", type=int, metavar="N", help="overlap of the tiles, in latent positions (default: 8)"
    )
    settings.add_argument(
        "--vae-tile", action=argparse.BooleanOptionalAction, default=None,
        help="tile the VAE too: less memory for very large images, slightly different results (default: no)",
    )  # fmt: skip
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", metavar="cpu|cuda", help="where to run (default: cuda if there is one, else cpu)")
    machine.add_argument(
        "--dtype", choices=(*PRECISIONS, "auto"), default="fp32",
        help="precision of the networks; auto: bf16 where the device computes in it, else fp32 (default: fp32)",
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

    import torch
    from tqdm import tqdm

    from tsd.config import PLAIN, FastPath, config_for
    from tsd.files import write_text
    from tsd.model.loading import DTYPES
    from tsd.precision import native_precision
    from tsd.restore import Restorer
    from tsd.restore.student import find_student

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
        decoder=mini_model_dir() / "decoder" if args.decoder == "mini" else args.decoder,
        quantization=args.quantize, report=lambda message: tqdm.write(message, file=sys.stderr),
    )  # fmt: skip
    provenance: dict[str, object] = {}
    if args.verbose or args.report is not None:
        print("hashing the weight files", file=sys.stderr)
        provenance = restorer.provenance()
    if args.verbose:
        print(json.dumps(provenance, indent=2), file=sys.stderr)

    def restore(picture: "Picture", job: Job, bar: "tqdm[Job]") -> "Picture":
        work = restorer.processing_size(*picture.size)
        if math.prod(work) > max(LARGE, 2 * config.scale**2 * math.prod(picture.size)):
            bar.write(
                f"warning: {job.source}: this long, narrow image is worked at {work[0]}x{work[1]}, which may take long "
                f"and much memory; --process-size 0 works at the size of the result",
                file=sys.stderr,
            )
        return restorer.restore_picture(
            picture, job.name, lambda n, of: bar.set_postfix_str(f"{job.name}, tile {n} of {of}")
        )

    outcome = run_batch(jobs, config.scale, restore)
    if args.report is not None:
        report = {**provenance, "images": outcome.done, "failed": outcome.failed}
        write_text(args.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return status_of(outcome)
