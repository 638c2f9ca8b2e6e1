"""`bench site`: a report to look at, in one folder or one file that opens in any browser."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.errors import UserError

if TYPE_CHECKING:
    from bench.site.timings import Timings

EPILOG = """\
examples:
  bench site reports/mini --out site                        open site/index.html
  bench site reports/mini --out mini.html --single-file     one file, to send
  bench site reports/realsr --out site --data-root data     with input and ground truth
  bench site reports/a reports/b --out site                 two runs side by side, and a leaderboard
  bench site hub:me/mini hub:lab/mini --out site            runs that `bench publish` sent to the hub
  bench site reports/mini --out site --latency reports/latency/mini   Figure 1: quality against seconds
  bench site reports/mini --out site --flip --originals copy  maps of visible errors; the PNGs beside
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
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="--out folder of a `bench run`, or hub:OWNER/NAME[@REVISION] for a data set of `bench publish`",
    )
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
    parser.add_argument(
        "--flip",
        action="store_true",
        help="make a FLIP map of every output against its ground truth (about .4 s for 512 x 512 pixels)",
    )
    parser.add_argument(
        "--originals",
        choices=("link", "copy"),
        default="",
        help="link the PNG files of the images where they are, or copy them into the site (default: neither)",
    )
    parser.add_argument(
        "--latency",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="--out folder of a `bench latency`, for quality against seconds (default: runs that hold timings)",
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
    from bench.publish.places import find_run
    from bench.site.build import SiteRequest, build

    timings = [timing for folder in args.latency for timing in _timings(folder, must=True)]
    places = [find_run(text, images=args.images != 0) for text in args.runs]
    timings += [timing for place in places if not args.latency for timing in _timings(place.folder, must=False)]
    page = build(
        SiteRequest(
            runs=tuple(place.folder for place in places),
            out=args.out,
            single_file=args.single_file,
            images=args.images,
            quality=args.quality,
            max_mb=args.max_mb,
            data_root=args.data_root,
            flip=args.flip,
            originals=args.originals,
            timings=tuple(timings),
            labels={place.folder: place.label for place in places},
        )
    )
    print(page.absolute().as_uri())
    return 0


def _timings(folder: Path, must: bool) -> "list[Timings]":
    """The seconds of a folder of `bench latency`, by size; with `must` it is an error if there are none."""
    from bench.latency.records import read_plan
    from bench.latency.summary import summarize_latency
    from bench.provenance import machine_name
    from bench.site.timings import Timing, Timings

    plan = read_plan(folder, "table3")
    if plan is None and not must:
        return []
    found: list[Timings] = []
    for table in summarize_latency(folder, plan) if plan is not None else ():
        machines: dict[str, None] = {}
        methods: dict[str, Timing] = {}
        for row in table.rows:
            if row.seconds is not None and row.run is not None:
                machines[str(machine_name(row.run.settings))] = None
                middle = row.seconds
                methods[row.row.name] = Timing(middle.value, middle.low, middle.high, row.run.provenance)
        if methods:
            found.append(Timings(folder.resolve().name, table.size, "; ".join(machines), methods))
    if must and not found:
        raise UserError(f"--latency {folder}: no timings there; `bench latency --out {folder}` makes them")
    return found
