"""`bench site`: a report to look at, in one folder or one file that opens in any browser."""

import argparse
from pathlib import Path

EPILOG = """\
examples:
  bench site reports/mini --out site                        open site/index.html
  bench site reports/mini --out mini.html --single-file     one file, to send
  bench site reports/realsr --out site --data-root data     with input and ground truth
  bench site reports/a reports/b --out site                 two runs side by side
  bench site reports/realsr --out site --images 20          20 images of each test set, evenly spread
  bench site reports/realsr --out site --quality 90         smaller, pixels not exact (the page says so)

The page needs no server and no network. It shows images that are on this machine and are the
recorded ones; what it does not show is said, and `bench run` makes images again from their records.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "site",
        help="make a report to look at, for any browser, from one or several runs",
        description="Writes the tables of runs with their intervals, a comparison of their images up to single\n"
        "pixels, and a list of the images on which two methods differ most.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="--out folder of a `bench run`")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; with --single-file, the HTML file"
    )
    parser.add_argument("--single-file", action="store_true", help="write one HTML file that holds its images")
    parser.add_argument(
        "--images",
        type=_images,
        default="all",
        metavar="N",
        help="how many images of each test set are shown: a number, 0 for none, or all (default: all)",
    )
    parser.add_argument(
        "--quality",
        type=_quality,
        default="lossless",
        metavar="Q",
        help="of the previews (WebP): lossless, or 1 to 100 for smaller ones (default: lossless)",
    )
    parser.add_argument(
        "--max-mb",
        type=int,
        metavar="M",
        help="the most that the images may take, in MB (default: 1000, in a single file 100)",
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    parser.set_defaults(func=run)


def _images(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number of images; expected 0, 1, 2, ... or all")
    return int(text)


def _quality(text: str) -> int | None:
    if text == "lossless":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a quality; expected lossless, or 1 to 100")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from bench.site.build import SiteRequest, build

    page = build(
        SiteRequest(
            runs=tuple(args.runs),
            out=args.out,
            single_file=args.single_file,
            images=args.images,
            quality=args.quality,
            max_mb=args.max_mb,
            data_root=args.data_root,
        )
    )
    print(page.absolute().as_uri())
    return 0
