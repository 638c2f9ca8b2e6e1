"""A watch on the critic's gain, which tells a run that learns from VSD from one that learns from noise."""

from collections import deque

MEASUREMENTS = 5


class GainWatch:
    """Remembers the last measurements of the critic's gain (`tsd.algorithm.turns.critic_turn`) and warns once."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=MEASUREMENTS)
        self._warned = False

    def warning(self, step: int, gain: float) -> str | None:
        """Adds the gain measured at a step; returns a warning the first time that the mean of the last five is < 0."""
        self._last.append(gain)
        mean = sum(self._last) / len(self._last)
        if self._warned or len(self._last) < MEASUREMENTS or mean >= 0:
            return None
        self._warned = True
        return (
            f"warning: at step {step} the critic's gain is {mean:.2g} on average over the last {MEASUREMENTS} "
            f"measurements (teacher's loss minus critic's loss on the student's outputs; healthy is above 0). The "
            f"critic does not follow the student, so the VSD part of the gradient is noise. Try smaller learning rates "
            f"of the student (--lr) or the critic (--critic-lr), a warm-up of the critic (--critic-warmup-steps), its "
            f"average (--critic-ema-decay), or more of its updates (--critic-steps)."
        )
