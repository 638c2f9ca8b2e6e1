"""Scores the votes of a study: reads and checks them, analyses those that count, and writes the report."""

from collections.abc import Sequence
from pathlib import Path

from bench.study.analyse import RESAMPLES, analyse
from bench.study.report import Scored, write_report
from bench.study.study import read_study
from bench.study.votes import Rules, open_box
from tsd.errors import UserError


def score(
    places: Sequence[Path],
    key: Path,
    out: Path,
    rules: Rules,
    keep_flagged: bool = False,
    resamples: int = RESAMPLES,
) -> tuple[Scored, list[Path]]:
    """Writes the report of a study into `out`; returns the results and the files.

    Args:
        places: files of votes, or folders of them.
        key: the folder of the study, or its key.
        keep_flagged: count flagged raters too.
        resamples: of the bootstrap.

    Raises:
        UserError: nothing that counts.
    """
    study = read_study(key)
    box = open_box(places, study, rules)
    clean = [ballot for ballot in box.ballots if not ballot.flags]
    counted = box.ballots if keep_flagged else clean
    if not counted:
        reasons = "\n".join(f"  rater {ballot.rater + 1}: {'; '.join(ballot.flags)}" for ballot in box.ballots[:5])
        raise UserError(
            f"all {len(box.ballots)} raters are flagged; --keep-flagged counts them nevertheless:\n{reasons}"
        )
    findings = analyse(study, counted, resamples)
    of_all = analyse(study, box.ballots, 0) if len(clean) < len(box.ballots) and not keep_flagged else None
    scored = Scored(study, box, counted, findings, of_all, resamples)
    return scored, write_report(scored, out)
