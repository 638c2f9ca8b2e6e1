"""`bench restore`: the first stage alone, for a machine with a GPU and without the metrics."""

import argparse

from bench.commands.run import add_common

EPILOG = """\
examples:
  bench restore --methods tsd-sr --testsets realsr --data-root data --device cuda --out reports/paper
  bench restore --methods lanczos --limit 3 --out out

`bench run` with the same --out scores what is there and adds the rest.
exit status: 0 every image is restored by every method that can run here (the others are named), 1 a method failed on
some image, 2 bad input or a missing requirement
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "restore",
        help="only restore: images and their rows, no scores",
        description="Restores the test sets with the methods named: images under DIR/images, rows under DIR/records.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.shards import in_step, wait

    args.table, args.metrics, args.reference, args.allow_missing = "table1", None, None, None
    with in_step() as shard:
        from bench.pipeline import Stages

        stages = Stages.from_args(args, scoring=False, shard=shard)
        with stages.hold():
            stages.announce()
            stages.restore()
        for line in stages.report() if shard.first else ():
            print(line, flush=True)
        status = stages.status()
        wait(shard)
    return status
