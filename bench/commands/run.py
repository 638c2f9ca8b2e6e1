"""`bench run`: restore, score, summarize, render; what is already recorded is not done again."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from bench.run.request import Request
from tsd.precision import PRECISIONS

EPILOG = """\
examples:
  bench run                                                 Table 1 at mini scale, in reports/mini
  bench run --methods spandrel:weights/net.pth              one more row in it
  bench run --methods my-net=folder:outputs --testsets realsr --data-root data --out reports/realsr
  bench run --metrics psnr ssim --limit 3                   a quick look, in reports/mini-first3
  bench run --profile paper --data-root data --device cuda  the real test sets and models
  bench run --profile paper --newer --data-root data        and methods that came after the paper
  bench run --redo tsd-sr-mini                              after its weights or settings changed

After an interruption the same command continues. The seconds differ from run to run; with
--no-timing the table is the same byte for byte. Nothing is downloaded: what is missing is named,
and `bench fetch` gets it.

With accelerate, any number of GPUs and machines share a run over one output folder:
  accelerate launch --num_processes 8 $(which bench) run --table table2 --profile paper \\
    --out reports/paper
  accelerate launch --num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip HOST \\
    --main_process_port 29500 $(which bench) run --table table2 --profile paper --out /shared/paper
    (the same on the other machine with --machine_rank 1)
  accelerate launch --multi_gpu --num_processes 2 $(which bench) run --device cpu
    (two processes without a GPU)
Methods are measured one after another; each process restores and scores its share of the images.
Any number of processes can resume a run that was killed. The records do not depend on the number.

exit status: 0 if everything that can be measured here is in the table; 1 if a method or metric
failed on some image (the table says where); 2 for bad input or a missing requirement. A method
that cannot run here does not count as a failure: the table gives the reason.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "run",
        help="measure a table of the paper: restore, score, summarize, render",
        description="Measures a table: restores the test sets with every method, scores the images, and writes the\n"
        "table (TABLE.md, .csv, .tex and .png) and the per-image records that it comes from.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", default=Request.table, help="table of the paper (default: table1)")
    add_common(parser)
    parser.add_argument(
        "--metrics",
        "--metric",
        nargs="+",
        metavar="NAME",
        help="columns: names of `bench list metrics` (default: those of the profile)",
    )
    add_timing(parser)
    parser.add_argument(
        "--figure",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="draw TABLE.png beside the table (default: yes for test sets whose images may be handed on)",
    )
    parser.add_argument(
        "--images", nargs="+", metavar="NAME", help="images of TABLE.png (default: three, evenly spread)"
    )
    parser.add_argument("--reference", metavar="METHOD", help="row that paired differences refer to (default: bicubic)")
    parser.set_defaults(func=run)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that `bench run` and `bench restore` share."""
    parser.add_argument(
        "--profile",
        default=Request.profile,
        choices=("mini", "paper"),
        help="mini: the test set and models in the repository; paper: those of the paper (default: mini)",
    )
    parser.add_argument(
        "--newer",
        action="store_true",
        help="Table 1 in the profile paper: also one-step methods that came after the paper",
    )
    parser.add_argument(
        "--methods",
        "--method",
        nargs="+",
        metavar="METHOD",
        help="rows: names of `bench list methods`, or spandrel:PATH, folder:PATH, python:FILE.py:FUNCTION, ... "
        "(default: those of the profile)",
    )
    parser.add_argument(
        "--testsets", "--testset", nargs="+", metavar="NAME", help="test sets (default: those of the profile)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images of each test set")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: reports/PROFILE)")
    parser.add_argument("--seed", type=int, default=Request.seed, metavar="N", help="seed of the run (default: 42)")
    parser.add_argument("--device", default=Request.device, help="cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument(
        "--dtype", default=Request.dtype, choices=PRECISIONS, help="precision of the networks (default: fp32)"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    parser.add_argument(
        "--weights-root", type=Path, metavar="DIR", help="folder of weights (default: $TSD_WEIGHTS, else ./weights)"
    )
    add_environments(parser)
    parser.add_argument(
        "--time-limit",
        type=positive_seconds,
        metavar="SECONDS",
        help="how long a method's own process may take for one test set (default: from its card and the number of "
        "images)",
    )
    parser.add_argument(
        "--allow-missing",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure without the test sets and metrics that are missing (default: yes in the profile mini, no in "
        "paper); with --no-allow-missing a missing method is an error too",
    )
    parser.add_argument(
        "--redo",
        nargs="+",
        default=Request.redo,
        metavar="METHOD",
        help="measure these methods again; their records are moved aside",
    )


def add_timing(parser: argparse.ArgumentParser) -> None:
    """The option of the verbs that write a table: with or without the seconds, which differ from run to run."""
    parser.add_argument(
        "--timing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the seconds per image (default: yes)",
    )


def add_environments(parser: argparse.ArgumentParser) -> None:
    """The options of methods that run in an environment of their own: where they come from, and where they are kept."""
    parser.add_argument(
        "--repo-dir",
        type=Path,
        metavar="DIR",
        help="folder of clones or bundles of the methods' repositories (default: from the network)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of checkouts and environments (default: $TSD_CACHE, else ~/.cache/tsd-sr-bench)",
    )


def positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time limit; expected seconds above 0")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small; expected 1 or more")
    return value


def request_of(args: argparse.Namespace) -> Request:
    """The request that the options make. Options that a verb does not have keep the defaults of `Request`."""
    given = vars(args) | {"cache_root": args.cache, "time_limit_seconds": args.time_limit}
    return Request(**{field.name: given[field.name] for field in fields(Request) if field.name in given})


def status_of(failed: Sequence[str], first: bool) -> int:
    """The exit status, the same in every process; the first process prints what failed."""
    for line in failed if first else ():
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def run(args: argparse.Namespace) -> int:
    from bench.ranks import barrier, on_all_ranks

    with on_all_ranks() as rank:
        from bench.run.pipeline import measure

        measured = measure(request_of(args), rank)
        if rank.first:
            print(measured.markdown, end="", flush=True)
            out = shlex.quote(str(measured.records.out))
            print(f"to look at it: bench site {out} --out {out}/site", file=sys.stderr)
        status = status_of(measured.failed, rank.first)
        barrier(rank)  # a process that ends with a status of 1 makes the launcher end the others
    return status
