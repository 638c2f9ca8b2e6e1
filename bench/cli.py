"""The `bench` command. Each verb is a module under `bench/commands/`."""

import argparse
import sys
from collections.abc import Sequence

from bench import __version__
from bench.commands import (
    apply,
    audit,
    check,
    compare,
    fetch,
    figure,
    figures,
    install,
    latency,
    new_card,
    paper,
    publish,
    restore,
    run,
    score,
    site,
    study,
    sweep,
    table,
    verify,
)
from bench.commands import list as list_
from tsd.console.imports import QUANTIZERS, without
from tsd.console.warned import plain_warnings
from tsd.errors import DEVICE_ERRORS, UserError
from tsd.files import Terminated, megapixels_allowed, print_any_name

EPILOG = """\
examples:
  bench run --table table1 --profile mini         the paper's Table 1 at mini scale, on any machine
  bench run --methods spandrel:weights/net.pth    one more row in that table
  bench table                                     print it again, from its records alone
  bench score outputs/ --hr ground_truth/         score any two folders
  bench apply spandrel:4xNet.pth photos/ -o out   restore photographs of your own
  bench latency                                   Table 3 for this machine: seconds by stage
  bench verify --data-root data                   are the metrics on this machine right?
  bench audit table7 --out reports/realsr         measured against printed, cell by cell
  bench figure 6                                  the method in one picture
  bench study make RUN --methods A B --out study  Figure 8: a voting page from a run
  bench list                                      methods, test sets, metrics, and what is missing

Run `bench VERB --help` for the options of a verb.
"""
CONTINUES = {"apply": "the same command with --skip-existing continues"}
"""What continues after an interruption, where it is not the same command."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measures super-resolution methods with many metrics on many test sets, and writes tables\n"
        "from the records of every image.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tsd-sr-bench {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    measuring = (run, table, audit, site, study, verify, list_, check, restore, score, compare)
    for verb in (*measuring, paper, publish, apply, latency, sweep, figure, figures, fetch, install, new_card):
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0 done, 1 something failed, 2 bad input or a missing requirement."""
    print_any_name()
    args = build_parser().parse_args(argv)
    try:
        with megapixels_allowed(getattr(args, "max_megapixels", None)), plain_warnings(), without(*QUANTIZERS):
            return args.func(args)
    except UserError as error:
        print(f"bench {args.verb}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DEVICE_ERRORS:
            raise
        print(f"bench {args.verb}: {error}; once that is mended the same command continues", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        continues = CONTINUES.get(args.verb, "the same command continues where it stopped")
        print(f"bench {args.verb}: interrupted; {continues}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130


if __name__ == "__main__":
    sys.exit(main())
