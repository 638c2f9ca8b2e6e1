"""Stopping in time: a clean end with a checkpoint before a cluster's limit, on SIGTERM, and on Ctrl-C.

With `--time-limit` a run stops when another step, with the validation and the checkpoint that may follow it, would not
fit any more. The slowest step, validation and checkpoint so far decide that. SIGTERM (which `scancel`, Slurm's grace
time, Kubernetes and accelerate's launcher send) and Ctrl-C stop a run after the step in progress; a second Ctrl-C stops
it at once.
"""

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tsd.errors import UserError

EXIT_STATUS = {"Ctrl-C": 130, "SIGTERM": 143, "another process": 143}
"""The exit status by what stopped a run, as a shell gives it for a process that the signal ended."""
FIRST_RESERVE = 0.05
"""Share of the limit, at most two minutes, that is also kept free, for the first checkpoint and for the exit."""


def seconds_from_text(text: str) -> float:
    """`90` (minutes), `1:30` (hours, minutes) or `1:30:00` as seconds.

    Raises:
        UserError: another form, or zero.
    """
    minutes = re.fullmatch(r"\d+(\.\d+)?", text)
    clock = re.fullmatch(r"(\d+):([0-5]?\d)(?::([0-5]?\d))?", text)
    if minutes:
        seconds = 60 * float(text)
    elif clock:
        hours, minute, second = (int(part or 0) for part in clock.groups())
        seconds = float(3600 * hours + 60 * minute + second)
    else:
        raise UserError(f"a time limit is HH:MM, HH:MM:SS or a number of minutes; got {text!r}")
    if seconds <= 0:
        raise UserError(f"a time limit of {text!r} leaves no time at all")
    return seconds


class Stopper:
    """Records how long things take and decides whether to stop; as a context manager it catches signals.

    Args:
        limit_seconds: counted from the creation of this object; None for no limit.
    """

    def __init__(self, limit_seconds: float | None) -> None:
        self.limit_seconds, self.began = limit_seconds, time.monotonic()
        self.slowest: dict[str, float] = {}
        self.signal: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is threading.main_thread():  # signals cannot be caught elsewhere
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Records how long the block takes."""
        began = time.monotonic()
        yield
        self.record(kind, time.monotonic() - began)

    def record(self, kind: str, seconds: float) -> None:
        """Records a duration; only the slowest of each kind is kept."""
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), seconds)

    def reason(self) -> str | None:
        """Why to stop now, or None."""
        if self.signal is not None:
            return self.signal
        if self.limit_seconds is None:
            return None
        reserve = min(FIRST_RESERVE * self.limit_seconds, 120.0) + sum(self.slowest.values())
        return "the time limit" if time.monotonic() - self.began + reserve > self.limit_seconds else None
