"""`bench publish`: the records of a run as a data set on the Hugging Face hub."""

import argparse
from pathlib import Path

EPILOG = """\
examples:
  bench publish reports/mini --to me/mini-on-my-laptop --by "Ada Lovelace" --dry-run   what would be sent
  bench publish reports/realsr --to lab/realsr --by "The Lab" --license cc-by-4.0
  bench publish reports/mini --to me/mini --by Ada --images     with the restored images
  bench site hub:me/mini hub:lab/mini --out site                the leaderboard of several

Needs a token of the hub that may write (`hf auth login`). Images go only with --images, and only
those of test sets whose photographs may be handed on. The data set becomes what the run is: files of
an earlier run that the new one lacks are deleted there, and the hub keeps the earlier commits.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "publish",
        help="send the records of a run to a data set on the Hugging Face hub",
        description="Sends the records and tables of a run to a data set on the hub, with a card that says who\n"
        "measured, on what, and under which licences. `bench site hub:OWNER/NAME --out DIR` reads it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="--out folder of a `bench run`")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the data set; it is made if there is none")
    parser.add_argument("--by", required=True, metavar="NAME", help="who measured, as it will be shown to everybody")
    parser.add_argument("--images", action="store_true", help="send the restored images too, where licences allow it")
    parser.add_argument("--license", default="", metavar="ID", help="of the records, as the hub names it (cc-by-4.0)")
    parser.add_argument("--private", action="store_true", help="make a private data set")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.publish.upload import PublishRequest, publish

    address = publish(PublishRequest(args.run, args.to, args.by, args.images, args.license, args.private, args.dry_run))
    print(address)
    return 0
