"""Shortens the reasons why something was not measured, for the notes below a table.

A plan and a cell keep the full reasons of `bench.store.missing`, with places, licences and addresses. The note below a
table is one short phrase: it names the command that gets the missing files. The CSV has short codes, and a legend
beside it (`Codes`) the reasons in full.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.paper.tables import PAPER_METRICS

FILE = re.compile(r" needs (?P<name>.+?)(?: \(.*\))? at [^:]+: (?:`bench fetch (?P<fetch>[^`]+)`|from )")
"""Matches the line of a `bench.store.missing.Missing`."""
KINDS = (
    ("files", FILE),
    ("no-ground-truth", re.compile(r" needs a ground truth, and ")),
    ("failed", re.compile(r" failed on \d+ of \d+ images")),
    ("not-done", re.compile(r" images restored; `bench run`| is not scored yet; ")),
    ("not-timed", re.compile(r" time is not measured here$| did not time its images$")),
)
"""The kinds of reasons by their words; any other is an `obstacle`."""
VERBS = ("needs ", "runs ", "handles ")  # the first words of an obstacle's reason
LONGEST = 120


@dataclass(frozen=True)
class Reason:
    """A short reason why something was not measured.

    Attributes:
        text: a phrase that names neither row nor column, so that equal causes have equal phrases.
        fetch: the arguments of `bench fetch` that get what is missing.
        complete: whether the phrase says all that the full reasons say.
    """

    text: str
    fetch: tuple[str, ...] = ()
    complete: bool = True

    def phrase(self) -> str:
        """The text, and the command that gets what is missing if there is one."""
        if not self.fetch:
            return self.text
        metrics = len(self.fetch) > 1 and set(self.fetch) <= set(PAPER_METRICS)
        return f"{self.text}: `bench fetch {'metrics' if metrics else ' '.join(self.fetch)}`"


def short_reason(reasons: Sequence[str], subjects: Iterable[str]) -> Reason:
    """One phrase for `reasons`.

    Args:
        reasons: the full reasons, one line per cause; at least one.
        subjects: names that the phrase leaves out at its beginning: the row, the column, both.
    """
    files = [match for line in reasons if (match := FILE.search(line))]
    fetch = tuple(dict.fromkeys(match["fetch"] for match in files if match["fetch"]))
    if fetch:
        return Reason("files are missing", fetch, complete=False)
    if files:
        return Reason(f"missing: {files[0]['name']}", complete=False)
    text = reasons[0]
    for subject in sorted(subjects, key=len, reverse=True):
        if text.startswith((f"{subject} ", f"{subject}:")):
            text = text.removeprefix(subject).removeprefix(":").strip().removeprefix("is ")
    return Reason(_cut(text), complete=len(reasons) == 1 and len(text) <= LONGEST)


class Codes:
    """Short codes for full reasons, for programs: "files-1", "failed-2", numbered within their kind as they come."""

    def __init__(self) -> None:
        self.by_reason: dict[str, str] = {}

    def code(self, reasons: Sequence[str]) -> str:
        """The code of what keeps a cell empty; equal reasons have one code."""
        text = "; ".join(reasons)
        kind = next((name for name, words in KINDS if words.search(text)), "obstacle")
        number = 1 + sum(code.rpartition("-")[0] == kind for code in self.by_reason.values())
        return self.by_reason.setdefault(text, f"{kind}-{number}")


def merged_reason(reasons: Iterable[Reason]) -> Reason:
    """Merges reasons into one: equal phrases once, with every argument of `bench fetch`."""
    reasons = list(reasons)
    text = "; ".join(dict.fromkeys(reason.text for reason in reasons))
    fetch = tuple(dict.fromkeys(name for reason in reasons for name in reason.fetch))
    return Reason(_cut(text), fetch, all(reason.complete for reason in reasons) and len(text) <= LONGEST)


def sentences(absent: Iterable[tuple[str, Reason]]) -> list[str]:
    """One sentence for all rows, or all columns, that were not measured for the same reason.

    Args:
        absent: (row or column, why it was not measured).
    """
    groups: dict[str, list[tuple[str, Reason]]] = {}
    for subject, reason in absent:
        groups.setdefault(reason.text, []).append((subject, reason))
    return [
        _sentence([subject for subject, _ in group], merged_reason(reason for _, reason in group))
        for group in groups.values()
    ]


def _sentence(subjects: Sequence[str], reason: Reason) -> str:
    *most, last = subjects
    listed = f"{', '.join(most)} and {last} were" if most else f"{last} was"
    each = "each " if most and reason.text.startswith(VERBS) else ""
    return f"{listed} not measured ({each}{reason.phrase()})."


def _cut(text: str) -> str:
    """Cuts text to at most `LONGEST` characters, and never between two backticks."""
    short = textwrap.shorten(text, LONGEST, placeholder=" …")
    return short if short.count("`") % 2 == 0 else short.rpartition("`")[0].rstrip(" :;,(") + " …"
