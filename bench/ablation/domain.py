"""What a domain is: a place to train students in, with the settings it understands and the measures it takes.

Standard library only: whatever is wrong with an experiment is said before a domain imports torch.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tsd.errors import UserError


@dataclass(frozen=True)
class Measure:
    """A metric of a domain.

    Attributes:
        name: its key in records, e.g. "psnr".
        label: its head in tables, e.g. "PSNR".
        unit: "dB", or empty.
        higher_is_better: None where neither direction is better (sharpness relative to the ground truth).
        per_image: whether rows of single images carry it; otherwise only the set's row does.
        digits: after the point, in tables.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    per_image: bool
    digits: int

    @property
    def title(self) -> str:
        """Such as "PSNR (dB)"."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Cell:
    """One training of a sweep: an arm with a seed.

    Attributes:
        settings: all of them, the domain's defaults included. The seed is not among them.
        key: hash of settings, seed, base and code; a folder with another key is never continued.
    """

    experiment: str
    arm: str
    seed: int
    settings: dict[str, Any]
    key: str


class Stopped(Exception):
    """A domain ended a cell before it was done, for a reason of its own; what is in the cell's folder can be continued.

    Its text is the reason: "the time limit".
    """


class Domain(Protocol):
    """A place to train students in. The object is pickled into the worker processes, so it must be light.

    All randomness of a cell comes from its seed, per step and sample: within a seed, all arms share start weights, data
    order, degradations, ε, t and posterior draws, and nothing else is random.

    Attributes:
        measures: what is scored, in the order of tables.
        references: names of rows that are no arms, see `score_references`. Names of a family share a prefix and stand
            in the order of its knob: "unsharp 0.15", "unsharp 0.3", ….
    """

    @property
    def name(self) -> str: ...

    @property
    def measures(self) -> tuple[Measure, ...]: ...

    @property
    def references(self) -> tuple[str, ...]: ...

    def settings(self) -> dict[str, Any]:
        """The default settings: fields of `TrainConfig` and of its one `Phase`, flat."""
        ...

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises UserError, before anything heavy is imported, for settings that cannot be trained with."""
        ...

    def fingerprint(self) -> str:
        """A hash of base weights, start student and recipe of the data."""
        ...

    def code(self) -> Sequence[Path]:
        """The source files besides tsd's whose change makes cells stale."""
        ...

    def run(self, cell: Cell, folder: Path, *, device: str, stop: Callable[[], bool]) -> None:
        """Trains and scores a cell, continuing what an interrupted call left in `folder`.

        It returns early, with a checkpoint in `folder`, when `stop()` is true, or raises `Stopped`. Otherwise it leaves
        in `folder`:

            curve.jsonl    {"step": 40, "fd": 51.2, …}     the learning curve, by steps of the student; may be missing
            log.jsonl      the training log by step: losses, critic_gain, …; may be missing
            scores.jsonl   {"image": "0007", "psnr": 20.1, …} for each image, then {"image": null, "fd": 52.1,
                           "psnr": 20.3, …} for the set, with every measure; written last
            references/NAME/scores.jsonl                   rows made from this cell's student, e.g. sharpened; optional
        """
        ...

    def score_references(self, seed: int, folder: Path) -> None:
        """Scores the rows that need no training: `folder`/NAME/scores.jsonl for each of `references`."""
        ...


def open_domain(spec: str) -> Domain:
    """The domain NAME, or NAME:ARGUMENT, of the folder bench/ablation/NAME; imports its module `domain`, not torch.

    That module has a function `open_domain(argument: str) -> Domain`; the argument is empty where none is given.

    Raises:
        UserError: no such domain, or the domain refuses its argument.
    """
    name, _, argument = spec.partition(":")
    known = domains()
    if name not in known:
        raise UserError(f"no domain {name!r}; expected one of those in bench/ablation: {', '.join(known)}")
    module = importlib.import_module(f"bench.ablation.{name}.domain")
    return module.open_domain(argument)


def domains() -> list[str]:
    """The names of the domains: folders beside this file with a module `domain`."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/domain.py"))
