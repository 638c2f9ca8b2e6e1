"""Why something was not measured, in words short enough for a reader of a table.

A plan and a cell keep their reasons in full, with places, licences and addresses, as `bench.store.missing` words them.
Below a table one short phrase is enough: what a command gets is named by the command, and the rest stands in the CSV.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.paper.tables import PAPER_METRICS

FILE = re.compile(r" needs (?P<name>.+?)(?: \(.*\))? at [^:]+: (?:`bench fetch (?P<fetch>[^`]+)`|from )")
"""The line of a `bench.store.missing.Missing`."""
VERBS = ("needs ", "runs ", "handles ")  # what an obstacle begins with
LONGEST = 120


@dataclass(frozen=True)
class Reason:
    """Why something was not measured, in short.

    Attributes:
        text: a phrase that names neither row nor column, so that equal causes have equal phrases.
        fetch: the names by which `bench fetch` gets what is missing.
        complete: whether the phrase says all that the full reasons say.
    """

    text: str
    fetch: tuple[str, ...] = ()
    complete: bool = True

    def phrase(self) -> str:
        """The text with the command that helps, if one does."""
        if not self.fetch:
            return self.text
        metrics = len(self.fetch) > 1 and set(self.fetch) <= set(PAPER_METRICS)
        return f"{self.text}: `bench fetch {'metrics' if metrics else ' '.join(self.fetch)}`"


def short_reason(reasons: Sequence[str], subjects: Iterable[str]) -> Reason:
    """One phrase for `reasons`.

    Args:
        reasons: in full, one line per cause; at least one.
        subjects: what a line may begin with and the phrase leaves out: the row, the column, both together.
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


def merged_reason(reasons: Iterable[Reason]) -> Reason:
    """One reason for all of them: equal phrases once, with every name to fetch."""
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
    """At most `LONGEST` characters, and no half of what stands between backticks."""
    short = textwrap.shorten(text, LONGEST, placeholder=" …")
    return short if short.count("`") % 2 == 0 else short.rpartition("`")[0].rstrip(" :;,(") + " …"
