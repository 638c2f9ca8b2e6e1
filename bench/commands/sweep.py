"""`bench sweep`: trains the arms of an experiment over seeds, and reports which differences are significant."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.ablation.domain import Domain
    from bench.ablation.experiment import Experiment

EPILOG = """\
examples:
  bench sweep --list                           the experiments that come with the harness, with their cost
  bench sweep mixture-table4                   one of them, into sweeps/mixture-table4
  bench sweep mixture-table4 --seeds 0-19      more seeds; those already there are not trained again
  bench sweep my-question.toml --jobs 4 --out sweeps/my-question
  bench sweep mixture-table4 --report-only     the tables and plots again, from the records
  accelerate launch --num_processes 8 $(which bench) sweep text-table4 --out /shared/text-table4

A cell is an arm with a seed. Within a seed, all arms share start weights, data and every random
draw. After an interruption the same command continues. Cells made with other settings, another
base or other training code are never mixed: they are an error that says what differs.

Into --out go TABLE.md, .csv and .tex, comparisons.csv, forest.png and .svg, curves.png and .svg,
and the records they come from: sweep.json, cells.jsonl and images.npz. A copy of these three is
enough for --report-only.

exit status: 0 if every cell is done, whatever the result says; 1 if a cell failed (the same command
tries it again); 2 for bad input
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="train the arms of an experiment over seeds, and test their differences",
        description="Trains every arm of an experiment with every seed, scores the results, and reports paired\n"
        "differences with intervals, exact tests and the paper's figures beside them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a TOML file, or a name that --list shows")
    parser.add_argument("--list", action="store_true", help="show the experiments that come with the harness")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of cells and report (default: sweeps/NAME)")
    parser.add_argument("--seeds", metavar="SEEDS", help="such as 0-11 or 0-7,12 (default: those of the file)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="train only these arms (default: all)")
    parser.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="cells at a time, each in a process with cores // N threads (default: one for each core; 1 on a GPU)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--report-only", action="store_true", help="train nothing; write the report from the records")
    parser.add_argument(
        "--redo-stale",
        action="store_true",
        help="remove cells made with other settings, base or code, and make them again",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    if args.list:
        print(_listed(), end="")
        return 0
    experiment, domain = _opened(args)
    out = args.out or Path("sweeps") / experiment.name
    if args.report_only:
        _report(experiment, domain, out)
        return 0
    from bench.ablation.experiment import seeds_from
    from bench.ablation.sweep import run_sweep
    from bench.ranks import barrier, on_all_ranks

    seeds = seeds_from(args.seeds, "--seeds") if args.seeds else None
    with on_all_ranks() as rank:
        outcome = run_sweep(
            experiment,
            domain,
            out,
            seeds=seeds,
            arms=args.arms,
            jobs=args.jobs,
            device=args.device,
            redo_stale=args.redo_stale,
            rank=rank,
        )
        if rank.first:
            _report(experiment, domain, out, some=not outcome.failed)
            for line in outcome.failed:
                print(f"failed: {line}", file=sys.stderr)
            if outcome.failed:
                print("the same command tries the failed cells again; error.json in a cell says more", file=sys.stderr)
        barrier(rank)  # a process that ends with a status of 1 makes the launcher end the others
    return 1 if outcome.failed else 0


def _opened(args: argparse.Namespace) -> "tuple[Experiment, Domain]":
    """The experiment and its domain, checked against each other; nothing heavy is imported."""
    from bench.ablation.domain import open_domain
    from bench.ablation.experiment import check_experiment, chosen, find_experiment, read_experiment
    from tsd.errors import UserError

    if args.file is None:
        raise UserError("expected FILE, a TOML file or a name that `bench sweep --list` shows")
    if args.report_only and (args.redo_stale or args.arms or args.seeds):
        raise UserError("--report-only reports all that --out has; expected no --arms, --seeds or --redo-stale with it")
    experiment = read_experiment(find_experiment(args.file))
    domain = open_domain(experiment.domain)
    check_experiment(experiment, domain)
    chosen(args.arms, experiment)
    from bench.ablation.report.published import Published

    Published(experiment, domain)  # refuses rows and columns that the paper does not have
    return experiment, domain


def _report(experiment: "Experiment", domain: "Domain", out: Path, *, some: bool = True) -> None:
    """Writes the report and prints its table. Without any finished cell that is an error if there should be `some`."""
    from bench.ablation.report.write import write_report
    from bench.ablation.sweep import load_records

    records = load_records(experiment, domain, out)
    if some or any(records.of_arm(arm.name) for arm in experiment.arms):
        print(write_report(experiment, domain, records, out).markdown, end="", flush=True)


def _listed() -> str:
    """A line for each shipped experiment, with its question and its cost."""
    from bench.ablation.experiment import read_experiment, shipped

    lines = []
    for path in shipped():
        experiment = read_experiment(path)
        cells = len(experiment.arms) * len(experiment.seeds)
        cost = f"{len(experiment.arms)} arms × {len(experiment.seeds)} seeds = {cells} cells"
        if experiment.cpu_minutes is not None:
            cost += f", about {experiment.cpu_minutes:g} CPU minutes"
        if experiment.nightly:
            cost += ", nightly"
        lines.append(f"{experiment.name}\n    {experiment.question}\n    {cost}\n")
    return "".join(lines) or "no experiments come with this version\n"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a number of processes; expected 1 or more")
    return value
