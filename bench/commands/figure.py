"""`bench figure`: measures and draws a figure of the paper, of records, a domain of the ablations or a real model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.ablation.figures.model import ModelSubject

EPILOG = """\
examples:
  bench figure 6                                   the method in one picture, where the score is exact
  bench figure 1 --metric psnr --testset mini       quality against seconds, from two folders of records
  bench figure 3 --seeds 0-7
  bench figure 5 --domain text --out figures/text
  bench figure 3 --model sd3-medium/ --student runs/full --data photographs/ --seeds 0

Each figure is a PNG, an SVG, and a CSV with its numbers.
"""

FIGURES = {
    "1": "quality against seconds, for every method that has both records",
    "3": "does the teacher point to the data, at the student's outputs and at the truth",
    "4": "outputs of VSD alone, MSE alone and ours, side by side",
    "5": "where and when the predictions of teacher and critic differ",
    "6": "points, fields and the path of a trajectory, in the plane",
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "figure",
        help="draw Figure 1, 3, 4, 5 or 6",
        description="Measures and draws a figure of the paper:\n"
        + "\n".join(f"  {number}  {what}" for number, what in FIGURES.items()),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figure", choices=FIGURES, metavar="FIGURE", help="number of the figure: 1, 3, 4, 5 or 6")
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
    records = parser.add_argument_group("Figure 1, from records of `bench run` and `bench latency`")
    records.add_argument("--metric", default="psnr", metavar="NAME", help="quality (default: psnr)")
    records.add_argument("--testset", default="mini", metavar="NAME", help="test set (default: mini)")
    records.add_argument("--table", default="table1", help="table whose rows are drawn (default: table1)")
    records.add_argument("--size", type=int, default=256, metavar="PIXELS", help="side of the output (default: 256)")
    records.add_argument(
        "--quality", type=Path, default=Path("reports/mini"), metavar="DIR", help="folder of `bench run`"
    )
    records.add_argument(
        "--latency", type=Path, default=Path("reports/latency/mini"), metavar="DIR", help="folder of `bench latency`"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the files (default: figures/DOMAIN)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import importlib
    import sys

    if args.figure == "1":
        return _figure1(args)
    seeds = _seeds(args.seeds)
    from bench.ablation.figures.subjects import open_subject

    subject = open_subject(args.domain) if args.model is None else _model(args)
    figure = importlib.import_module(f"bench.ablation.figures.figure{args.figure}")
    measured = figure.measure(subject, seeds, lambda text: print(text, file=sys.stderr))
    for path in figure.draw(measured, args.out or Path("figures") / subject.name):
        print(path)
    return 0


def _figure1(args: argparse.Namespace) -> int:
    from bench.latency.figures import draw_figure1, measured_points, paper_points
    from bench.metrics import get_metric

    points = measured_points(
        args.quality, args.latency, table=args.table, testset=args.testset, metric=args.metric, size=args.size
    )
    metric = get_metric(args.metric)
    datasets = {"drealsr": "DRealSR", "realsr": "RealSR", "div2k-val": "DIV2K-Val"}
    paper = paper_points(datasets.get(args.testset, ""), args.metric)
    labels = (
        f"seconds per image, {args.size} x {args.size} pixels",
        f"{metric.display} {metric.arrow}, {args.testset}",
    )
    for path in draw_figure1(points, paper, labels, args.out or args.latency):
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
