"""`bench restore`: the first stage alone, for a machine with a GPU and without the metrics."""

import argparse

from bench.commands.run import add_common, request_of, status_of

EPILOG = """\
examples:
  bench restore --methods tsd-sr --testsets realsr --data-root data --out reports/paper
  bench restore --methods lanczos --limit 3 --out out

`bench run` with the same --out scores what is there and adds the rest.
exit status: 0 if every method that can run here restored every image (the others are named); 1 if
one failed on some image; 2 for bad input or a missing requirement
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "restore",
        help="restore the test sets without scoring the images",
        description="Restores the test sets with the given methods, without scoring. In the folder of the results,\n"
        "the images are in images/ and their rows in records/.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.ranks import barrier, on_all_ranks

    with on_all_ranks() as rank:
        from bench.run.pipeline import Stages

        stages = Stages.of(request_of(args), rank, scoring=False)
        with stages.hold():
            stages.announce()
            stages.restore()
        for line in stages.report() if rank.first else ():
            print(line, flush=True)
        status = status_of(stages.failed, rank.first)
        barrier(rank)
    return status
