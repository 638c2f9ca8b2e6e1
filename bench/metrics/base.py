"""The interface of a metric: its facts as data, and `load`, which returns a plain function."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from bench.metrics.weights import MetricFile, verified_sha256
from bench.store.missing import Missing, describe
from tsd.errors import UserError

ImageScorer = Callable[[Path, Path | None], float]
SetScorer = Callable[[Mapping[str, Path], Mapping[str, Path]], float]


class CannotScoreError(UserError):
    """The metric has no value for this image (too small, or undefined); other metrics and images may have one."""


class MissingWeightsError(UserError):
    """Files this metric needs are not on this machine; `.missing` names them."""

    def __init__(self, missing: list[Missing]) -> None:
        super().__init__(describe(missing))
        self.missing = missing


@dataclass(frozen=True)
class MetricSpec:
    """One column of the paper's tables.

    Attributes:
        name: the name on the command line and in records ("psnr").
        display: the name in tables ("PSNR").
        needs_reference: whether the metric compares with a ground truth.
        needs_input: whether it compares with the input of the restoration instead.
        higher_is_better: whether a higher value is better; sets the arrow.
        level: "image": one value per image, and tables show the mean; "set": one value for two sets of images.
        pyiqa_name: name of the metric in pyiqa ("maniqa-pipal").
        settings: arguments for pyiqa that differ from its defaults.
        note: the rest of the protocol in words.
        decimals: digits after the point in tables.
        bounds: the smallest and the largest value that an image can have.
        loader: builds the scorer on a device; called by `load` only after every weight file has been verified.
        weights: files that must be on this machine.
        modules: importable packages it needs, each with the command that installs it.
        min_sides: smallest (short, long) side in pixels for which the metric is defined.
    """

    name: str
    display: str
    needs_reference: bool
    higher_is_better: bool
    level: Literal["image", "set"]
    pyiqa_name: str
    note: str
    decimals: int
    loader: Callable[["MetricSpec", str], ImageScorer | SetScorer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[MetricFile, ...] = ()
    modules: tuple[tuple[str, str], ...] = (("pyiqa", "pip install 'tsd-sr-bench[bench]'"),)
    min_sides: tuple[int, int] = (1, 1)
    bounds: tuple[float, float] = (0.0, math.inf)
    needs_input: bool = False

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"

    @property
    def protocol(self) -> str:
        """One line that is equal for comparable values; it changes with the version of pyiqa."""
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"pyiqa {pyiqa_version()} {self.pyiqa_name}({settings}); {self.note}"

    def load(self, device: str = "cpu") -> ImageScorer | SetScorer:
        """Builds the metric as a function: `(sr, other) -> float` on paths, or on two mappings name -> path.

        The second path is what the metric compares with: the ground truth, the input, or None.

        Raises:
            MissingWeightsError: a file is absent. It is not downloaded.
            UserError: a file has the wrong hash; it is not opened.
        """
        missing = missing_metric(self)
        if missing:
            raise MissingWeightsError(missing)
        weight_hashes(self)
        return self.loader(self, device)


@cache
def pyiqa_version() -> str:
    try:
        return version("pyiqa")
    except PackageNotFoundError:
        return "(not installed)"


def missing_metric(spec: MetricSpec) -> list[Missing]:
    """Lists what this metric needs and this machine lacks. Only looks at file names, which takes milliseconds."""
    missing = [
        Missing(
            name=f"the Python package {module}",
            where="this environment",
            source=f"`{install}`",
            size_bytes=None,
            licence=None,
            needed_by=spec.display,
        )
        for module, install in spec.modules
        if find_spec(module) is None
    ]
    return missing + [file.missing(spec.display, spec.name) for file in spec.weights if not file.path().is_file()]


def weight_hashes(spec: MetricSpec) -> dict[str, str]:
    """sha256 of every weight file by file name, for records.

    Raises:
        UserError: a file is absent or has the wrong hash.
    """
    return {file.name: verified_sha256(file) for file in spec.weights}
