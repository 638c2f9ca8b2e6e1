"""`bench paper`: prints the figures that the paper itself printed, of any of its tables or figures."""

import argparse

EPILOG = """\
examples:
  bench paper                         what there is
  bench paper table3
  bench paper table1 --dataset RealSR --metrics psnr lpips
  bench paper figure8                 approval in the user study
  bench paper others                  the same cells as other papers print them
  bench paper table6 --csv > table6.csv

They are as printed, with as many digits; nothing here is measured. `bench audit TABLE` compares.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "paper",
        help="print the paper's own figures",
        description="Prints the figures of one of the paper's tables or figures, as they are printed there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="table1 to table7, figure8, appendix-c or others")
    parser.add_argument("--dataset", "--testset", metavar="NAME", help="only rows of this test set, as printed or not")
    parser.add_argument("--metrics", "--metric", nargs="+", metavar="NAME", help="only these metrics")
    parser.add_argument("--csv", action="store_true", help="CSV instead of a table")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.paper.tables import PRINTED, printed_rows
    from bench.report.csvs import csv_text
    from bench.report.document import DASH, FACTS, PAPER_DISPLAY, Entry, Grid
    from bench.report.markdown import to_table
    from tsd.errors import UserError

    if args.name is None:
        width = max(map(len, PRINTED))
        print("\n".join(f"{name:<{width}}  {title}" for name, (title, _) in PRINTED.items()))
        return 0
    title, rows = printed_rows(args.name, args.dataset)
    metrics = [key for key in rows[0] if key in PAPER_DISPLAY]
    wrong = [name for name in args.metrics or () if name not in metrics]
    if wrong:
        raise UserError(f"{args.name} prints no {wrong[0]}; it has {', '.join(metrics) or 'no metric'}")
    keys = [key for key in rows[0] if not args.metrics or key not in metrics or key in args.metrics]
    if args.csv:
        print(csv_text([{key: row[key] for key in keys} for row in rows]), end="")
        return 0
    titles = FACTS | PAPER_DISPLAY
    entries = tuple(tuple(Entry(row[key] or DASH) for key in keys) for row in rows)
    print(f"{title}, as printed, not measured here\n")
    print(to_table(Grid("", tuple(titles.get(key, key) for key in keys), entries)))
    return 0
