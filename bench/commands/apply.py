"""`bench apply`: restores photographs of one's own with any method that runs in process."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.batch import FILES, Job, add_files, described, input_sizes, plan_jobs, run_batch, status_of
from tsd.files import ended_by_sigterm
from tsd.precision import PRECISIONS

if TYPE_CHECKING:
    from bench.methods.photographs import Photographer
    from bench.options import RunOptions, Tiles
    from tsd.console.stages import Progress
    from tsd.images import Picture, Scan

EPILOG = f"""\
examples:
  bench apply spandrel:4xNet.pth photo.jpg                    writes restored/photo.png
  bench apply spandrel:4xNet.pth photos/ -o out/ --device cuda --dtype fp16
  bench apply spandrel:4xNet.pth photos/ -o out/ --skip-existing   continue after an interruption
  bench apply realesrgan scan.tif -o scan-x2.tif --scale 2
  bench apply python:my_method.py:restore photos/ -o out/

{FILES}
methods:
  Those of `bench list methods` that run in process, and the forms spandrel:FILE, python:FILE.py:FUNCTION,
  tsd-sr:MODEL and teacher:... A network of spandrel: may enlarge by any factor; all others by 4.
  Plain networks take photographs larger than --tile in tiles. Every tile sees --context pixels beyond
  its edges, so that tiles leave no seam where the network looks no further. Diffusion models have
  tiles of their own, as in `tsd restore`; functions take photographs whole.

exit status: 0 if every photograph was restored; 1 if some were not; 2 for bad input or a missing
requirement
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from bench.options import Tiles

    parser = subparsers.add_parser(
        "apply",
        help="restore photographs of your own with any method",
        description="Restores photographs with a method that runs in process. Folders are searched recursively, and\n"
        "OUT gets the same sub-folders.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", metavar="METHOD", help="a name of `bench list methods`, or spandrel:FILE, ...")
    add_files(parser)
    parser.add_argument(
        "--scale", type=float, metavar="N",
        help="size of the results, up to what the method makes, fractions too (default: that). Sides are rounded to "
        "the nearest pixel, halves up",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=int, metavar="N",
        help=f"side of the tiles of plain networks, in input pixels; 0: photographs whole (default: {Tiles.side})",
    )  # fmt: skip
    parser.add_argument(
        "--context", type=int, metavar="N",
        help=f"pixels of a tile, on each side, that are seen and not kept (default: {Tiles.context})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="seed, with the image's name (default: 42)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    parser.add_argument("--dtype", default="fp32", choices=PRECISIONS, help="precision of the networks (default: fp32)")
    parser.add_argument(
        "--weights-root", type=Path, metavar="DIR", help="folder of weights (default: $TSD_WEIGHTS, else ./weights)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.methods import get_method
    from bench.options import RunOptions, Tiles
    from tsd.errors import UserError

    spec = get_method(args.method)
    if args.scale is not None and not 0 < args.scale < float("inf"):
        raise UserError(f"--scale {args.scale:g}: expected a number above 0")
    asked = args.tile is not None or args.context is not None
    tiles = None
    if (asked or spec.tiles) and args.tile != 0:
        default = Tiles()
        tiles = Tiles(args.tile or default.side, default.context if args.context is None else args.context)
    jobs = plan_jobs(args)
    if not jobs:
        return 0

    from bench.device import resolve_device
    from bench.methods.photographs import Photographer
    from bench.provenance import image_seed

    options = RunOptions(resolve_device(args.device), args.dtype, weights_root=args.weights_root, seed=args.seed)
    photographer = Photographer(spec, replace(options, tiles=tiles, any_scale=True))
    if args.scale is not None and args.scale > photographer.scale:
        raise UserError(
            f"--scale {args.scale:g}: {spec.name} enlarges {photographer.scale} times; expected at most that"
        )
    scale = args.scale or photographer.scale
    sizes = input_sizes(jobs)
    size = described(sizes, scale) if sizes else ""
    print(_announcement(photographer.scale, scale, spec.name, options, tiles), file=sys.stderr)
    if sizes:
        print(f"{size}; {_expected(photographer, list(sizes.values()))}", file=sys.stderr)
    for note in photographer.notes:
        print(f"note: {note}", file=sys.stderr)

    def restore(scan: "Scan", job: Job, progress: "Progress") -> "Picture":
        return photographer.restore(scan.picture(), image_seed(args.seed, job.name), scale, progress)

    with ended_by_sigterm():
        return status_of(run_batch(jobs, scale, restore))


WORTH = 16
"""Photographs that are worth so many pieces are worth timing one piece."""
PIECE = 128
"""Side of that piece, in input pixels, where a method takes photographs whole."""


def _expected(photographer: "Photographer", sizes: list[tuple[int, int]]) -> str:
    """What the photographs take of memory and time, in words, by a piece of noise that is restored first."""
    import torch

    from bench.latency.machine import peak_memory
    from tsd.console.progress import clock
    from tsd.errors import UserError
    from tsd.files import human_size

    tiles, method = photographer.options.tiles, photographer.method
    side = PIECE if tiles is None else tiles.side
    pixels = [width * height for width, height in sizes]
    if sum(pixels) < WORTH * side**2:
        return "memory and time show on the way"
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    took: list[float] = []

    def restore() -> None:
        began = time.perf_counter()
        method.restore(noise, 0)
        took.append(time.perf_counter() - began)

    try:
        memory = peak_memory(restore, photographer.options.device, 0)
        restore()
    except (UserError, RuntimeError, MemoryError):  # told with every photograph
        return "memory and time show on the way"
    peak = memory.get("reserved", memory.get("resident"))
    core = side if tiles is None else side - 2 * tiles.context
    times = sum(pixels) / core**2
    text = f"about {clock(took[-1] * times)}, by a piece of {side}x{side} that was timed"
    if peak is None:
        return text
    if tiles is None:  # what a whole photograph takes grows with it
        peak *= max(pixels) / side**2
    return f"memory about {human_size(round(peak))} beside the networks; {text}"


def _announcement(own: int, scale: float, name: str, options: "RunOptions", tiles: "Tiles | None") -> str:
    text = f"{name} enlarges {own} times"
    if scale != own:
        text += f", resized to {scale:g} times"
    text += f", on {options.device} in {options.dtype}"
    if tiles is not None:
        text += f"; photographs larger than {tiles.side} pixels in tiles with {tiles.context} of context"
    return text
