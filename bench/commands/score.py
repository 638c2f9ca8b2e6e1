"""`bench score`: scores any two folders of images, paired by file name, or two images."""

import argparse
from pathlib import Path

from tsd.files import MEGAPIXELS_HELP

EPILOG = """\
examples:
  bench score outputs --hr ground_truth
  bench score outputs --hr ground_truth --metrics psnr ssim niqe --json > scores.json
  bench score result.png --hr truth.png --metrics psnr ssim
  bench score outputs --metrics niqe musiq            # no ground truth: no-reference metrics
  bench score outputs --lr inputs --metrics lr-psnr   # do the outputs agree with what they were made from?

Files are paired by stem (a.png with a.jpg, and with a_x4.png where all names of a folder end so).
Images must be 8-bit RGB or gray; EXIF orientation is applied. Values are compared as stored; a
colour profile other than sRGB is told. Metrics whose weights are not on this machine are listed with
the file that is missing. Nothing is downloaded; `bench fetch NAME` gets the weights.

exit status: 0 if at least one metric was measured; 1 if none could be; 2 if the input cannot be
scored
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "score",
        help="score a folder of images against a folder of ground truth",
        description="Scores the images of SR with the paper's metrics, against HR if it is given.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sr_dir", metavar="SR", type=Path, help="folder of the images to score, or one image")
    parser.add_argument(
        "--hr", metavar="HR", type=Path, help="the ground truth: a folder with the same names, or one image"
    )
    parser.add_argument("--lr", metavar="LR", type=Path, help="the inputs, for lr-psnr")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="any of psnr ssim lpips dists fid niqe musiq maniqa clipiqa, or of kid lr-psnr ms-ssim gmsd fsim vif "
        "(default: the first nine, as in the paper)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--max-megapixels", type=float, metavar="N", help=MEGAPIXELS_HELP)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of HR")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import json

    from bench.device import resolve_device
    from bench.metrics import METRICS, get_metric
    from bench.report.folders import find_pairs, format_scores, score_pairs
    from tsd.errors import UserError

    names = [name for group in args.metrics or METRICS for name in group.split(",") if name]
    specs = [get_metric(name) for name in dict.fromkeys(names)]
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: expected 1 or more")
    device = resolve_device(args.device)
    pairs = find_pairs(args.sr_dir, args.hr, args.limit, args.lr)
    result = score_pairs(pairs, specs, device)
    print(json.dumps(result, indent=2, allow_nan=False) if args.json else format_scores(result, get_metric))
    return 0 if result["metrics"] else 1
