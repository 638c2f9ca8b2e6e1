"""`bench list`: methods, test sets, metrics, tables, one line each. `bench list NAME`: one of them in full."""

import argparse
from pathlib import Path

KINDS = ("methods", "testsets", "metrics", "tables")
EPILOG = """\
examples:
  bench list
  bench list methods --weights-root weights
  bench list sinsr           its paper, code, weights, environment, command and settings
  bench list lpips           its protocol, the source of its weights, and where they are kept
  bench list testsets --data-root data
  bench list --updates       cards whose repository moved on since the pinned commit; asks the network

In a terminal, `bench list methods` cuts long texts to its width; `bench list NAME` shows them in
full.
A method may also be a path: spandrel:weights/net.pth, folder:outputs, python:FILE.py:FUNCTION,
card:my-method.toml.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "list",
        help="list methods, test sets and metrics, and what is missing for them",
        description="Lists methods, test sets, metrics and tables, and says what is missing for those that cannot\n"
        "be used here. It looks at file names only.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="KIND|NAME",
        help=f"{', '.join(KINDS)}, or the name of a method or a metric (default: all kinds)",
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    parser.add_argument(
        "--weights-root", type=Path, metavar="DIR", help="folder of weights (default: $TSD_WEIGHTS, else ./weights)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of checkouts and environments (default: $TSD_CACHE, else ~/.cache/tsd-sr-bench)",
    )
    parser.add_argument(
        "--updates",
        action="store_true",
        help="ask the repositories of all cards, or of those named, whether they moved on since the pinned commit",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import difflib

    from bench.device import resolve_device
    from bench.options import RunOptions
    from tsd.errors import UserError

    if args.updates:
        return _updates([name for name in args.names if name != "methods"])
    device = resolve_device("auto")
    options = RunOptions(device, data_root=args.data_root, weights_root=args.weights_root, cache_root=args.cache)
    asked = args.names or list(KINDS)
    for name in asked:
        near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.75)
        if near and name not in KINDS:
            raise UserError(
                f"cannot list {name!r}, did you mean {near[0]}? choose from {', '.join(KINDS)}, a method, a metric"
            )
    described = [_description(name, options) for name in asked if name not in KINDS]
    lister = {"methods": _methods, "testsets": _testsets, "metrics": _metrics, "tables": _tables}
    kinds = [kind for kind in KINDS if kind in asked]
    for number, kind in enumerate(kinds):
        if len(kinds) > 1:
            print(f"{chr(10) if number else ''}{kind}:")
        print(lister[kind](options))
    for number, text in enumerate(described):
        print(("\n" if number or kinds else "") + text)
    return 0


def _updates(names: list[str]) -> int:
    """Prints a line for each repository; the status is 1 if one could not be asked, else 0.

    Raises:
        UserError: a name has no card.
    """
    from bench.cards.card import cards
    from bench.methods.external.updates import updates
    from tsd.errors import UserError

    known = cards()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"no card is called {unknown[0]!r}; there are {', '.join(known)}")
    failed = False
    for found in updates([known[name] for name in names or known]):
        print(found.line())
        failed |= found.error is not None
    return 1 if failed else 0


def _description(name: str, options) -> str:
    """Describes one metric or one method in full.

    Raises:
        UserError: neither has that name; lists the methods, and suggests the closest name.
    """
    import difflib

    from bench.methods import get_method
    from bench.methods.describe import description as describe_method
    from bench.metrics import EXTRA_METRICS, METRICS
    from bench.metrics.describe import description as describe_metric
    from tsd.errors import UserError

    metrics = METRICS | EXTRA_METRICS
    if name in metrics:
        return describe_metric(metrics[name])
    near = difflib.get_close_matches(name, metrics, n=1, cutoff=0.75)
    if near:
        raise UserError(f"nothing is called {name!r}, did you mean {near[0]}? `bench list metrics` has all metrics")
    spec = get_method(name)
    return describe_method(spec.name, spec, options)


def _methods(options) -> str:
    import shutil

    from tabulate import tabulate

    from bench.methods import METHODS
    from bench.methods.describe import HEADERS, fit_to_width, overview

    rows = [overview(name, spec, options) for name, spec in METHODS.items()]
    rows = fit_to_width(rows, shutil.get_terminal_size((0, 0)).columns)  # no terminal: nothing is cut
    return tabulate(rows, headers=HEADERS, tablefmt="plain", disable_numparse=True)


def _lines(rows: list[tuple[str, str, list[str]]]) -> str:
    """One line a row: name, what it is, and whether it is available."""
    return "\n".join(
        f"  {name:<20} {about} · {'available' if not missing else 'missing: ' + '; '.join(missing)}"
        for name, about, missing in rows
    )


def _testsets(options) -> str:
    from bench.testsets.manifest import TESTSETS, missing_testset

    return _lines(
        [(name, name, [item.line() for item in missing_testset(name, options.data_root)]) for name in TESTSETS]
    )


def _metrics(options) -> str:
    from bench.metrics import EXTRA_METRICS, METRICS, missing_metric
    from bench.store.missing import brief

    return _lines(
        [
            (
                name,
                f"{spec.display} {spec.arrow} ({_reference(spec)})",
                brief(missing_metric(spec)),
            )
            for name, spec in (METRICS | EXTRA_METRICS).items()
        ]
    )


def _reference(spec) -> str:
    if spec.needs_input:
        return "against the input"
    return "full reference" if spec.needs_reference else "no reference"


def _tables(options) -> str:
    from bench.paper.tables import TABLES

    rows = []
    for name, spec in TABLES.items():
        if spec.profiles:
            rows.append((name, f"{spec.title} (profiles {', '.join(spec.profiles)})", []))
        elif spec.verb:
            rows.append((name, f"{spec.title} (`{spec.verb}`)", []))
        else:
            missing = ["no row of it can be measured by this version"]
            rows.append((name, f"{spec.title} (the paper's figures: bench/paper/{spec.paper})", missing))
    return _lines(rows)
