"""The options of `bench latency` as a Python object."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsd.errors import UserError

SIZES = {"mini": (256,), "paper": (512,)}
"""Sides of the square outputs, in pixels, that a profile measures by default."""
LEAST_WARMUPS = {"cpu": 3, "cuda": 10}
ROUNDS = {"cpu": 10, "cuda": 30}
AFTER_COMPILATION = 3
"""Further warm-up calls where networks were compiled."""


@dataclass(frozen=True)
class LatencyRequest:
    """One table of seconds to measure. Every default is that of `bench latency` without the option.

    Attributes:
        table, profile: the paper's table and the scale, "mini" or "paper".
        methods: rows, NAME or NAME@FORM; None for those of the profile. The rows that ratios refer to are added.
        sizes: sides of the square outputs in pixels; None for those of the profile.
        rounds: timed calls of every method and size; None for 30 on a GPU, 10 on a CPU.
        warmups: calls before them that are not timed; None for 10 on a GPU, 3 on a CPU.
        random_weights: build the networks of the methods that can at their real shape with random weights.
        compile: compile the networks with torch.compile.
        threads: threads of a CPU; None for torch's choice.
        device: torch device; "auto" for a GPU where there is one. The profile "paper" asks for one unless it is "cpu".
        dtype: "fp32", "bf16" or "fp16".
        out: folder of the results; None for `reports/latency/PROFILE`.
        redo: rows to measure again, "all" for every row; their records are moved aside.
        weights_root, repo_dir, cache_root: as in `bench.options.RunOptions`.

    Raises:
        UserError: a value that cannot be measured.
    """

    table: str = "table3"
    profile: str = "mini"
    methods: Sequence[str] | None = None
    sizes: Sequence[int] | None = None
    rounds: int | None = None
    warmups: int | None = None
    random_weights: bool = False
    compile: bool = False
    threads: int | None = None
    device: str = "auto"
    dtype: str = "fp32"
    out: Path | None = None
    redo: Sequence[str] = ()
    weights_root: Path | None = None
    repo_dir: Path | None = None
    cache_root: Path | None = None

    def __post_init__(self) -> None:
        if self.table != "table3":
            raise UserError(f"bench latency measures table3, not {self.table!r}")
        if self.profile not in SIZES:
            raise UserError(f"unknown profile {self.profile!r}; expected one of {', '.join(SIZES)}")
        for name in ("methods", "redo"):
            if isinstance(getattr(self, name), str):
                raise UserError(f"{name}={getattr(self, name)!r}: expected a list of names")
        for size in self.sizes or ():
            if size < 64 or size % 32:
                raise UserError(f"a size of {size} pixels; expected a multiple of 32, 64 or more")
        for name in ("rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}; expected 1 or more")
        if self.warmups is not None and self.warmups < 2:
            raise UserError(
                f"warmups={self.warmups}; expected 2 or more, since operations and memory are counted in two"
            )

    def output_sizes(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.sizes or SIZES[self.profile]))

    def folder(self) -> Path:
        return Path(self.out or Path("reports") / "latency" / self.profile)
