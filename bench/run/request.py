"""The options of `bench run` as a Python object, before any name is looked up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsd.errors import UserError


@dataclass(frozen=True)
class Request:
    """One table to measure. Every default is that of `bench run` without the option.

    Attributes:
        table: the paper's table ("table1").
        profile: scale, "mini" or "paper".
        methods: rows by the names of `bench list`, or forms such as "spandrel:PATH"; None for those of the profile.
        testsets, metrics: their names; None for those of the profile.
        limit: number of images of each test set, the first by name; None for all.
        out: folder of the results; None for `reports/PROFILE`.
        seed: seed of the run, from which that of each image is derived.
        device: torch device, or "auto" for a GPU where there is one.
        dtype: precision of the networks: "fp32", "bf16" or "fp16".
        data_root, weights_root, repo_dir, cache_root, time_limit_seconds: as in `bench.options.RunOptions`.
        redo: methods to measure again; their records are moved aside.
        reference: the row that paired differences refer to; None for that of the profile.
        allow_missing: True leaves out missing test sets and metrics, False requires even the methods; None takes the
            setting of the profile.
        timing: whether the table has the column of seconds per image.
        figure: whether a picture is drawn beside the table; None for test sets whose images may be handed on.
        images: names of the images in the picture, which is then drawn; None for some that are evenly spread.
        newer: whether one-step methods after the paper follow the rows of Table 1 in the profile "paper".

    Raises:
        UserError: a value is of the wrong kind. Names are looked up later.
    """

    table: str = "table1"
    profile: str = "mini"
    methods: Sequence[str] | None = None
    testsets: Sequence[str] | None = None
    metrics: Sequence[str] | None = None
    limit: int | None = None
    out: Path | None = None
    seed: int = 42
    device: str = "auto"
    dtype: str = "fp32"
    data_root: Path | None = None
    weights_root: Path | None = None
    repo_dir: Path | None = None
    cache_root: Path | None = None
    time_limit_seconds: float | None = None
    redo: Sequence[str] = ()
    reference: str | None = None
    allow_missing: bool | None = None
    timing: bool = True
    figure: bool | None = None
    images: Sequence[str] | None = None
    newer: bool = False

    def __post_init__(self) -> None:
        for name in ("methods", "testsets", "metrics", "redo", "images"):
            if isinstance(getattr(self, name), str):
                raise UserError(f"{name}={getattr(self, name)!r}: expected a list of names")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit={self.limit}: expected 1 or more images")
        if self.time_limit_seconds is not None and not 0 < self.time_limit_seconds < float("inf"):
            raise UserError(f"time_limit_seconds={self.time_limit_seconds}: expected seconds above 0")

    def folder(self) -> Path:
        """The folder of the results; a run of the first N images has its own folder beside the profile's."""
        name = self.profile if self.limit is None else f"{self.profile}-first{self.limit}"
        return Path(self.out or Path("reports") / name)
