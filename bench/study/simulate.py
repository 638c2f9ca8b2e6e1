"""Raters by lot, of known preference: they show that the analysis finds what was put in, and nothing about methods.

A simulated rater chooses among the methods shown with probabilities in proportion to weights, as the Bradley-Terry
model has it, and says "not sure" now and then whatever is shown. A careless one chooses blindly and fast. Every file
says that it is simulated, and so does everything made from it.
"""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from bench.study.design import BAD
from bench.study.study import Study
from bench.study.votes import FORMAT, SCHEMA, checksum
from tsd.errors import UserError
from tsd.files import write_atomic

UNSURE = 0.08
SLIP = 0.02
"""The probability that a careful rater misses a trap."""


def simulate(study: Study, preference: Sequence[float], out: Path, careless: int = 0, seed: int = 42) -> list[Path]:
    """Writes one file of votes for each rater of the study; returns them.

    Args:
        preference: a weight above 0 for each method, in their order.
        careless: how many of the raters choose blindly.

    Raises:
        UserError: weights that do not fit the methods, or files in the way.
    """
    if len(preference) != len(study.methods) or not all(weight > 0 and math.isfinite(weight) for weight in preference):
        names = ", ".join(method.name for method in study.methods)
        raise UserError(f"--preference: a number above 0 for each of {names}; found {' '.join(map(str, preference))}")
    if not 0 <= careless <= len(study.trials):
        raise UserError(f"--careless {careless}: the study has {len(study.trials)} raters")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty; choose another folder, so that votes do not mix")
    words = " ".join(f"{weight:g}" for weight in preference)
    return [
        _write(study, rater, words, preference, rater >= len(study.trials) - careless, seed, out)
        for rater in range(len(study.trials))
    ]


def known_shares(words: str) -> list[float]:
    """The share of each method that the words of a simulated file stand for."""
    weights = [float(word) for word in words.split()]
    return [weight / sum(weights) for weight in weights]


def _write(
    study: Study, rater: int, words: str, preference: Sequence[float], careless: bool, seed: int, out: Path
) -> Path:
    chance = random.Random(f"raters {seed} {rater}")  # whatever the images: the same design gives the same answers
    token = f"{chance.getrandbits(64):016x}"
    answers: list[dict[str, object]] = []
    for number, trial in enumerate(study.trials_of(rater)):
        pictures = study.pictures_of(trial)
        if trial.kind == "trap":
            weights = [SLIP if method == BAD else 1.0 for method in trial.shown]
        else:
            weights = [preference[method] for method in trial.shown]
        chosen = chance.choices(pictures, [1] * len(pictures) if careless else weights)[0]
        unsure = not careless and trial.kind != "trap" and chance.random() < UNSURE
        milliseconds = round(1000 * chance.lognormvariate(math.log(0.5 if careless else 5.0), 0.4))
        answers.append(
            {
                "trial": number,
                "shown": pictures,
                "chosen": None if unsure else chosen,
                "milliseconds": milliseconds,
                "revised": 0,
                "zoom": 100,
                "ratio": 100,
            }
        )
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "study": study.id,
        "rater": rater + 1,
        "token": token,
        "simulated": words,
        "answers": answers,
        "checksum": checksum(study.id, rater + 1, token, words, answers),
    }
    path = out / f"votes-{study.id}-{rater + 1}-{token}.json"
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
    return path
