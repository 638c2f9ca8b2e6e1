"""The key of a study, `study.json`: what was asked of whom, and which picture is whose. Raters never get it.

A study is named by a hash over all of this, so that votes belong to one study, and a key that was changed is noticed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.provenance import sha256_json
from bench.records.lines import read_object, write_object
from bench.records.schema import RecordError, from_json, list_from_json
from bench.study.design import BAD, GOOD, Trial
from tsd.errors import UserError

Criterion = Literal["similarity", "structure", "realism"]
Reference = Literal["hr", "lr"]
QUESTIONS: Mapping[str, str] = {
    "similarity": "Which picture is more similar to the reference?",
    "structure": "Which picture keeps the structure of the input better?",
    "realism": "Which picture looks more like a real photograph?",
}
BEST_QUESTIONS: Mapping[str, str] = {
    "similarity": "Which picture is most similar to the reference?",
    "structure": "Which picture keeps the structure of the input best?",
    "realism": "Which picture looks most like a real photograph?",
}
SHOWN: Mapping[Criterion, tuple[Reference, ...]] = {"similarity": ("hr",), "structure": ("lr",), "realism": ()}
"""What stands beside the pictures unless asked otherwise."""
KEY = "study.json"
ALL = "All"
"""The category of images without one, and the name of the mean over categories."""


@dataclass(frozen=True)
class StudyMethod:
    """A method. `name` is its name in records, `identity` the hash of its weights and settings there."""

    name: str
    display: str
    identity: str


@dataclass(frozen=True)
class StudyImage:
    """An image: hashes of its files, those of the methods in their order; `pictures` are their numbers on the page.

    `good` and `bad` are the numbers of the pictures of a trap on this image, None where no trap is.
    """

    name: str
    category: str
    lr_sha256: str
    hr_sha256: str | None
    sr_sha256: list[str]
    pictures: list[int]
    good: int | None
    bad: int | None


@dataclass(frozen=True)
class StudyMetric:
    """A metric of the run: for each method the value of each image, None where there is none that counts."""

    name: str
    display: str
    higher_is_better: bool
    protocol: str
    values: list[list[float | None]]


@dataclass(frozen=True)
class Study:
    """A study. `trials[rater]` are [image, kind, *shown] as in `Trial`. `made_by` is the version of bench."""

    id: str
    title: str
    criterion: str
    mode: str
    show: list[str]
    seed: int
    run: str
    testset: str
    made_by: str
    methods: list[StudyMethod]
    images: list[StudyImage]
    metrics: list[StudyMetric]
    trials: list[list[list[Any]]]

    @property
    def question(self) -> str:
        """What raters are asked."""
        return (BEST_QUESTIONS if self.mode == "best" else QUESTIONS).get(self.criterion, self.criterion)

    @property
    def categories(self) -> list[str]:
        """The categories, in the order in which images first name them."""
        return list(dict.fromkeys(image.category for image in self.images))

    def trials_of(self, rater: int) -> list[Trial]:
        return [Trial(image, tuple(shown), kind) for image, kind, *shown in self.trials[rater]]

    def pictures_of(self, trial: Trial) -> list[int]:
        """The numbers of the pictures that a trial shows, from left to right."""
        image = self.images[trial.image]
        of_trap = {GOOD: image.good, BAD: image.bad}
        numbers = [of_trap[at] if at in of_trap else image.pictures[at] for at in trial.shown]
        return [number for number in numbers if number is not None]  # a key has the pictures of its traps


def named(study: Study) -> Study:
    """The study with the id that its content gives."""
    content = asdict(study)
    del content["id"]
    return replace(study, id=sha256_json(content)[:16])


def write_study(study: Study, folder: Path) -> Path:
    write_object(folder / KEY, asdict(study))
    return folder / KEY


def read_study(place: Path) -> Study:
    """Reads the key from a folder of `bench study make`, or from the file itself.

    Raises:
        UserError: there is none, or it is not as it was written.
    """
    path = place / KEY if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"no {KEY} in {place}; expected the --out folder of a `bench study make`, which holds the key")
    raw = read_object(path)
    try:
        for key, cls in (("methods", StudyMethod), ("images", StudyImage), ("metrics", StudyMetric)):
            raw[key] = list_from_json(cls, raw, key, path)
        study = from_json(Study, raw, path)
        same = named(study).id == study.id
    except RecordError as error:
        raise UserError(f"{path} is not the key of a study: {error}") from error
    if not same:
        raise UserError(f"{path} was changed after it was written: its content does not give its id {study.id}")
    return study
