"""`bench check METHOD`: the method contract, tried on synthetic images."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

EPILOG = """\
examples:
  bench check bicubic
  bench check spandrel:weights/realesr-general-x4v3.pth
  bench check python:my_method.py:restore --device cuda
  bench check folder:outputs/my-method --testset realsr --data-root data

exit status: 0 the contract is kept, 1 a clause is broken, 2 the method could not be loaded
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "check",
        help="try a method against the contract on synthetic images",
        description="Tries a method against the contract of bench/methods/base.py: shapes, range, odd sizes, "
        "determinism, independence of other images and of global random state. Published outputs are checked for "
        "completeness and size against a test set.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "method", metavar="METHOD", help="a name of `bench list`, spandrel:PATH, python:FILE:FUNCTION, ..."
    )
    parser.add_argument("--device", default="cpu", help="where the method runs (default: cpu)")
    parser.add_argument(
        "--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="its precision (default: fp32)"
    )
    parser.add_argument("--weights-root", type=Path, help="folder of weights (default: $TSD_WEIGHTS, else ./weights)")
    parser.add_argument("--data-root", type=Path, help="folder of test sets (default: $TSD_DATA)")
    parser.add_argument("--testset", help="for published outputs: the test set they belong to")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bench.check import check_folder, check_method, report
    from bench.errors import UserError
    from bench.methods import FolderMethod, MethodOptions, get_method
    from bench.methods.base import FolderRunner
    from bench.missing import describe

    spec = get_method(args.method)
    options = MethodOptions(args.device, args.dtype, args.data_root, args.weights_root, args.testset)
    absent = spec.missing(options)
    if absent:
        raise UserError(f"{spec.name} cannot be checked here:\n{describe(absent)}")
    method = spec.load(options)
    with tqdm(desc=f"checking {spec.name}", unit="clause", delay=2, leave=False, file=sys.stderr) as bar:
        if isinstance(method, FolderMethod):
            if args.testset is None:
                raise UserError(f"{spec.name} is published outputs; name their test set with --testset")
            from bench.testsets import load_testset

            findings = check_folder(method, load_testset(args.testset, args.data_root), bar.update)
        elif isinstance(method, FolderRunner):
            raise UserError(
                f"{spec.name} runs as a process of its own over a whole folder and has no `restore` to try. "
                f"`bench run --methods {spec.name} --limit 1` checks that an image comes out, of the right size"
            )
        else:
            findings = check_method(method, device=args.device, progress=bar.update)
    kept = all(finding.passed is not False for finding in findings)
    if args.json:
        content = {"method": spec.name, "passed": kept, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(content, indent=2))
    else:
        print(report(spec.name, findings))
    return 0 if kept else 1
