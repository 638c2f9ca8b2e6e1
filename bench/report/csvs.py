"""Lines of named values as CSV: the one writer of every table's numbers."""

import csv
import io
from collections.abc import Mapping, Sequence


def csv_text(lines: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """A header and the lines. The columns are those given, or all in the order in which lines first name them.

    Floats are written as their shortest exact text; None and what a line does not name are empty.
    """
    stream = io.StringIO()
    columns = columns or list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
