"""`bench new-card REPO`: the skeleton of a competitor's card, from a clone of its repository."""

import argparse
import re
import shlex
import sys
from pathlib import Path

EPILOG = """\
examples:
  git clone https://github.com/OWNER/NAME clones/NAME
  bench new-card clones/NAME                       writes name.toml
  bench new-card clones/NAME --script inference.py -o mine.toml
  bench check card:name.toml --repo-dir clones     what is still to be written, then what is wrong

It fills in what the commit that is checked out says: address, commit, licence, pins, and the flags of
the script with file and line. What a person must decide says TODO. Nothing is run.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "new-card",
        help="write the skeleton of a card from a clone of a repository",
        description="Writes the skeleton of a competitor's card from a clone of its repository.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", metavar="REPO", type=Path, help="a clone, bare or not")
    parser.add_argument("--script", metavar="FILE", help="the repository's script that restores a folder of images")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the card (default: the repository's name, with .toml)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.methods.external.skeleton import skeleton
    from tsd.errors import UserError
    from tsd.files import write_text

    repository: Path = args.repository.expanduser()
    name = re.sub(r"[^a-z0-9._-]+", "-", repository.resolve().name.removesuffix(".git").lower()).strip("-.")
    path: Path = args.output or Path(f"{name}.toml")
    if path.exists():
        raise UserError(f"{path} exists; choose another name (-o FILE.toml), or move it away")
    write_text(path, skeleton(repository, args.script))
    print(path)
    command = f"bench check {shlex.quote(f'card:{path}')} --repo-dir {shlex.quote(str(repository))}"
    print(f"what is still to be written: {command}", file=sys.stderr)
    return 0
