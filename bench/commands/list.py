"""`bench list`: methods, test sets, metrics, tables; one line each, available or what is missing."""

import argparse
from pathlib import Path

KINDS = ("methods", "testsets", "metrics", "tables")
EPILOG = """\
examples:
  bench list
  bench list methods --weights-root weights
  bench list testsets --data-root data

A method may also be a path: spandrel:weights/net.pth, folder:outputs, python:FILE.py:FUNCTION.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "list",
        help="methods, test sets, metrics: available, or what is missing",
        description="Lists what can be measured, and for what cannot, what is missing. Looks at file names only.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (default: all)")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    parser.add_argument("--weights-root", type=Path, metavar="DIR", help="folder of weights (default: $TSD_WEIGHTS)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.errors import UserError

    for kind in args.kinds:
        if kind not in KINDS:
            raise UserError(f"cannot list {kind!r}; choose from {', '.join(KINDS)}")
    lister = {"methods": _methods, "testsets": _testsets, "metrics": _metrics, "tables": _tables}
    kinds = [kind for kind in KINDS if kind in args.kinds or not args.kinds]
    for kind in kinds:
        if len(kinds) > 1:
            print(f"{kind}:")
        for name, about, missing in lister[kind](args):
            state = "available" if not missing else "missing: " + "; ".join(missing)
            print(f"  {name:<20} {about} · {state}")
    return 0


def _methods(args: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    from bench.methods import METHODS, MethodOptions

    options = MethodOptions(data_root=args.data_root, weights_root=args.weights_root)
    return [
        (name, f"{spec.display}: {spec.summary} ({spec.licence})", [item.line() for item in spec.missing(options)])
        for name, spec in METHODS.items()
    ]


def _testsets(args: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    from bench.testsets import TESTSETS, missing_testset

    return [(name, name, [item.line() for item in missing_testset(name, args.data_root)]) for name in TESTSETS]


def _metrics(args: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    from bench.metrics import EXTRA_METRICS, METRICS, missing_metric

    return [
        (
            name,
            f"{spec.display} {spec.arrow} ({'full reference' if spec.needs_reference else 'no reference'})",
            [item.line() for item in missing_metric(spec)],
        )
        for name, spec in (METRICS | EXTRA_METRICS).items()
    ]


def _tables(args: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    from bench.tables import TABLES

    rows = []
    for name, spec in TABLES.items():
        if spec.profiles:
            rows.append((name, f"{spec.title} (profiles {', '.join(spec.profiles)})", []))
        else:
            missing = ["no row of it can be measured by this version"]
            rows.append((name, f"{spec.title} (the paper's figures: bench/paper/{spec.paper})", missing))
    return rows
