"""The stages of a restoration: where each begins inside `restore`, for a harness that times them.

The code that restores is not written twice and does not know that it is observed. A method names the calls at which its
stages begin; while it is observed, these attributes are replaced by functions that announce the stage and go on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

STAGES = ("upsample", "tag", "text", "encode", "denoise", "decode", "colour", "copy", "png")
"""In their usual order. `upsample` includes the way to the device, `copy` is the way back, `png` the harness's part."""
COUNTED = ("tag", "text", "encode", "denoise", "decode")
"""What the paper's protocol counts: every network that an image needs, nothing of loading, resizing and files."""


@dataclass(frozen=True)
class Boundary:
    """A call inside `restore` at which a stage begins. The stage lasts until the next begins.

    Attributes:
        stage: one of `STAGES`.
        owner, attribute: the function, as `restore` looks it up at every call.
        then: the stage that begins when the function returns; "" where nothing changes.
    """

    stage: str
    owner: Any
    attribute: str
    then: str = ""


@runtime_checkable
class Staged(Protocol):
    """A method that says where its stages begin. Any other method is one stage, `denoise`."""

    def boundaries(self) -> Sequence[Boundary]:
        """Loads the networks if they are not loaded. `upsample` begins with `restore` itself."""
        ...

    def networks(self) -> "Mapping[str, nn.Module]":
        """Everything with parameters that an image needs, by name; no module is part of another."""
        ...


@contextmanager
def observed(boundaries: Sequence[Boundary], begin: Callable[[str], None]) -> Iterator[None]:
    """Calls `begin(stage)` whenever a stage begins, until the block ends."""
    before = [(boundary, vars(boundary.owner).get(boundary.attribute)) for boundary in boundaries]
    try:
        for boundary in boundaries:
            function = getattr(boundary.owner, boundary.attribute)
            setattr(boundary.owner, boundary.attribute, _announcing(function, boundary, begin))
        yield
    finally:
        for boundary, own in reversed(before):
            if own is None:
                delattr(boundary.owner, boundary.attribute)  # the class's own shows again
            else:
                setattr(boundary.owner, boundary.attribute, own)


def _announcing(function: Callable[..., Any], boundary: Boundary, begin: Callable[[str], None]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        begin(boundary.stage)
        result = function(*arguments, **keywords)
        if boundary.then:
            begin(boundary.then)
        return result

    return call
