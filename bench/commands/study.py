"""`bench study`: Figure 8, a user study from a run: the voting page, and what its votes say."""

import argparse
from pathlib import Path

EPILOG = """\
examples:
  bench study make reports/realsr --methods osediff addsr sinsr tsd-sr --images 25 \\
      --categories categories.csv --raters 50 --out study      open study/page/index.html
  bench study score votes/ --study study --out figure8         what the files say that raters sent back
  bench study simulate study --preference 4 3 2 1 --out votes  raters by lot, to try the analysis

Raters get study/page/ or study/page.html, from a web server or by mail; study/study.json is the key and stays with you.
"""
MAKE_EPILOG = """\
examples:
  bench study make runs/mine --methods bicubic tsd-sr-mini --out study
  bench study make runs/mine --methods bicubic tsd-sr-mini --criterion realism --single-file --out study
  bench study make runs/mine --methods bicubic tsd-sr-mini --images 20 --categories categories.csv \\
      --send-to "votes@example.org" --out study

The categories are a CSV file with the columns image and category; images are taken evenly from each. Rater 7 opens the
page with #rater=7 at the end of its address; without that, the page draws a number.
"""
SCORE_EPILOG = """\
examples:
  bench study score votes/ --study study --out figure8
  bench study score votes/*.json --study study/study.json --out figure8 --keep-flagged

Writes figure8.md, figure8.csv, figure8.svg and figure8.png, and figure8-images.csv with the votes by image. The exit
status is 1 if a file was refused, or if simulated raters' known preference is outside its interval.
"""


def add_parser(subparsers) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "study",
        help="ask people: a voting page from a run, and what its votes say (Figure 8)",
        description="Makes a blind, balanced user study of the images of a run, and analyses its votes.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    verbs = parser.add_subparsers(dest="study_verb", metavar="make | score | simulate", required=True)
    made = verbs.add_parser(
        "make", help="write the voting page and its key", epilog=MAKE_EPILOG, formatter_class=raw,
        description="Writes a voting page that needs no server and no network, and the key to its votes.",
    )  # fmt: skip
    _add_make(made)
    scored = verbs.add_parser(
        "score", help="check and analyse votes", epilog=SCORE_EPILOG, formatter_class=raw,
        description="Checks votes and writes Figure 8: shares with intervals, agreement of raters and of metrics.",
    )  # fmt: skip
    _add_score(scored)
    simulated = verbs.add_parser(
        "simulate", help="write votes of simulated raters of known preference", formatter_class=raw,
        description="Writes votes by lot, which say that they are simulated, to try the analysis of a study.",
        epilog="example:\n  bench study simulate study --preference 4 3 2 1 --out votes",
    )  # fmt: skip
    simulated.add_argument("study", type=Path, metavar="STUDY", help="--out folder of a `bench study make`")
    simulated.add_argument(
        "--preference", type=float, nargs="+", required=True, metavar="W",
        help="a weight for each method: how often it is chosen beside the others",
    )  # fmt: skip
    simulated.add_argument(
        "--careless", type=int, default=0, metavar="N", help="raters who choose blindly (default: 0)"
    )
    simulated.add_argument("--seed", type=int, default=42, help="of the raters (default: 42)")
    simulated.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files of votes")
    simulated.set_defaults(func=_simulate)


def _add_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="--out folder of a `bench run`, with its images")
    parser.add_argument("--methods", nargs="+", required=True, metavar="NAME", help="methods of the run, at least two")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--images", type=int, metavar="N", help="how many images in all (default: all)")
    parser.add_argument("--categories", type=Path, metavar="FILE", help="CSV with the columns image and category")
    parser.add_argument("--testset", metavar="NAME", help="test set of the run (default: its only one)")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--criterion", choices=("similarity", "structure", "realism"), default="similarity",
        help="similarity to the ground truth, structure of the input, or realism (default: similarity)",
    )  # fmt: skip
    asked.add_argument(
        "--mode", choices=("pairs", "best"), default="pairs",
        help="which of two, or the best of all methods as in the paper (default: pairs)",
    )  # fmt: skip
    asked.add_argument(
        "--show", nargs="*", choices=("hr", "lr"),
        help="what stands beside the pictures: ground truth, input (default: what the criterion needs)",
    )  # fmt: skip
    asked.add_argument("--raters", type=int, default=50, metavar="N", help="places of the design (default: 50)")
    asked.add_argument("--trials", type=int, metavar="N", help="votes of each rater (default: all, at most 60)")
    asked.add_argument(
        "--duplicates",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of votes that is asked twice (default: 0.1)",
    )
    asked.add_argument("--traps", type=int, default=4, metavar="N", help="questions with a right answer (default: 4)")
    asked.add_argument("--seed", type=int, default=42, help="of the design (default: 42)")
    page = parser.add_argument_group("the page")
    page.add_argument("--title", default="A study of pictures", help="of the page; raters see it")
    page.add_argument("--send-to", default="", metavar="TEXT", help="where raters shall send their file, in words")
    page.add_argument(
        "--post", default="", metavar="URL", help="an address that takes the file as the form field votes"
    )
    page.add_argument("--single-file", action="store_true", help="write one HTML file that holds its images")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of test sets (default: $TSD_DATA)")
    parser.set_defaults(func=_make)


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("votes", type=Path, nargs="+", metavar="VOTES", help="files of the page, or folders of them")
    parser.add_argument("--study", type=Path, required=True, metavar="DIR", help="--out folder of `bench study make`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files to write")
    parser.add_argument("--keep-flagged", action="store_true", help="count doubtful raters too")
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the bootstrap behind the intervals (default: 1000)"
    )
    rules = parser.add_argument_group("when a rater is flagged")
    rules.add_argument(
        "--most-traps", type=float, default=0.25, metavar="SHARE", help="more traps than this missed (default: 0.25)"
    )
    rules.add_argument(
        "--least-consistency", type=float, default=0.25, metavar="SHARE",
        help="fewer repeated questions than this answered as before (default: 0.25)",
    )  # fmt: skip
    rules.add_argument(
        "--fastest", type=float, default=1.0, metavar="SECONDS", help="half of the answers faster (default: 1.0)"
    )
    parser.set_defaults(func=_score)


def _make(args: argparse.Namespace) -> int:
    import sys

    from bench.study.design import Plan
    from bench.study.make import StudyRequest, make

    study, page = make(
        StudyRequest(
            run=args.run,
            methods=tuple(args.methods),
            out=args.out,
            images=args.images,
            categories=args.categories,
            plan=Plan(args.mode, args.raters, args.trials, args.duplicates, args.traps, args.seed),
            criterion=args.criterion,
            show=None if args.show is None else tuple(dict.fromkeys(args.show)),
            title=args.title,
            post=args.post,
            send_to=args.send_to,
            single_file=args.single_file,
            testset=args.testset,
            data_root=args.data_root,
        )
    )
    asked = len(study.trials[0])
    print(f"study {study.id}: {asked} questions for each of {len(study.trials)} raters", file=sys.stderr)
    print(f"the key, which raters must not get: {args.out / 'study.json'}", file=sys.stderr)
    print(f"{page.absolute().as_uri()}#rater=1")
    return 0


def _score(args: argparse.Namespace) -> int:
    import sys

    from bench.study.report import SIMULATED
    from bench.study.score import score
    from bench.study.votes import Rules
    from tsd.files import require_writable

    require_writable(args.out)
    rules = Rules(args.most_traps, args.least_consistency, args.fastest)
    scored, paths = score(args.votes, args.study, args.out, rules, args.keep_flagged, args.resamples)
    for path, reason in scored.box.refused:
        print(f"refused: {path.name}: {reason}", file=sys.stderr)
    for ballot in scored.box.ballots:
        if ballot.flags:
            print(f"flagged: rater {ballot.rater + 1} ({ballot.path.name}): {'; '.join(ballot.flags)}", file=sys.stderr)
    if scored.box.simulated:
        print(SIMULATED, file=sys.stderr)
    recovered = scored.recovered()
    if recovered is not None:
        print(f"the known preference is {'inside' if recovered else 'OUTSIDE'} its intervals", file=sys.stderr)
    for path in paths:
        print(path)
    return 1 if scored.box.refused or recovered is False else 0


def _simulate(args: argparse.Namespace) -> int:
    from bench.study.simulate import simulate
    from bench.study.study import read_study
    from tsd.files import require_writable

    require_writable(args.out)
    for path in simulate(read_study(args.study), args.preference, args.out, args.careless, args.seed):
        print(path)
    return 0
