"""The `tsd` command: one verb, one module under `tsd/commands/`."""

import argparse
import sys
from collections.abc import Sequence

from tsd import __version__
from tsd.commands import app, degrade, distill_decoder, export, prepare, prompts, restore, train
from tsd.console.warned import plain_warnings
from tsd.errors import DEVICE_ERRORS, UserError
from tsd.files import Terminated, ended_by_sigterm, megapixels_allowed, print_any_name

CONTINUES = {
    "restore": "the same command with --skip-existing continues",
    "degrade": "the same command with --skip-existing continues",
    "train": "the same command with --resume continues from the last checkpoint",
    "app": "uploads and results were removed",
    "export": "nothing was written; the same command starts again",
}

EPILOG = """\
examples:
  tsd restore photo.jpg -o restored/            upscale x4 with the mini model in the package
  tsd app                                       the same in a page for the browser
  tsd prompts --model sd3/ --out prompts/       the release's prompt embeddings, from their texts
  tsd prepare photos/ --out data/ --model sd3/  crops, captions and latents once, before training
  tsd train --preset mini --data photos/ --output run/
  tsd export --run run/ --out student/          the trained student as a model folder with a card
  tsd degrade photos/ -o low/ --set full        make low-resolution test inputs
  tsd distill-decoder photos/ --output small/   a small decoder, for faster restoration
Run `tsd VERB --help` for the options of a verb.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tsd",
        description="TSD-SR: one-step diffusion super-resolution by target score distillation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tsd-sr-bench {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in (restore, app, prompts, prepare, train, export, degrade, distill_decoder):
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    0: done, 1: partly failed, 2: bad input (one message on stderr), 130 and 143: interrupted by Ctrl-C and SIGTERM.
    """
    print_any_name()
    args = build_parser().parse_args(argv)
    try:
        with megapixels_allowed(getattr(args, "max_megapixels", None)), plain_warnings(), ended_by_sigterm():
            return args.func(args)
    except UserError as error:
        print(f"tsd {args.verb}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DEVICE_ERRORS:
            raise
        print(f"tsd {args.verb}: {error}; once that is mended: {_continues(args.verb)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"tsd {args.verb}: interrupted; {_continues(args.verb)}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130


def _continues(verb: str) -> str:
    return CONTINUES.get(verb, "the same command continues")


if __name__ == "__main__":
    sys.exit(main())
