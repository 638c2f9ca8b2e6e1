"""`bench verify`: does the harness on this machine compute what others published?"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commands.run import positive
from tsd.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.options import RunOptions
    from bench.records.schema import Verification, VerifiedMetric
    from bench.verify.check import Unchecked
    from bench.verify.outputs import PublishedRow
    from bench.verify.rescore import Verdict

EPILOG = """\
examples:
  bench verify --data-root data                        every metric against OSEDiff's own logs
  bench verify osediff-realsr --metrics psnr ssim niqe --data-root data
  bench verify --data-root data --limit 10             a quick look; FID needs all images
  bench verify --data-root data --attach reports/realsr   tables of that run say so
  bench verify method:osediff --data-root data         published images against printed figures
  bench verify method:osediff --data-root data --run reports/realsr   and against ours, image by image
  bench verify --rescore reports/realsr --data-root data   do the scores of a run come out again?
  bench verify --drift                                 this environment's scores of the mini set, into reports/drift

OSEDiff's authors published their images for RealSR and DRealSR and a log with eight metrics of
every image and one FID; the figures of both logs come with this package. Their images are scored
here and compared value by value. Each metric has a tolerance, and the reason for it is printed.
What lacks data or weights is named with the command that fetches it; nothing is downloaded.

With --rescore, the images of a run are scored again and every value is compared with its record: the
tolerances are those of `bench compare` where images have the same bytes. What came out is appended to
the records, and `bench site` shows it beside the row.

With --drift, the mini set is restored and scored here, and the table in --out compares this
environment's versions of torch and pyiqa with those measured before; `nox -s drift` measures two of
each.

exit status: 0 if all that could be checked agrees; 1 if something does not; 2 for bad input, or if
nothing could be checked
"""
METHOD = "method:"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "verify",
        help="check the metrics on this machine against published per-image scores",
        description="Scores published images on this machine and compares every value with the log that their authors\n"
        "published, metric by metric.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="golden logs, or method:NAME for published rows (default: all logs)"
    )
    parser.add_argument("--metrics", "--metric", nargs="+", metavar="NAME", help="metrics to check (default: all nine)")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images of each test set")
    parser.add_argument("--attach", type=Path, metavar="DIR", help="write the result into the records of this run")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="with method:NAME, a run that restored these test sets with NAME"
    )
    parser.add_argument(
        "--rescore", type=Path, metavar="RUN", help="score the images of this run again, and record what came out"
    )
    parser.add_argument("--by", metavar="NAME", help="with --rescore, who says so, as it is recorded")
    parser.add_argument(
        "--drift",
        action="store_true",
        help="score the mini set with the versions installed here, tabulate what moved",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="with --drift, the folder of its table (default: reports/drift)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text (golden logs)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.device import resolve_device
    from bench.options import RunOptions
    from bench.publish.places import HUB_RUN
    from bench.verify.golden import golden_names
    from tsd.files import require_writable

    methods = [name.removeprefix(METHOD) for name in args.names if name.startswith(METHOD)]
    logs = [name for name in args.names if not name.startswith(METHOD)] or ([] if methods else [*golden_names()])
    if methods and (logs or args.attach or args.json):
        raise UserError(f"{METHOD}NAME is checked alone: without golden logs, --attach and --json")
    if args.run and not methods:
        raise UserError(f"--run belongs to {METHOD}NAME: it names the run whose images are compared")
    if args.attach and not (args.attach / "records").is_dir():
        raise UserError(f"--attach {args.attach}: no records there; expected the --out folder of a `bench run`")
    if args.drift and (args.names or args.metrics or args.attach or args.run or args.json):
        raise UserError("--drift scores the mini set with every metric: only --out, --limit and --device go with it")
    if args.rescore and (args.names or args.attach or args.run or args.drift or args.json):
        raise UserError("--rescore goes with --metrics, --limit, --by, --data-root and --device only")
    if args.by is not None and not args.rescore:
        raise UserError("--by belongs to --rescore: it says who scored a run again")
    if args.rescore and str(args.rescore).startswith(HUB_RUN):
        raise UserError(
            f"--rescore {args.rescore}: the result becomes part of the records, so they must lie in a folder: "
            f"`hf download --repo-type dataset {str(args.rescore).removeprefix(HUB_RUN)} --local-dir DIR` makes one"
        )
    if args.out and not args.drift:
        raise UserError("--out belongs to --drift: it names the folder of its table")
    for place in (args.attach, args.out or Path("reports/drift") if args.drift else None):
        if place is not None:
            require_writable(place)
    options = RunOptions(resolve_device(args.device), data_root=args.data_root)
    if args.drift:
        return _run_drift(args.out or Path("reports/drift"), args.limit, options)
    if args.rescore:
        return _run_rescore(args, options)
    if methods:
        return _run_methods(methods, args, options)
    return _run_logs(logs, args, options)


def _run_drift(out: Path, limit: int | None, options: "RunOptions") -> int:
    import tempfile

    from bench.verify import drift
    from tsd.files import write_text

    with tempfile.TemporaryDirectory() as folder:
        path = drift.write(drift.measure(options, Path(folder), limit), out)
    print(f"measured: {path}", file=sys.stderr)
    table, values = drift.tabulated(drift.read(out))
    write_text(out / "drift.md", table)
    write_text(out / "drift.csv", values)
    print(table)
    return 0


def _run_rescore(args: argparse.Namespace, options: "RunOptions") -> int:
    from bench.verify.rescore import rescore

    verdicts = list(rescore(args.rescore, options, args.metrics or (), args.limit, args.by))
    _print_rescored(verdicts)
    rows = [verdict.row for verdict in verdicts if verdict.row is not None]
    if not rows:
        return 2
    print(f"recorded in {args.rescore / 'records'}; `bench site` shows it")
    return 0 if all(row.agrees for row in rows) else 1


def _print_rescored(verdicts: "Sequence[Verdict]") -> None:
    from tabulate import tabulate

    from bench.metrics import get_metric

    lines = [
        (
            verdict.testset,
            verdict.method,
            get_metric(row.metric).display,
            row.n if row.n == row.total else f"{row.n} of {row.total}",
            f"{row.largest:.1e}",
            f"{row.allowed:g}",
            "agrees" if row.agrees else f"DIFFERS, most on {row.image}",
        )
        for verdict in verdicts
        if (row := verdict.row) is not None
    ]
    headers = ("test set", "method", "metric", "values", "largest", "allowed", "verdict")
    if lines:
        print(tabulate(lines, headers, tablefmt="plain", disable_numparse=True))
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for verdict in verdicts:
        if verdict.row is None:
            reasons.setdefault((verdict.testset, verdict.method, verdict.reason), []).append(verdict.metric)
    if reasons:
        print("\nnot scored again:")
        for (testset, method, reason), metrics in reasons.items():
            print(f"  {testset} · {method} · {', '.join(metrics)}: {reason}")


def _run_logs(names: "Sequence[str]", args: argparse.Namespace, options: "RunOptions") -> int:
    import json
    from dataclasses import asdict

    from bench.records.records import Records
    from bench.records.schema import VerifiedMetric
    from bench.verify.check import check_log, check_names
    from bench.verify.golden import read_golden
    from bench.verify.result import verification

    metrics = check_names(args.metrics)
    logs = [read_golden(name) for name in names]
    found = [verdict for log in logs for verdict in check_log(log, metrics, options, args.limit)]
    checked = [verdict for verdict in found if isinstance(verdict, VerifiedMetric)]
    result = verification(checked, options.device) if checked else None
    if args.json:
        unchecked = [asdict(verdict) for verdict in found if not isinstance(verdict, VerifiedMetric)]
        print(json.dumps({"verification": result and asdict(result), "unchecked": unchecked}, indent=2))
    else:
        _print_logs(found, result)
    if args.attach and result:
        print(f"attached: {Records(args.attach).write_verification(result)}; `bench table` shows it")
    if not checked:
        return 2
    return 0 if all(verdict.agrees for verdict in checked) else 1


def _print_logs(found: "Sequence[VerifiedMetric | Unchecked]", result: "Verification | None") -> None:
    from tabulate import tabulate

    from bench.provenance import machine_name
    from bench.records.schema import WHOLE_SET, VerifiedMetric
    from bench.verify.golden import KNOWN_PYIQA, TOLERANCES

    checked = [verdict for verdict in found if isinstance(verdict, VerifiedMetric)]
    rows = [
        (
            verdict.log,
            verdict.display,
            verdict.n if verdict.n == verdict.total else f"{verdict.n} of {verdict.total}",
            f"{verdict.largest:.1e}" if verdict.image != WHOLE_SET else "",
            "" if (image := TOLERANCES[verdict.metric].image) is None else f"{image:g}",
            f"{verdict.mean_change:+.1e}",
            f"{TOLERANCES[verdict.metric].mean:g}" if verdict.n == verdict.total else "",
            "agrees" if verdict.agrees else "DIFFERS",
        )
        for verdict in checked
    ]
    headers = ("log", "metric", "images", "largest", "allowed", "mean", "allowed", "verdict")
    if rows:
        print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=("left",) * 2 + ("right",) * 5))
    for verdict in checked:
        if not verdict.agrees and verdict.image != WHOLE_SET:
            print(f"{verdict.log} · {verdict.display}: furthest on {verdict.image}")
    reasons = {verdict.display: TOLERANCES[verdict.metric].reason for verdict in checked}
    if reasons:
        print("\nwhy the tolerances are not zero:")
        print("\n".join(f"  {display}: {reason}" for display, reason in reasons.items()))
    unchecked: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for verdict in found:
        if not isinstance(verdict, VerifiedMetric):
            unchecked.setdefault((verdict.log, verdict.reasons), []).append(verdict.metric)
    if unchecked:
        print("\nnot checked:")
        for (log, lines), metrics in unchecked.items():
            print(f"  {log} · {', '.join(metrics)}: " + "\n    ".join(lines))
    if result:
        place = machine_name(result.environment)
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        print(f"\n{result.date}, {place}; {versions}")
        if result.versions.get("pyiqa") not in KNOWN_PYIQA:
            print(
                f"pyiqa {result.versions.get('pyiqa')} is not among the versions whose source was compared "
                f"({KNOWN_PYIQA[0]} to {KNOWN_PYIQA[-1]}): where it differs, the version may be the reason"
            )


def _run_methods(names: "Sequence[str]", args: argparse.Namespace, options: "RunOptions") -> int:
    from bench.metrics import METRICS, get_metric
    from bench.report.audit import WORDS
    from bench.verify.outputs import check_method

    metrics = [get_metric(name) for name in args.metrics or METRICS]
    checked, wrong = False, False
    for name in names:
        for row in check_method(name, metrics, options, args.run, args.limit):
            _print_row(name, row)
            checked |= not row.reasons
            wrong |= any(cell.verdict == WORDS["outside"] for cell in row.cells)
    if not checked:
        return 2
    return 1 if wrong else 0


def _print_row(method: str, row: "PublishedRow") -> None:
    from tabulate import tabulate

    if row.reasons:
        print(f"{method} on {row.testset}: not checked: " + "\n  ".join(row.reasons))
        return
    of_all = "" if row.n == row.total else f" of {row.total}"
    print(f"{method}, published images of {row.display} (N = {row.n}{of_all}):")
    lines = [
        (
            cell.metric.display,
            f"{cell.measured.value:.{cell.metric.decimals}f}",
            cell.printed.text if cell.printed else "",
            cell.verdict or "nothing printed for it",
            cell.printed.source if cell.printed else "",
        )
        for cell in row.cells
    ]
    print(tabulate(lines, ("metric", "scored here", "printed", "verdict", "source"), "plain", disable_numparse=True))
    if row.likeness:
        like = row.likeness
        print(f"our images beside them: {like.equal} of {like.n} equal at every pixel", end="")
        if like.psnr and like.psnr.value is not None:
            span = f" [{like.psnr.low:.2f}, {like.psnr.high:.2f}]" if like.psnr.low is not None else ""
            print(
                f"; the others {like.psnr.value:.2f} dB PSNR-Y{span} from theirs, at most {like.levels} levels of 8 "
                f"bit ({like.image})",
                end="",
            )
        print()
