"""`bench figure`: measures and draws a figure of the paper, of a domain of the ablations or of a real model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.ablation.figures.model import ModelSubject

EPILOG = """\
examples:
  bench figure 6                                   the method in one picture, where the score is exact
  bench figure 3 --seeds 0-7
  bench figure 5 --domain text --out figures/text
  bench figure 3 --model sd3-medium/ --student runs/full --data photographs/ --seeds 0

Each figure is a PNG, an SVG, and a CSV with its numbers.
"""

FIGURES = {
    "3": "does the teacher point to the data, at the student's outputs and at the truth",
    "4": "outputs of VSD alone, MSE alone and ours, side by side",
    "5": "where and when the predictions of teacher and critic differ",
    "6": "points, fields and the path of a trajectory, in the plane",
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "figure",
        help="measure and draw Figure 3, 4, 5 or 6",
        description="Measures and draws a figure of the paper:\n"
        + "\n".join(f"  {number}  {what}" for number, what in FIGURES.items()),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figure", choices=FIGURES, metavar="FIGURE", help="number of the figure: 3, 4, 5 or 6")
    parser.add_argument("--domain", default="mixture", help="domain of the ablations (default: mixture)")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="a real model in diffusers layout instead of a domain, with --student"
    )
    parser.add_argument(
        "--student",
        nargs="+",
        default=[],
        type=Path,
        metavar="DIR",
        help="its students: LoRA folders, or --output folders of `tsd train`, which hold the critic and every moment",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="with --model: ground-truth photographs, which are cut and degraded"
    )
    parser.add_argument(
        "--crop", type=int, default=256, metavar="PIXELS", help="with --model: side of the squares (default: 256)"
    )
    parser.add_argument(
        "--seeds", default="0-2", metavar="A-B", help="seeds of the trainings, e.g. 0-7 or 3 (default: 0-2)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the files (default: figures/DOMAIN)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import importlib
    import sys

    seeds = _seeds(args.seeds)
    from bench.ablation.figures.subjects import open_subject

    subject = open_subject(args.domain) if args.model is None else _model(args)
    figure = importlib.import_module(f"bench.ablation.figures.figure{args.figure}")
    measured = figure.measure(subject, seeds, lambda text: print(text, file=sys.stderr))
    for path in figure.draw(measured, args.out or Path("figures") / subject.name):
        print(path)
    return 0


def _model(args: argparse.Namespace) -> "ModelSubject":
    from bench.ablation.figures.model import ModelSubject
    from tsd.errors import UserError

    if not args.student or args.data is None:
        raise UserError("--model needs --student DIR and --data DIR: nothing is trained, and photographs are degraded")
    students = {folder.name: folder for folder in args.student}
    if len(students) < len(args.student):
        raise UserError("--student: two folders have the same name, which is their label in the figures")
    return ModelSubject(args.model, students, args.data, args.crop)


def _seeds(text: str) -> list[int]:
    from tsd.errors import UserError

    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
        raise UserError(f"--seeds {text}; expected a number or a range such as 0-7")
    return list(range(int(first), int(last or first) + 1))
