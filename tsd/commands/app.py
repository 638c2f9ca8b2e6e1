"""`tsd app`: restores photographs in a page for the browser, served by this machine."""

import argparse

from tsd.app.serve import LOCAL, PORT, Serving, check_serving, serve
from tsd.commands.restore import add_student, find, load, only_what_is_used
from tsd.files import MEGAPIXELS_HELP

DESCRIPTION = """\
Serves a page in which photographs are restored without a terminal: drop them, choose, compare
before and after, download. Needs the extra `app`: pip install 'tsd-sr-bench[app]'
"""
EPILOG = """\
examples:
  tsd app --open                                  with the mini model, in your browser
  tsd app --model sd3/ --lora tsdsr/ --prompt-embeds default/ --device cuda --dtype bf16
  tsd app --host 0.0.0.0 --max-file-size 20 --max-megapixels 4   for others in your network

what it does with the photographs:
  The page is bound to this machine unless --host says otherwise, loads nothing from the network and
  reports nothing to anybody. Photographs are restored one after another, as `tsd restore` does, and
  a download has the bytes of its PNG. Uploads and results lie in a temporary folder that is removed
  when the page ends (Ctrl-C, SIGTERM, a closed terminal); a kill -9 leaves it behind.

settings:
  Enlargement, colours and tiles are chosen in the page; their options here say what it begins with.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb to `tsd`."""
    parser = subparsers.add_parser(
        "app",
        help="restore photographs in a page for the browser",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    page = parser.add_argument_group("page")
    page.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    page.add_argument(
        "--host", default=LOCAL, metavar="ADDRESS",
        help=f"address to serve from; 0.0.0.0 is open to everyone who reaches this machine (default: {LOCAL})",
    )  # fmt: skip
    page.add_argument("--port", type=int, metavar="N", help=f"port (default: the first free one from {PORT} on)")
    page.add_argument(
        "--share", action="store_true", help="make a public link by Gradio's servers, through which all data then goes"
    )
    page.add_argument(
        "--max-file-size",
        type=float,
        default=200,
        metavar="MB",
        help="largest file that may be uploaded (default: 200)",
    )
    page.add_argument("--max-megapixels", type=float, metavar="N", help=MEGAPIXELS_HELP)
    add_student(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serves the page until it is interrupted."""
    serving = Serving(args.host, args.port, args.share, args.open, args.max_file_size, args.memory)
    check_serving(serving)
    student = find(args)
    with only_what_is_used(args):
        serve(load(args, *student), serving)
    return 0
