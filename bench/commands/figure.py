"""`bench figure`: measures and draws a figure of the paper, of a domain of the ablations or of a real model."""

import argparse
from pathlib import Path

EPILOG = """\
examples:
  bench figure 6                                   the method in one picture, where the score is exact
  bench figure 3 --seeds 0-7
  bench figure 5 --domain text --out figures/text

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
        "--seeds", default="0-2", metavar="A-B", help="seeds of the trainings, e.g. 0-7 or 3 (default: 0-2)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the files (default: figures/DOMAIN)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import importlib
    import sys

    seeds = _seeds(args.seeds)
    from bench.ablation.figures.subjects import open_subject

    subject = open_subject(args.domain)
    figure = importlib.import_module(f"bench.ablation.figures.figure{args.figure}")
    measured = figure.measure(subject, seeds, lambda text: print(text, file=sys.stderr))
    for path in figure.draw(measured, args.out or Path("figures") / subject.name):
        print(path)
    return 0


def _seeds(text: str) -> list[int]:
    from tsd.errors import UserError

    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
        raise UserError(f"--seeds {text}; expected a number or a range such as 0-7")
    return list(range(int(first), int(last or first) + 1))
