"""`bench sweep`: trains the arms of an experiment over seeds, and reports which differences are significant."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commands.run import positive

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
  bench sweep table4 --profile paper --dry-run                   memory, GPU hours, what is missing
  bench sweep table4 --profile paper --model sd3/ --prompt-embeds prompts/ --data prepared/ \\
              --data-root data/ --time-limit 23:45               the paper's own scale
  bench sweep table4 --profile paper --model sd3/ --data-root data/ \\
              --student full=a/student no-tsm=b/student no-dasm=c/student     trained already

A cell is an arm with a seed. Within a seed, all arms share start weights, data and every random
draw. After an interruption the same command continues. Cells made with other settings, another
base or other training code are never mixed: they are an error that says what differs.

Into --out go TABLE.md, .csv and .tex, comparisons.csv, forest.png and .svg, curves.png and .svg,
and the records they come from: sweep.json, cells.jsonl and images.npz. A copy of these three is
enough for --report-only.

exit status: 0 if every cell is done, whatever the result says; 1 if a cell failed (the same command
tries it again); 2 for bad input, or if something is missing; 3 if --time-limit was up (the same
command continues)
"""
PROFILES = ("mixture", "text", "paper")
PAPER_FLAGS = (
    "model", "data", "prompt_embeds", "teacher_lora", "student", "testsets", "data_root", "weights_root", "time_limit",
    "dry_run",
)  # fmt: skip
STOPPED = 3
"""The exit status when the time limit was up."""


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
    parser.add_argument(
        "--profile", choices=PROFILES, help="FILE is the name of a table, of this profile: table4 is PROFILE-table4"
    )
    parser.add_argument("--list", action="store_true", help="show the experiments that come with the harness")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of cells and report (default: sweeps/NAME)")
    parser.add_argument("--seeds", metavar="SEEDS", help="such as 0-11 or 0-7,12 (default: those of the file)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="train only these arms (default: all)")
    parser.add_argument(
        "--jobs",
        type=positive,
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
    paper = parser.add_argument_group("experiments of the domain paper")
    paper.add_argument(
        "--model",
        metavar="DIR",
        help="base in diffusers layout, or a hub id in the hub's cache (default: SD3-medium in the weights folder)",
    )
    paper.add_argument("--data", type=Path, metavar="DIR", help="training set that `tsd prepare` wrote")
    paper.add_argument(
        "--prompt-embeds",
        type=Path,
        metavar="DIR",
        help="folder with default/ and null/ prompts (default: the model's)",
    )
    paper.add_argument("--teacher-lora", type=Path, metavar="DIR", help="LoRA folder of a tuned teacher")
    paper.add_argument(
        "--student",
        nargs="+",
        default=[],
        metavar="ARM=DIR",
        help="take a finished student instead of training the arm",
    )
    paper.add_argument(
        "--testsets", nargs="+", metavar="NAME", help="score on these test sets, with the file's metrics"
    )
    paper.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    paper.add_argument(
        "--weights-root", type=Path, metavar="DIR", help="folder of weights (default: $TSD_WEIGHTS, else ./weights)"
    )
    paper.add_argument(
        "--time-limit", metavar="HH:MM", help="stop with checkpoints before this time is up (HH:MM[:SS], or minutes)"
    )
    paper.add_argument(
        "--dry-run", action="store_true", help="plan memory and GPU hours, list what is missing, and train nothing"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    if args.list:
        print(_listed(), end="")
        return 0
    experiment, domain, seeds = _opened(args)
    out = args.out or Path("sweeps") / experiment.name
    if args.dry_run:
        from bench.ablation.paper.call import dry_run
        from bench.ablation.paper.domain import PaperDomain

        assert isinstance(domain, PaperDomain), "the flag is refused for the others"
        print(dry_run(experiment, domain, args.arms, seeds or experiment.seeds, out, args.device), end="")
        return 0
    if args.report_only:
        _report(experiment, domain, out)
        return 0
    from tsd.files import require_writable

    require_writable(out)
    if (warning := _undecided(experiment, len(seeds or experiment.seeds))) is not None:
        print(f"note: {warning}", file=sys.stderr)
    from bench.ablation.sweep import run_sweep
    from bench.ranks import barrier, on_all_ranks

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
            _report(experiment, domain, out, some=not (outcome.failed or outcome.stopped))
            for line in outcome.failed:
                print(f"failed: {line}", file=sys.stderr)
            if outcome.failed:
                print("the same command tries the failed cells again; error.json in a cell says more", file=sys.stderr)
            for name in outcome.stopped:
                print(f"not done in time, the same command continues: {name}", file=sys.stderr)
        barrier(rank)  # a process that ends with a status of 1 makes the launcher end the others
    return 1 if outcome.failed else STOPPED if outcome.stopped else 0


def _opened(args: argparse.Namespace) -> "tuple[Experiment, Domain, tuple[int, ...] | None]":
    """The experiment and its domain, checked against each other, and --seeds; nothing heavy is imported."""
    from bench.ablation.domain import open_domain
    from bench.ablation.experiment import check_experiment, chosen, find_experiment, read_experiment, seeds_from
    from tsd.errors import UserError

    if args.file is None:
        raise UserError("expected FILE, a TOML file or a name that `bench sweep --list` shows")
    if args.report_only and (args.redo_stale or args.arms or args.seeds):
        raise UserError("--report-only reports all that --out has; expected no --arms, --seeds or --redo-stale with it")
    if args.report_only and args.dry_run:
        raise UserError("--report-only and --dry-run exclude each other; expected one of them")
    experiment = read_experiment(find_experiment(_name(args.file, args.profile)))
    domain = open_domain(experiment.domain)
    seeds = seeds_from(args.seeds, "--seeds") if args.seeds else None
    given = [flag for flag in PAPER_FLAGS if getattr(args, flag)]
    if domain.name == "paper":
        experiment, domain = _of_paper(args, experiment, seeds)
    elif given:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise UserError(f"{flags}: only for experiments of the domain paper; {experiment.name} is of {domain.name}")
    check_experiment(experiment, domain)
    chosen(args.arms, experiment)
    from bench.ablation.report.published import Published

    Published(experiment, domain)  # refuses rows and columns that the paper does not have
    return experiment, domain, seeds


def _name(file: str, profile: str | None) -> str:
    """The experiment that FILE means with --profile: `paper-table4` for `table4`; a path or a whole name stays."""
    from bench.ablation.experiment import shipped

    if profile is None or Path(file).suffix == ".toml" or file in {path.stem for path in shipped()}:
        return file
    return f"{profile}-{file}"


def _of_paper(
    args: argparse.Namespace, experiment: "Experiment", seeds: tuple[int, ...] | None
) -> "tuple[Experiment, Domain]":
    """The experiment and its domain with the files and limits of the flags.

    Raises:
        UserError: a flag of another form, or something is missing that is not only planned; lists all of it.
    """
    from bench.ablation.paper.call import opened, require
    from bench.ablation.paper.files import Files
    from tsd.errors import UserError

    students = [text.partition("=") for text in args.student]
    wrong = [arm + equals + folder for arm, equals, folder in students if not arm or not folder]
    if wrong or len({arm for arm, _, _ in students}) < len(students):
        raise UserError(f"--student {' '.join(args.student)}: expected ARM=DIR, each arm once")
    files = Files(
        model=args.model,
        data=args.data,
        prompt_embeds=args.prompt_embeds,
        teacher_lora=args.teacher_lora,
        students=tuple((arm, Path(folder).expanduser()) for arm, _, folder in students),
        data_root=args.data_root,
        weights_root=args.weights_root,
    )
    opened_experiment, domain = opened(experiment, files, testsets=args.testsets, time_limit=args.time_limit)
    if args.dry_run:
        return opened_experiment, domain
    if args.report_only:
        return require(opened_experiment, domain, None, (), args.device, running=False), domain
    return require(opened_experiment, domain, args.arms, seeds or experiment.seeds, args.device), domain


def _undecided(experiment: "Experiment", seeds: int) -> str | None:
    """Why so many seeds cannot decide anything, and how many can; None if they can, or nothing is asked."""
    from bench.ablation.statistics import too_few_seeds

    tests = experiment.tests()
    return too_few_seeds(seeds, tests) if tests else None


def _report(experiment: "Experiment", domain: "Domain", out: Path, *, some: bool = True) -> None:
    """Writes the report and prints its table. Without any finished cell that is an error if there should be `some`."""
    from bench.ablation.report.write import write_report
    from bench.ablation.sweep import load_records

    records = load_records(experiment, domain, out)
    if some or any(records.of_arm(arm.name) for arm in experiment.arms):
        print(write_report(experiment, domain, records, out).markdown, end="", flush=True)


def _listed() -> str:
    """Each shipped experiment with its question, its cost, and whether its seeds are too few."""
    from bench.ablation.experiment import read_experiment, shipped

    lines = []
    for path in shipped():
        experiment = read_experiment(path)
        cells = len(experiment.arms) * len(experiment.seeds)
        seeds = f"{len(experiment.seeds)} seed{'s' if len(experiment.seeds) != 1 else ''}"
        cost = f"{len(experiment.arms)} arms × {seeds} = {cells} cells"
        if experiment.cpu_minutes is not None:
            cost += f", about {experiment.cpu_minutes:g} CPU minutes"
        if experiment.nightly:
            cost += ", nightly"
        undecided = _undecided(experiment, len(experiment.seeds))
        remark = "" if undecided is None else f"    {undecided}\n"
        lines.append(f"{experiment.name}\n    {experiment.question}\n    {cost}\n{remark}")
    return "".join(lines) or "no experiments come with this version\n"
