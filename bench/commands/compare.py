"""`bench compare`: compares two runs or two sweeps, and fails where a value moved."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Protocol

EPILOG = """\
examples:
  bench compare reports/mini new/mini
  bench compare reports/mini new/mini-first4 --subset
  bench compare hub:lab/mini new/mini                                a run of others, from the hub
  bench compare reports/mini new/mini --tolerance psnr=0.05 ssim=0.002
  bench compare reports/ablations/mixture-ci new/mixture-ci          two sweeps

Scores and learning curves of a sweep may move by half a unit of the last digit that its tables
print, unless --tolerance says otherwise.

exit status: 0 if every value of OLD is in NEW within its tolerance; 1 if one moved or disappeared;
2 for bad input
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="compare two runs or two sweeps, and fail where a value moved",
        description="Compares the records of two runs, or of two sweeps, value by value. A change beyond the metric's\n"
        "tolerance, another protocol, or a missing value is a failure. New rows and columns are not. Where images\n"
        "have the same bytes, a twentieth of the tolerance is allowed. Tables must be what their records give.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hub = "; or hub:OWNER/NAME for a run that `bench publish` sent"
    parser.add_argument("old", metavar="OLD", help=f"--out folder of the run or sweep that is taken as right{hub}")
    parser.add_argument("new", metavar="NEW", help=f"--out folder of the run or sweep to judge{hub}")
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
        help="compare only the methods, images and metrics, or arms and seeds, that NEW has",
    )
    parser.add_argument(
        "--same-bytes",
        action="store_true",
        help="an image of other bytes is a failure too, for two runs on one machine",
    )
    parser.add_argument("--show", type=int, default=20, metavar="N", help="how many failures to list (default: 20)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    tolerances = dict(_tolerance(text) for text in args.tolerance)
    from bench.publish.places import find_run

    before, after = find_run(args.old).folder, find_run(args.new).folder
    if (before / "sweep.json").is_file():
        from bench.ablation.report.compare import compare_sweeps

        sweeps = compare_sweeps(before, after, tolerances, subset=args.subset)
        return _report(sweeps.compared, sweeps.failures, sweeps.largest, sweeps.allowed, args.show)
    from bench.records.records import Records
    from bench.report.compare import TOLERANCES, compare

    old, new = Records(before), Records(after)
    runs = compare(old, new, tolerances, subset=args.subset, same_bytes=args.same_bytes)
    print(f"images: {runs.repeated} of {runs.images} have the same bytes")
    return _report(runs.compared, runs.failures, runs.largest, {**TOLERANCES, **tolerances}, args.show)


class _Failure(Protocol):
    def line(self) -> str: ...


def _report(
    compared: int, failures: Sequence[_Failure], largest: Mapping[str, float], allowed: Mapping[str, float], show: int
) -> int:
    for metric, change in sorted(largest.items()):
        print(f"{metric}: largest change {change:.3g}, allowed {allowed[metric]:g}")
    for failure in failures[:show]:
        print(failure.line())
    if len(failures) > show:
        print(f"and {len(failures) - show} more")
    print(f"{compared} values compared, {len(failures)} failures")
    return 1 if failures else 0


def _tolerance(text: str) -> tuple[str, float]:
    from tsd.errors import UserError

    metric, _, value = text.partition("=")
    try:
        return metric, float(value)
    except ValueError:
        raise UserError(f"--tolerance {text}: expected METRIC=VALUE, e.g. psnr=0.05") from None
