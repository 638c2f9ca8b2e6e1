"""Reads the files that raters sent, refuses what cannot be theirs, and flags raters whose answers are doubtful.

A file is refused if it belongs to another study, if its checksum does not fit, or if it answers questions that were not
asked. The checksum (CRC-32 over all answers) shows damage and careless edits. It cannot show a forgery: the page
computes it in the rater's own browser, so that whoever reads the page can make a file with a right one.

Nothing is dropped without a line that says why.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

from bench.study.design import GOOD, Trial
from bench.study.study import Study
from tsd.errors import UserError

FORMAT, SCHEMA = "bench study votes", 1
INTEGERS = ("trial", "milliseconds", "revised", "zoom", "ratio")
FEWEST_REPEATS = 4
"""Decided repeats below which a rater's consistency is not judged."""
FEWEST_SIDES = 20
"""Decided pairs below which a rater's liking for a side is not judged."""


@dataclass(frozen=True)
class Rules:
    """When a rater is flagged.

    Attributes:
        traps: the share of traps that may be answered wrongly or not at all.
        consistency: the least share of repeats answered as before. Sides are reversed, so that who looks at sides alone
            repeats nothing; a coin gives half, and between pictures of one quality nobody does better.
        seconds: the least median time of an answer.
        side: the largest share of answers on one side, in pairs.
    """

    traps: float = 0.25
    consistency: float = 0.25
    seconds: float = 1.0
    side: float = 0.9


@dataclass(frozen=True)
class Answer:
    """One answered question. `chosen` is a place in `trial.shown`, None for "not sure"."""

    trial: Trial
    chosen: int | None
    seconds: float


@dataclass
class Ballot:
    """The answers of one rater.

    Attributes:
        rater: number in the design, from 0.
        simulated: the known preference of a simulated rater, in words; empty for a person.
        flags: why the answers are doubtful; empty if they are not.
    """

    path: Path
    rater: int
    token: str
    simulated: str
    answers: list[Answer]
    asked: int
    flags: list[str] = field(default_factory=list[str])

    def of_kind(self, kind: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.trial.kind == kind]

    @property
    def consistency(self) -> tuple[int, int]:
        """(repeats answered as before, repeats of which both answers were decided)."""
        first = {(a.trial.image, frozenset(a.trial.shown)): _method(a) for a in self.of_kind("vote")}
        pairs = [
            (first.get((again.trial.image, frozenset(again.trial.shown))), _method(again))
            for again in self.of_kind("repeat")
        ]
        decided = [(before, after) for before, after in pairs if before is not None and after is not None]
        return sum(before == after for before, after in decided), len(decided)

    @property
    def traps(self) -> tuple[int, int]:
        """(traps answered rightly, all traps answered)."""
        trapped = self.of_kind("trap")
        return sum(_method(answer) == GOOD for answer in trapped), len(trapped)

    @property
    def median_seconds(self) -> float:
        return median(answer.seconds for answer in self.answers)


@dataclass(frozen=True)
class Box:
    """What was found in the files. `refused` are (file, reason); `ballots` are all others, flagged or not."""

    ballots: list[Ballot]
    refused: list[tuple[Path, str]]

    @property
    def simulated(self) -> bool:
        return any(ballot.simulated for ballot in self.ballots)


def open_box(places: Sequence[Path], study: Study, rules: Rules) -> Box:
    """Reads all files and those of folders, `*.json`.

    Raises:
        UserError: nothing to read, no ballot that counts, or people and simulated raters mixed.
    """
    paths: list[Path] = []
    for place in places:
        if not place.exists():
            raise UserError(f"no votes at {place}; expected files of the voting page, or a folder of them")
        paths += sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not paths:
        raise UserError(f"no .json files in {', '.join(map(str, places))}")
    ballots: dict[str, Ballot] = {}
    refused: list[tuple[Path, str]] = []
    for path in dict.fromkeys(path.resolve() for path in paths):
        try:
            ballot = read_ballot(path, study)
        except UserError as error:
            refused.append((path, str(error)))
            continue
        other = ballots.get(ballot.token)
        if other is not None:  # saved twice, perhaps once before the end
            fuller, emptier = (ballot, other) if len(ballot.answers) > len(other.answers) else (other, ballot)
            refused.append((emptier.path, f"the same rater as {fuller.path.name}, which has as many answers or more"))
            ballot = fuller
        ballots[ballot.token] = ballot
    for ballot in ballots.values():
        ballot.flags += _flags(ballot, study, rules)
    box = Box(sorted(ballots.values(), key=lambda ballot: (ballot.rater, ballot.token)), refused)
    if not box.ballots:
        reasons = "\n".join(f"  {path.name}: {reason}" for path, reason in refused[:5])
        raise UserError(f"none of the {len(refused)} files holds votes of study {study.id}:\n{reasons}")
    if len({bool(ballot.simulated) for ballot in box.ballots}) > 1:
        raise UserError("some of the votes are of simulated raters and some of people: score them apart")
    return box


def read_ballot(path: Path, study: Study) -> Ballot:
    """The answers in a file.

    Raises:
        UserError: in words that follow the name of the file: why it is refused.
    """
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"not a file of the voting page ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise UserError("not a file of the voting page")
    if raw.get("schema") != SCHEMA:
        raise UserError(f"written in schema {raw.get('schema')!r}, this version reads {SCHEMA}")
    if raw.get("study") != study.id:
        raise UserError(f"votes of another study ({raw.get('study')!r}, not {study.id!r})")
    rater, token, simulated, answers = (raw.get(key) for key in ("rater", "token", "simulated", "answers"))
    if not (_is_count(rater) and isinstance(token, str) and isinstance(simulated, str) and isinstance(answers, list)):
        raise UserError("damaged: rater, token or answers are missing")
    if not all(_is_answer(answer) for answer in answers):
        raise UserError("damaged: an answer is not as the page writes it")
    if raw.get("checksum") != checksum(study.id, rater, token, simulated, answers):
        raise UserError("edited or damaged: its checksum does not fit its answers")
    if not 1 <= rater <= len(study.trials):
        raise UserError(f"rater {rater}: the study has 1 to {len(study.trials)}")
    if not answers:
        raise UserError("no answers")
    trials = study.trials_of(rater - 1)
    found: list[Answer] = []
    for number, answer in enumerate(answers):
        pictures = study.pictures_of(trials[number]) if number < len(trials) else None
        if pictures is None or answer["trial"] != number or answer["shown"] != pictures:
            raise UserError(f"answer {number + 1} is to a question that rater {rater} was not asked")
        chosen = answer["chosen"]
        if chosen is not None and chosen not in pictures:
            raise UserError(f"answer {number + 1}: a picture was chosen that was not shown")
        place = None if chosen is None else pictures.index(chosen)
        found.append(Answer(trials[number], place, answer["milliseconds"] / 1000))
    return Ballot(path, rater - 1, token, simulated, found, len(trials))


def checksum(study: str, rater: int, token: str, simulated: str, answers: Sequence[dict[str, Any]]) -> str:
    """The CRC-32 that `vote.js` computes, in hex."""
    lines = [
        " ".join(
            [
                str(answer["trial"]),
                "-".join(map(str, answer["shown"])),
                "none" if answer["chosen"] is None else str(answer["chosen"]),
                *(str(answer[key]) for key in INTEGERS[1:]),
            ]
        )
        for answer in answers
    ]
    text = "\n".join([FORMAT, str(SCHEMA), study, str(rater), token, simulated, *lines])
    return f"{zlib.crc32(text.encode()):08x}"


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_answer(raw: Any) -> bool:
    return (
        isinstance(raw, dict)
        and all(_is_count(raw.get(key)) for key in INTEGERS)
        and isinstance(raw.get("shown"), list)
        and all(map(_is_count, raw["shown"]))
        and ("chosen" in raw and (raw["chosen"] is None or _is_count(raw["chosen"])))
    )


def _method(answer: Answer) -> int | None:
    return None if answer.chosen is None else answer.trial.shown[answer.chosen]


def _flags(ballot: Ballot, study: Study, rules: Rules) -> list[str]:
    flags: list[str] = []
    right, traps = ballot.traps
    if traps and (traps - right) / traps > rules.traps:
        flags.append(f"{traps - right} of {traps} traps answered wrongly")
    same, repeats = ballot.consistency
    if repeats >= FEWEST_REPEATS and same / repeats < rules.consistency:
        flags.append(f"{same} of {repeats} repeated questions answered as before")
    if ballot.median_seconds < rules.seconds:
        flags.append(f"too fast: half of the answers within {ballot.median_seconds:.2f} s")
    sides = [answer.chosen for answer in ballot.of_kind("vote") if answer.chosen is not None]
    if study.mode == "pairs" and len(sides) >= FEWEST_SIDES:
        left = sides.count(0) / len(sides)
        if max(left, 1 - left) > rules.side:
            flags.append(f"{'left' if left > 0.5 else 'right'} in {max(left, 1 - left):.0%} of the answers")
    return flags
