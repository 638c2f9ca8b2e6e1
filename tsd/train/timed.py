"""How long a run will take on this machine: a few real steps of each phase, in a folder that is thrown away."""

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tsd.config import RunConfig, TrainConfig
from tsd.train.settings import RunSettings

STEPS = 4
"""Steps of each phase; the first of them also warms up and is not counted."""


@dataclass(frozen=True)
class Timed:
    """The steps of each phase of a run, and the seconds that one of them takes."""

    phases: tuple[tuple[int, float], ...]

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, without its validations and checkpoints."""
        return sum(steps * seconds for steps, seconds in self.phases)

    def to_text(self) -> str:
        """`duration: about 1.4 hours: 3,000 steps of 1.52 s + …`."""
        parts = " + ".join(f"{steps:,} steps of {seconds:.2f} s" for steps, seconds in self.phases)
        total = self.seconds
        shown = f"{total / 3600:.1f} hours" if total >= 5400 else f"{total / 60:.1f} minutes"
        return f"duration: about {shown}: {parts}, timed on this machine as it is now; validations come on top"


def timed_steps(settings: RunSettings, config: RunConfig) -> Timed:
    """Trains a few steps of each phase, from the run's own start and on its data; writes nothing that stays."""
    if isinstance(config, TrainConfig):
        from tsd.train.student import train

        lengths = [phase.steps for phase in config.phases if phase.steps]
        phases = tuple(dataclasses.replace(phase, steps=STEPS) for phase in config.phases if phase.steps)
        short = dataclasses.replace(config, phases=phases, critic_warmup_steps=0)
    else:
        from tsd.train.teacher import train_teacher as train

        lengths = [config.total_steps]
        short = dataclasses.replace(config, steps=STEPS)  # pyright: ignore[reportCallIssue]
    short = dataclasses.replace(short, checkpoint_every=10**9)
    with tempfile.TemporaryDirectory(prefix="tsd-timed-") as folder:
        place = dataclasses.replace(
            settings, output=Path(folder) / "run", resume=False, val_data=None, stop_after=None,
            time_limit_seconds=None, tracker="none",
        )  # fmt: skip
        log = train(place, short).log  # pyright: ignore[reportArgumentType]
        seconds = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    each = [median(seconds[start + 1 : start + STEPS]) for start in range(0, len(seconds), STEPS)]
    return Timed(tuple(zip(lengths, each, strict=True)))
