"""Golden logs: the scores that authors logged for images they also published, image by image.

A golden log is two files in `bench/verify/golden`: NAME.toml says whose images of which test set were scored and where
the log is published, NAME.csv has the figures as they stand there. Only figures lie here; the images are fetched.

Tolerances are absolute. Their reasons are part of the verdict that a user reads.
"""

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsd.errors import UserError, some

GOLDEN = Path(__file__).parent / "golden"
KNOWN_PYIQA = tuple(f"0.1.{number}" for number in range(10, 17))
"""The versions of pyiqa whose source was compared for the nine metrics: only MANIQA changed, in 0.1.12."""


@dataclass(frozen=True)
class Tolerance:
    """How far a value may be from the log.

    Attributes:
        image: largest difference of one image; None for values of a whole set.
        mean: largest difference of the mean over the images, or of the value of the set.
        reason: why it is not zero.
    """

    image: float | None
    mean: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "psnr": Tolerance(1e-4, 1e-4, "the log has six decimals; sums in another order moved an image by 4e-6 dB"),
    "ssim": Tolerance(1e-5, 1e-5, "the log has six decimals; sums in another order moved an image by 7e-7"),
    "niqe": Tolerance(
        0.02, 1e-3, "between pyiqa 0.1.10 and 0.1.16 single images moved by up to 0.011, the mean by 2e-4"
    ),
    "lpips": Tolerance(1e-3, 2e-4, "a network in float32; laboratories that score the same images differ by 1e-4"),
    "dists": Tolerance(1e-3, 3e-4, "a network in float32; laboratories that score the same images differ by 3e-4"),
    "musiq": Tolerance(0.2, 0.05, "a network in float32; laboratories that score the same images differ by 0.05"),
    "clipiqa": Tolerance(5e-3, 1.6e-3, "CLIP, in half precision on a GPU; laboratories differ by 1.6e-3"),
    "maniqa": Tolerance(
        0.06,
        2.5e-3,
        "the log used 20 random crops an image, pyiqa from 0.1.12 on even ones; laboratories differ by 1.3e-3",
    ),
    "fid": Tolerance(None, 0.1, "a network in float32; laboratories that score the same images differ by 0.06"),
}


@dataclass(frozen=True)
class Golden:
    """One golden log.

    Attributes:
        name: its name on the command line, METHOD-TESTSET.
        method: the card whose published images were scored.
        source, licence, written: where the log is published, under what licence, when and by which pyiqa.
        figures: by metric and name of the image.
        means: the means that the log prints, four decimals.
        whole_set: values of the whole set by metric.
    """

    name: str
    method: str
    testset: str
    source: str
    licence: str
    written: str
    figures: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    whole_set: Mapping[str, float]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics it has figures for, in the order of `TOLERANCES`."""
        return tuple(name for name in TOLERANCES if name in self.figures or name in self.whole_set)

    def names(self) -> set[str]:
        """The names of its images."""
        return set(next(iter(self.figures.values())))

    def check_fits(self, names: set[str]) -> None:
        """Raises UserError if the log has not exactly the images `names`."""
        if self.names() != names:
            raise UserError(
                f"the golden log {self.name} does not fit the test set {self.testset}: without a figure: "
                f"{some(sorted(names - self.names())) or 'none'}; without an image: "
                f"{some(sorted(self.names() - names)) or 'none'}"
            )


def golden_names() -> tuple[str, ...]:
    """The names of all golden logs."""
    return tuple(sorted(path.stem for path in GOLDEN.glob("*.toml")))


def read_golden(name: str, folder: Path = GOLDEN) -> Golden:
    """Reads a golden log.

    Raises:
        UserError: no such log, or its figures are incomplete, not numbers, or do not have the means that it prints.
    """
    path = folder / f"{name}.toml"
    if not path.is_file():
        raise UserError(f"no golden log is called {name!r}; there are {', '.join(golden_names())}")
    facts: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    figures = _figures(path.with_suffix(".csv"))
    counts = {metric: len(values) for metric, values in figures.items()}
    if set(counts.values()) != {facts["images"]}:
        raise UserError(f"{path.with_suffix('.csv')}: expected {facts['images']} images, found {counts}")
    unknown = [metric for metric in (*figures, *facts["whole_set"]) if metric not in TOLERANCES]
    if unknown:
        raise UserError(f"{path}: no tolerance is known for {', '.join(unknown)}")
    for metric, printed in facts["means"].items():
        mean = sum(figures[metric].values()) / facts["images"]
        if abs(mean - printed) > 0.51e-4:
            raise UserError(f"{path.with_suffix('.csv')}: the mean of {metric} is {mean:.6f}, the log prints {printed}")
    return Golden(
        name, facts["method"], facts["testset"], facts["source"], facts["licence"], facts["written"], figures,
        facts["means"], facts["whole_set"],
    )  # fmt: skip


def _figures(path: Path) -> dict[str, dict[str, float]]:
    """Columns of a CSV of figures by metric, each by the name of the image."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    try:
        return {metric: {row["name"]: float(row[metric]) for row in rows} for metric in rows[0] if metric != "name"}
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path}: expected a name and a number a metric in every line ({error})") from error
