"""`bench latency`: Table 3 for any device: seconds per image by stage, operations, memory."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from bench.commands.run import add_environments
from bench.latency.request import LatencyRequest
from tsd.console.progress import Progress
from tsd.precision import PRECISIONS

EPILOG = """\
examples:
  bench latency                                            the mini models, in reports/latency/mini
  bench latency --profile paper --random-weights --dtype fp16        Table 3's shapes on a GPU, no weights
  bench latency --profile paper --random-weights --device cpu --dtype bf16 --threads 1 \\
    --methods tsd-sr osediff --rounds 5                    the same on a CPU: minutes a round
  bench latency --profile paper --weights-root weights --sizes 512 1024 2048
  bench latency --methods tsd-sr-mini python:mine.py:restore         your own function beside it

A row is NAME or NAME@FORM: `tsd-sr@released` computes the images as the released script does, with
adapters beside the weights and the default memory layout.
All methods are loaded at once and take turns, so that ratios hold on a machine that others use
too. An interrupted measurement goes on with the same command; `bench table --table table3 --out
DIR` writes the table again.

exit status: 0 if every row that can be timed here was; 1 if one failed; 2 for bad input.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "latency",
        help="measure Table 3: seconds per image by stage, operations, memory",
        description="Measures the seconds per image of methods that take turns in one process, stage by stage, with\n"
        "their operations, parameters and peak memory, and writes table3.md, .csv, .tex and a chart of\n"
        "the stages, with the records of single calls that they come from.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", default=LatencyRequest.table, help="table of the paper (default: table3)")
    parser.add_argument(
        "--profile",
        default=LatencyRequest.profile,
        choices=("mini", "paper"),
        help="mini: the models in the repository; paper: those of Table 3, on a GPU unless --device says cpu "
        "(default: mini)",
    )
    parser.add_argument(
        "--methods", "--method", nargs="+", metavar="ROW", help="rows, NAME or NAME@FORM (default: the profile's)"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        metavar="PIXELS",
        help="sides of the square outputs; the inputs are a quarter as large (default: 256 in mini, 512 in paper)",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="timed calls of each method (default: 30 on a GPU, 10 on a CPU)"
    )
    parser.add_argument(
        "--warmups",
        type=int,
        metavar="N",
        help="calls before that (default: 10 on a GPU, 3 on a CPU)",
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="build the networks that can be at their real shape with random weights; the rows say so",
    )
    parser.add_argument("--compile", action="store_true", help="compile the networks with torch.compile")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (default: torch's choice)")
    parser.add_argument("--device", default=LatencyRequest.device, help="cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument(
        "--dtype", default=LatencyRequest.dtype, choices=PRECISIONS, help="precision of the networks (default: fp32)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the results (default: reports/latency/PROFILE)"
    )
    parser.add_argument(
        "--redo",
        nargs="+",
        default=LatencyRequest.redo,
        metavar="ROW",
        help="time these rows again, or `all`; their records are moved aside",
    )
    parser.add_argument(
        "--weights-root", type=Path, metavar="DIR", help="folder of weights (default: $TSD_WEIGHTS, else ./weights)"
    )
    add_environments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.latency.figures import draw_stages
    from bench.latency.measure import measure_latency
    from bench.latency.summary import summarize_latency
    from bench.latency.table import write_latency_table

    given = vars(args) | {"cache_root": args.cache}
    request = LatencyRequest(**{field.name: given[field.name] for field in fields(LatencyRequest)})
    plan = measure_latency(request, lambda line: Progress.write(line, file=sys.stderr))
    out = request.folder()
    print(write_latency_table(out, plan), end="", flush=True)
    pictures = draw_stages(out, plan)
    print(f"written: {', '.join(map(str, [out / f'{plan.table}.md', *pictures]))}", file=sys.stderr)
    failed = [
        f"{row.row.display} at {table.size}: {row.reasons[0]}"
        for table in summarize_latency(out, plan)
        for row in table.rows
        if row.seconds is None and not row.row.missing
    ]
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0
