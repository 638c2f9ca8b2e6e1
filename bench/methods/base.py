"""What a super-resolution method is to the harness: a small contract, and a description that loads nothing.

This is the contract. `bench check METHOD` checks every clause on synthetic images (bench/methods/check.py).

    sr = method.restore(lr, seed)

    input         lr: float32 tensor (1, 3, h, w) on the CPU, RGB, values in [0, 1], h and w of at least
                  MIN_SIDE pixels, odd sizes included; seed: int in [0, 2**63).
    output        sr: float32 tensor (1, 3, 4h, 4w) on the CPU, RGB, values in [0, 1], finite, without gradient.
                  The harness alone rounds to 8 bit, writes PNG, times and hashes; a method that works on a GPU
                  moves the image there and back itself, so the time of `restore` is the time of the work.
    content       sr shows what lr shows: same orientation, same channel order, same range.
    determinism   the same lr and seed give the same sr: bit for bit on the CPU, within one 8-bit level on a GPU.
    independence  sr depends on lr and seed alone: not on the images restored before, not on their order, not on
                  the state of the global random generators (torch, numpy, random).
    no traces     lr is not modified, the global random generators are left as they were found, and a returned sr
                  keeps its values when the method is called again.
    provenance    method.provenance() is a JSON-able dict with the sha256 of every weight file and every setting that
                  changes a number; names of files, no absolute paths. Facts for readers alone go under "remarks", a
                  list of short texts: tables show them, and a change of their words does not make records stale.

Published outputs have no `restore`: a `FolderMethod` names one finished image per test image instead. A method that
runs as a process over a whole folder is a `FolderRunner`; seeds, checks and records are the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from bench.options import RunOptions

if TYPE_CHECKING:
    from torch import Tensor

    from bench.cards.card import Card
    from bench.store.missing import Missing, Obstacle
    from bench.testsets.manifest import TestSet


@runtime_checkable
class Method(Protocol):
    """Anything that turns one low-resolution image into one four times as large, by the contract above."""

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        """(1, 3, h, w) float32 in [0, 1] on the CPU -> (1, 3, 4h, 4w) float32 in [0, 1] on the CPU."""
        ...

    def provenance(self) -> dict[str, object]:
        """Hashes of the weights and every setting that changes a number, JSON-able."""
        ...


@runtime_checkable
class FolderMethod(Protocol):
    """Outputs that exist already, for a method whose authors published images."""

    def outputs(self, testset: "TestSet") -> dict[str, Path]:
        """The finished image of every image of `testset`, by its name (stem).

        Raises:
            UserError: a folder, an image or a size is not what `testset` needs; all faults are listed.
        """
        ...

    def provenance(self) -> dict[str, object]:
        """Where the images come from and one sha256 over all of them, JSON-able."""
        ...


@runtime_checkable
class FolderRunner(Protocol):
    """A method that restores many images at once, in a process of its own (bench/methods/external/)."""

    def restore_folder(
        self, images: Mapping[str, Path], seeds: Mapping[str, int], work: Path
    ) -> Iterator[tuple[str, Path | str]]:
        """Restores `images` (name -> file of the low-resolution image) and yields every name exactly once.

        With each name comes the file of the output, or one line that says why there is none. A file is yielded as soon
        as it is known to be complete; the process may still be running.

        Args:
            seeds: by name; for a method that cannot be seeded they are ignored.
            work: a folder of this method's own for inputs, outputs and logs. What an interrupted call left there may be
                used again if it was made with the same settings. After the last name only logs remain.

        Raises:
            UserError: nothing could be started at all: no environment, a checkout that was changed.
        """
        ...

    def provenance(self) -> dict[str, object]:
        """Like `Method.provenance`; it builds and starts nothing."""
        ...

    def environment(self) -> dict[str, object]:
        """What the process ran in (interpreter, packages), JSON-able; may raise.

        Called once: after the first name was yielded, or after `restore_folder` failed.
        """
        ...

    def seeded(self) -> bool:
        """Whether every image is made from its own seed. If not, its row records no seed."""
        ...

    def seconds(self, name: str) -> float | None:
        """The time of an image that was yielded, measured inside the process; None where it was not timed.

        The first image of a process is never timed.
        """
        ...


@dataclass(frozen=True)
class MethodSpec:
    """One row's method, described without loading it: importing a spec imports no network library.

    Attributes:
        name: the name on the command line, in records and in paths ("bicubic"); letters, digits, ".", "_", "-".
        display: the name in tables ("Bicubic").
        steps: network evaluations per image as the paper counts them (teacher: sampling steps); None where the
            word has no meaning (resizing, published images).
        kind: "resize", "diffusion", "gan", "function" or "published".
        summary: one line for `bench list`.
        licence: licence of the weights or images, else of the code.
        how: "in process", "own environment" or "published outputs".
        restriction: what the licence forbids; empty where nothing is forbidden.
        verified: how this row was last checked, in words.
        card: the card it comes from, for the paper's competitors.
        load: makes the method; it may raise `tsd.errors.UserError`. Every run calls it and `provenance`, even if all
            work is done, so both hash files, and the first `restore` builds the network.
        missing: returns the files that are not on this machine, and obstacles that no file removes (no GPU). It looks
            at file names only and needs no network.
        testsets: the only test sets it can serve; None for all.
        random_weights: whether it can be built at its real shape with random weights (`RunOptions.random_weights`).
        tiles: whether its network can work in tiles (`RunOptions.tiles`).
        forms: other ways of computing the same images (`RunOptions.form`), by name, each with the words that a table
            puts after the method's name. A row of `bench latency` is NAME or NAME@FORM.
    """

    name: str
    display: str
    steps: int | None
    kind: str
    summary: str
    licence: str
    load: Callable[[RunOptions], Method | FolderMethod | FolderRunner]
    missing: Callable[[RunOptions], "Sequence[Missing | Obstacle]"]
    testsets: tuple[str, ...] | None = None
    how: str = "in process"
    restriction: str = ""
    verified: str = "by the tests"
    card: "Card | None" = None
    random_weights: bool = False
    tiles: bool = False
    forms: Mapping[str, str] = field(default_factory=dict)


def spec_of(
    card: "Card",
    load: Callable[[RunOptions], Method | FolderMethod | FolderRunner],
    missing: "Callable[[RunOptions], Sequence[Missing | Obstacle]]",
    how: str = "in process",
    *,
    random_weights: bool = False,
    tiles: bool = False,
    forms: Mapping[str, str] = MappingProxyType({}),
) -> MethodSpec:
    """The spec of a card; its facts are the card's."""
    return MethodSpec(
        name=card.name,
        display=card.display,
        steps=card.steps,
        kind=card.kind,
        summary=card.summary,
        licence=card.licence,
        load=load,
        missing=missing,
        how=how,
        restriction=card.restriction,
        verified=card.verified,
        card=card,
        random_weights=random_weights,
        tiles=tiles,
        forms=forms,
    )


def nothing_missing(options: RunOptions) -> "list[Missing | Obstacle]":
    """The `missing` of methods that need no file beyond the installed packages."""
    return []
