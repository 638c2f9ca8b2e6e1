"""`bench check METHOD`: checks the method contract on synthetic images."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.precision import PRECISIONS

if TYPE_CHECKING:
    from bench.cards.card import Card

EPILOG = """\
examples:
  bench check bicubic
  bench check spandrel:weights/realesr-general-x4v3.pth
  bench check python:my_method.py:restore --device cuda
  bench check folder:outputs/my-method --testset realsr --data-root data
  bench check sinsr --repo-dir clones      its card against clones/SinSR (or .git, .bundle)
  bench check card:mine.toml --repo-dir clones

exit status: 0 if the contract is kept; 1 if a clause is broken; 2 if the method could not be loaded
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "check",
        help="check that a method keeps the contract",
        description="Checks on synthetic images that a method keeps the contract of bench/methods/base.py:\n"
        "shapes, range, odd sizes, determinism, independence of other images and of the global random\n"
        "state. Published outputs are compared with a test set: is every image there, and of the right\n"
        "size? For a method that runs its authors' repository, its card is checked against the\n"
        "repository (commit, flags, links, patches); nothing is installed or run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "method",
        metavar="METHOD",
        help="a name of `bench list methods`, or spandrel:PATH, folder:PATH, python:FILE.py:FUNCTION, card:PATH.toml",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--dtype", default="fp32", choices=PRECISIONS, help="precision of the networks (default: fp32)")
    parser.add_argument(
        "--weights-root", type=Path, metavar="DIR", help="folder of weights (default: $TSD_WEIGHTS, else ./weights)"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    parser.add_argument("--testset", metavar="NAME", help="for published outputs: the test set they belong to")
    parser.add_argument("--limit", type=int, metavar="N", help="for published outputs: only the first N images")
    parser.add_argument(
        "--repo-dir",
        type=Path,
        metavar="DIR",
        help="for a card: a clone or bundle of its repository, or a folder that holds it",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import json

    from bench.methods import FolderMethod, get_method
    from bench.methods.base import Method
    from bench.methods.check import check_folder, check_method, report
    from bench.options import RunOptions
    from bench.store.missing import describe
    from tsd.console.progress import Progress
    from tsd.errors import UserError

    spec = get_method(args.method)
    if spec.card is not None and spec.how == "own environment":
        return _check_card(spec.card, args.repo_dir, args.json)
    options = RunOptions(args.device, args.dtype, args.data_root, args.weights_root, args.testset)
    absent = spec.missing(options)
    if absent:
        raise UserError(f"{spec.name} cannot be checked here:\n{describe(absent)}")
    method = spec.load(options)
    with Progress(desc=f"checking {spec.name}", unit="clause", delay=2, leave=False) as bar:
        if isinstance(method, FolderMethod):
            if args.testset is None:
                raise UserError(f"{spec.name} is published outputs; name their test set with --testset")
            from bench.testsets.manifest import load_testset

            findings = check_folder(method, load_testset(args.testset, args.data_root, args.limit), bar.update)
        else:
            assert isinstance(method, Method)  # a `FolderRunner` comes from a card and was checked above
            findings = check_method(method, device=args.device, progress=bar.update)
    kept = all(finding.passed is not False for finding in findings)
    if args.json:
        content = {"method": spec.name, "passed": kept, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(content, indent=2))
    else:
        print(report(spec.name, findings))
    return 0 if kept else 1


def _check_card(card: "Card", repo_dir: Path | None, as_json: bool) -> int:
    import json

    from bench.methods.external.check import check_card
    from tsd.errors import UserError

    if repo_dir is None:
        raise UserError(
            f"{card.name} runs {card.repository} in an environment of its own: what can be checked is its card, "
            "against a clone or bundle of that repository. Name it, or a folder that holds it, with --repo-dir"
        )
    checks = check_card(card, repo_dir)
    kept = all(check.passed for check in checks)
    if as_json:
        print(json.dumps({"card": card.name, "passed": kept, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print("\n".join(check.line() for check in checks))
    return 0 if kept else 1
