"""A watch on the critic's gain, which tells a run that learns from VSD from one that learns from noise."""

import math
import statistics
from collections import deque

MEASUREMENTS = 5


class GainWatch:
    """Remembers the last measurements of the critic's gain (`tsd.algorithm.turns.critic_turn`) and warns once."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=MEASUREMENTS)
        self._warned = False

    def warning(self, step: int, gain: float) -> str | None:
        """Adds the gain measured at a step; returns a warning the first time that the last five lie below zero.

        Their mean must be below zero by more than its standard error: a critic that has just begun to learn has a gain
        of about zero, of either sign.
        """
        self._last.append(gain)
        if self._warned or len(self._last) < MEASUREMENTS:
            return None
        mean = statistics.fmean(self._last)
        if mean + statistics.stdev(self._last) / math.sqrt(MEASUREMENTS) >= 0:
            return None
        self._warned = True
        return (
            f"warning: at step {step} the critic's gain is {mean:.2g} on average over the last {MEASUREMENTS} "
            f"measurements (teacher's loss minus critic's loss on the student's outputs; healthy is above 0). The "
            f"critic does not follow the student, so the VSD part of the gradient is noise. Try smaller learning rates "
            f"of the student (--lr) or the critic (--critic-lr), a warm-up of the critic (--critic-warmup-steps), its "
            f"average (--critic-ema-decay), or more of its updates (--critic-steps)."
        )
