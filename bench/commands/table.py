"""`bench table`: writes a table again from its records, without torch, images or data."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commands.run import add_timing

if TYPE_CHECKING:
    from bench.records.records import Records
    from bench.records.schema import Plan

EPILOG = """\
examples:
  bench table                                  Table 1 of reports/mini
  bench table --out reports/realsr --no-timing
  bench table --out reports/mini --reference lanczos
  bench table --table table3 --out reports/latency/mini
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "table",
        help="write a table again from its records",
        description="Writes TABLE.md, TABLE.csv and TABLE.tex again from the records of a run, and prints the table.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", default="table1", help="table of the paper (default: table1)")
    add_out(parser)
    add_timing(parser)
    parser.add_argument(
        "--reference", metavar="METHOD", help="row that paired differences refer to (default: that of the run)"
    )
    parser.set_defaults(func=run)


def add_out(parser: argparse.ArgumentParser) -> None:
    """Adds --out, the folder of a run whose records are read."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/mini"),
        metavar="DIR",
        help="folder of the results (default: reports/mini)",
    )


def run(args: argparse.Namespace) -> int:
    if args.table == "table3":
        return _latency(args.out)
    from bench.records.records import Records
    from bench.report.render import write_table

    records = Records(args.out)
    plan = plan_of(records, args.table)
    print(write_table(records, plan, timing=args.timing, reference=args.reference), end="")
    return 0


def _latency(out: Path) -> int:
    from bench.latency.figures import draw_stages
    from bench.latency.records import read_plan
    from bench.latency.table import write_latency_table
    from tsd.errors import UserError

    plan = read_plan(out, "table3")
    if plan is None:
        raise UserError(f"no timings in {out}: `bench latency --out {shlex.quote(str(out))}` makes them")
    print(write_latency_table(out, plan), end="")
    draw_stages(out, plan)
    return 0


def plan_of(records: "Records", table: str) -> "Plan":
    """The plan of a table that was measured into this folder.

    Raises:
        UserError: it was not.
    """
    from bench.paper.tables import TABLES, get_profile
    from tsd.errors import UserError

    plan = records.read_plan(table)
    if plan is None:
        if table not in TABLES or not TABLES[table].profiles:
            get_profile(table, "mini")  # says what measures it, or how it is spelt
        command = f"bench run --table {table} --out {shlex.quote(str(records.out))}"
        raise UserError(f"no records of {table} in {records.out}: `{command}` makes them")
    return plan
