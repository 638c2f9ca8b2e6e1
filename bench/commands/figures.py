"""`bench figures`: Figures 7 and 9 to 13, details of every method side by side, from the images of a run."""

import argparse
from pathlib import Path

EPILOG = """\
examples:
  bench figures reports/mini --out figures                                 three images, the busiest detail of each
  bench figures reports/mini --images chelsea-face coins --crops 80,40,64 auto --out figures
  bench figures reports/mini --figure 13 --metrics psnr ssim --out figures
  bench figures reports/mini --figure 13 --votes figure8/figure8-images.csv --out figures

Writes figureN.png and figureN.pdf. The images must be on this machine as they are recorded.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "figures",
        help="draw details of every method side by side: Figures 7, 9 to 12 and 13",
        description="Draws whole images with one enlarged detail of every method, as the paper lays them out.\n"
        "Figure 13 has values of metrics below each, and how often people chose it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="--out folder of a `bench run`, with its images")
    parser.add_argument(
        "--figure", choices=("7", "9", "10", "11", "12", "13"), default="7", help="which one (default: 7)"
    )
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="NAME", help="methods of the run (default: all with images)"
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="NAME", help="images (default: three, evenly spread)"
    )
    parser.add_argument(
        "--crops",
        nargs="+",
        type=_crop,
        default=[],
        metavar="LEFT,TOP,SIDE",
        help="the detail of each image, in pixels of the output, or auto for where most fine detail is (default: auto)",
    )
    parser.add_argument(
        "--metrics", nargs="*", metavar="NAME", help="values below each detail (default: in Figure 13 psnr and ssim)"
    )
    parser.add_argument("--votes", type=Path, metavar="CSV", help="figure8-images.csv of `bench study score`")
    parser.add_argument("--testset", metavar="NAME", help="test set of the run (default: its only one)")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    parser.set_defaults(func=run)


def _crop(text: str) -> tuple[int, int, int] | None:
    if text == "auto":
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not a crop; expected LEFT,TOP,SIDE in pixels, or auto")
    left, top, side = map(int, parts)
    return left, top, side


def run(args: argparse.Namespace) -> int:
    from bench.report.crops import CropRequest, draw_crops

    metrics = args.metrics if args.metrics is not None else ["psnr", "ssim"] if args.figure == "13" else []
    request = CropRequest(
        run=args.run,
        out=args.out,
        figure=args.figure,
        methods=tuple(args.methods),
        images=tuple(args.images),
        crops=tuple(args.crops),
        metrics=tuple(metrics),
        votes=args.votes,
        testset=args.testset,
        data_root=args.data_root,
    )
    for path in draw_crops(request):
        print(path)
    return 0
