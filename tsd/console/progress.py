"""The one progress bar of all commands: a bar on a terminal, a plain line every few seconds where stderr is none.

`Stages` is one for the stages of one image.

Standard library and tqdm only, so that `bench` may use it anywhere.
"""

import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 10.0
"""Seconds between two lines where stderr is no terminal."""


class Progress(tqdm):
    """tqdm on stderr. In a log file or a pipe it prints whole lines, the last of them when the work is done.

    It counts from when it is made, so make it when everything is imported and loaded: then its estimate of the time
    left knows the work alone. Without `estimates` its lines leave the time left to whoever sets the postfix.
    """

    def __init__(
        self, iterable: Iterable[Any] | None = None, desc: str | None = None, *, estimates: bool = True, **options: Any
    ) -> None:
        self.estimates = estimates
        self.plain = not sys.stderr.isatty()
        # tqdm reads this variable when it is imported, which is before `bench.ranks` sets it.
        options.setdefault("disable", bool(os.environ.get("TQDM_DISABLE")))
        self._said: tuple[float, object] = (time.monotonic(), None)
        if self.plain:
            options["ncols"] = 0
        super().__init__(iterable, desc, file=sys.stderr, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar, or prints a line if the last one is some seconds old."""
        if not self.plain:
            return bool(super().display(msg, pos))
        when, shown = self._said
        text = self.status()
        if text != shown and self._has_news() and time.monotonic() - when >= SECONDS:
            self._said = (time.monotonic(), text)
            print(text, file=sys.stderr, flush=True)
        return True

    def _has_news(self) -> bool:
        return self.n > self.initial

    def status(self) -> str:
        """`train: step 12 of 50, 0:01:10, about 0:03:40 left, pixel=0.0512`."""
        done, total = self.n, self.total
        spent = self.format_dict["elapsed"]
        counted = [
            str(n) if not self.unit_scale else tqdm.format_sizeof(n, self.unit) for n in (done, total) if n is not None
        ]
        parts = [("" if self.unit_scale else f"{self.unit} ") + " of ".join(counted), clock(spent)]
        fresh = done - self.initial
        if self.estimates and total is not None and fresh > 0 and done < total:
            parts.append(f"about {clock(spent / fresh * (total - done))} left")
        if self.postfix:
            parts.append(str(self.postfix))
        name = (self.desc or "").removesuffix(": ")
        return f"{name}: {', '.join(parts)}" if name else ", ".join(parts)

    def clear(self, nolock: bool = False) -> None:
        """Removes the bar before other text is printed; lines stay."""
        if not self.plain:
            super().clear(nolock)

    def close(self) -> None:
        """Ends the bar; a line that was due is printed."""
        if self.plain and not self.disable:
            if self.leave and self.last_print_t >= self.start_t + self.delay:
                self._said = (0.0, self._said[1])
                self.display()
            self.disable = True
            self._decr_instances(self)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            super().close()


class Stages(Progress):
    """Shows how far the restoration of one image is: the bar of the stage it is in, `photo, decode: piece 3 of 12`.

    It is called as `tsd.console.stages` says.
    """

    def __init__(self, name: str) -> None:
        self.name, self.stage = name, ""
        super().__init__(desc=name, unit="piece", leave=False, miniters=1)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage = stage
            self.set_description_str(f"{self.name}, {stage}", refresh=False)
            self.reset(total)
        self.total = total
        self.update(done - self.n)

    def _has_news(self) -> bool:
        return self.stage != ""  # that a stage begins is news too: it may be one long piece


def clock(seconds: float) -> str:
    """`1:02:03` for 3,723 seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
