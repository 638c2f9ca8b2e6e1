"""`bench audit`: measured against printed, cell by cell, from the records of a run."""

import argparse

from bench.commands.table import add_out, plan_of

EPILOG = """\
examples:
  bench audit table7 --out reports/realsr       Real-ESRGAN's PSNR, measured and printed
  bench audit table1 --out reports/realsr

A printed figure counts as right if the measured one rounds to it, or misses it by no more than
laboratories differ by on identical images. A gap beyond the 95 % interval of the measured mean is
marked: on the very same images no sampling explains it. Written beside the records: TABLE.audit.md
and TABLE.audit.csv. It needs no torch, no images and no data.

exit status: 0 if no cell is marked; 1 if some cells cannot both be right; 2 for bad input
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "audit",
        help="compare a measured table with the printed one, and mark what cannot both be right",
        description="Compares every measured cell of a table with the figure that the paper prints, and with figures\n"
        "that other papers print for the same cell.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", metavar="TABLE", help="table of the paper, as in --table of `bench run`")
    add_out(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.records.records import Records
    from bench.report.audit import write_audit

    records = Records(args.out)
    found, markdown = write_audit(records, plan_of(records, args.table))
    print(markdown, end="")
    return 1 if found.outside() else 0
