"""`bench compare`: compares two runs, and fails where a value moved."""

import argparse
from pathlib import Path

EPILOG = """\
examples:
  bench compare reports/mini new/mini
  bench compare reports/mini new/mini-first4 --subset
  bench compare reports/mini new/mini --tolerance psnr=0.05 ssim=0.002

exit status: 0 if every value of OLD is in NEW within its tolerance; 1 if one moved or disappeared;
2 for bad input
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="compare two runs, and fail where a value moved",
        description="Compares the records of two runs value by value. A change beyond the metric's tolerance, another\n"
        "protocol, or a missing value is a failure. New rows and columns are not.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="--out folder of the run that is taken as right")
    parser.add_argument("new", type=Path, metavar="NEW", help="--out folder of the run to judge")
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="METRIC=VALUE",
        help="largest absolute change of a value that is allowed, by metric",
    )
    parser.add_argument(
        "--subset",
        action="store_true",
        help="compare only the methods, images and metrics that NEW has (for instance after --limit)",
    )
    parser.add_argument("--show", type=int, default=20, metavar="N", help="how many failures to list (default: 20)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.records.records import Records
    from bench.report.compare import TOLERANCES, compare

    tolerances = dict(_tolerance(text) for text in args.tolerance)
    outcome = compare(Records(args.old), Records(args.new), tolerances, subset=args.subset)
    for metric, change in sorted(outcome.largest.items()):
        print(f"{metric}: largest change {change:.3g}, allowed {({**TOLERANCES, **tolerances})[metric]:g}")
    for failure in outcome.failures[: args.show]:
        print(failure.line())
    if len(outcome.failures) > args.show:
        print(f"and {len(outcome.failures) - args.show} more")
    print(f"{outcome.compared} values compared, {len(outcome.failures)} failures")
    return 1 if outcome.failures else 0


def _tolerance(text: str) -> tuple[str, float]:
    from tsd.errors import UserError

    metric, _, value = text.partition("=")
    try:
        return metric, float(value)
    except ValueError:
        raise UserError(f"--tolerance {text}: expected METRIC=VALUE, e.g. psnr=0.05") from None
