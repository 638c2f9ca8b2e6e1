"""The options that a run passes to every method (device, precision, folders, seed), and the constants of the task.

This module imports only the ground of `tsd`; torch is imported by the two functions that need it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsd.errors import UserError
from tsd.precision import PRECISIONS, torch_dtype

if TYPE_CHECKING:
    import torch

SCALE = 4
"""Outputs are this many times as wide and as high as their inputs."""
MIN_SIDE = 16
"""Every method accepts images with sides of at least this many pixels."""
SEED_LIMIT = 2**63
"""Seeds are integers from 0 up to, but not including, this one."""


@dataclass(frozen=True)
class Tiles:
    """How a plain network works on a photograph that is larger than one tile.

    Attributes:
        side: largest side of what the network sees at once, in input pixels.
        context: of it, what every tile sees beyond each of its edges and does not keep. Where the network looks no
            further than this, the result is that of the whole image.
    """

    side: int = 512
    context: int = 32

    def __post_init__(self) -> None:
        if self.context < 0 or self.side - 2 * self.context < MIN_SIDE:
            raise UserError(
                f"tiles of {self.side} pixels with {self.context} of context on each side leave less than {MIN_SIDE} "
                f"pixels; expected at least {2 * max(self.context, 0) + MIN_SIDE}"
            )


@dataclass(frozen=True)
class RunOptions:
    """The options of a run that its methods need.

    Attributes:
        device: a torch device ("cpu", "cuda", "cuda:1").
        dtype: precision of the network: "fp32", "bf16" or "fp16".
        data_root: folder of the test sets; None means $TSD_DATA.
        weights_root: folder of weights that cannot be shipped; None means $TSD_WEIGHTS, else ./weights.
        testset: name of the test set to be restored, for methods that exist for some sets only.
        repo_dir: folder with clones or bundles of the methods' repositories; None clones from their addresses.
        cache_root: folder of checkouts and environments; None means $TSD_CACHE, else a folder in ~/.cache.
        time_limit_seconds: limit for a method's process over one folder; None means the limit of its card.
        seed: the run's seed. Each image has its own seed, derived from it, unless the method takes one for all images.
        random_weights: build networks at their real shape with random weights, for time and memory alone. Only methods
            whose spec says so can; nothing but `bench latency` asks for it.
        form: another way of computing the same images, one of the spec's `forms`; "" for the usual one.
        tiles: for methods whose spec says so; None, as in every measurement, takes images whole.
        any_scale: accept networks that enlarge by another factor than `SCALE`, which no table can hold; nothing but
            `bench apply` asks for it.
    """

    device: str = "cpu"
    dtype: str = "fp32"
    data_root: Path | None = None
    weights_root: Path | None = None
    testset: str | None = None
    repo_dir: Path | None = None
    cache_root: Path | None = None
    time_limit_seconds: float | None = None
    seed: int = 42
    random_weights: bool = False
    form: str = ""
    tiles: Tiles | None = None
    any_scale: bool = False

    def weights(self) -> Path:
        """The folder of weights that are not shipped; it need not exist."""
        return Path(self.weights_root or os.environ.get("TSD_WEIGHTS") or "weights")

    def weights_place(self, name: str) -> str:
        """The place of the file or folder `name`, without an absolute path, since footnotes may be published."""
        return f"$TSD_WEIGHTS/{name} (or under --weights-root, else ./weights)"

    def cache(self) -> Path:
        """The folder of checkouts and environments; it need not exist."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Path(self.cache_root or os.environ.get("TSD_CACHE") or home / "tsd-sr-bench").absolute()

    def data(self) -> Path:
        """The folder of the test sets; it need not exist."""
        return Path(self.data_root or os.environ.get("TSD_DATA") or "data")

    def require_device(self) -> None:
        """Raises UserError if the device is a GPU that torch does not find, before anything heavy is loaded."""
        import torch

        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"the device is {self.device} but torch finds no CUDA device here; use cpu")

    def require_dtype(self) -> None:
        """Raises UserError if `dtype` is not a known precision; imports nothing."""
        if self.dtype not in PRECISIONS:
            raise UserError(f"no precision is named {self.dtype!r}; expected one of {', '.join(PRECISIONS)}")

    def torch_dtype(self) -> "torch.dtype":
        return torch_dtype(self.dtype)
