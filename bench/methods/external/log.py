"""The log of a process: its last lines, and the lines that the harness adds."""

import json
import re
from pathlib import Path

TAIL_BYTES = 32_768
HARNESS = "[bench] "


def note(log: Path, *lines: str, **facts: object) -> None:
    """Appends lines of the harness, and facts as JSON."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as handle:
        for line in (*lines, *(f"{key}: {json.dumps(value)}" for key, value in facts.items())):
            handle.write(f"{HARNESS}{line}\n")


def last_lines(log: Path, count: int, mentioning: str | None = None) -> list[str]:
    """The process's last lines that are not empty, at most `count`; a progress bar's states count as lines.

    Args:
        mentioning: only lines that contain this.
    """
    if not log.is_file():
        return []
    with open(log, "rb") as handle:
        handle.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = handle.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if not line.startswith(HARNESS)]
    return [line for line in lines if line and (mentioning is None or mentioning in line)][-count:]
