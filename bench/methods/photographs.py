"""A method on photographs of one's own: any size, gray, transparent or of 16 bits, in tiles where its network can.

A measurement rounds to 8 bits and knows one scale. Here the picture keeps what its file can hold (`tsd.images`), and a
network may enlarge by any factor.
"""

from typing import TYPE_CHECKING

from bench.methods.base import Method, MethodSpec
from bench.methods.stages import Staged
from bench.options import MIN_SIDE, SCALE, RunOptions
from bench.pixels import checked_output
from bench.store.missing import describe
from tsd.config import enlarged_size
from tsd.console.stages import Progress, silent
from tsd.errors import UserError, is_out_of_memory

if TYPE_CHECKING:
    from tsd.images import Picture


class Photographer:
    """A loaded method for photographs.

    Attributes:
        scale: how many times as large as the photograph the method's results are.
        notes: what to know before the work, in words.

    Raises:
        UserError: nothing can be restored with it here: files are missing, it cannot be built, it is finished images,
            it runs in an environment of its own, or tiles are asked of a method that has none.
    """

    def __init__(self, spec: MethodSpec, options: RunOptions) -> None:
        if spec.how != "in process":
            raise UserError(
                f"{spec.name} restores no photograph here: "
                + (
                    "it is images that are finished already"
                    if spec.how == "published outputs"
                    else "it runs in an environment of its own, which `bench run` starts for whole test sets. "
                    "`bench list methods` says which run in process"
                )
            )
        if options.tiles is not None and not spec.tiles:
            raise UserError(
                f"{spec.name} takes no tiles of a size that is asked for: only plain networks do, spandrel:FILE and "
                f"the GANs{_why_no_tiles(spec)}. Leave --tile and --context away"
            )
        absent = spec.missing(options)
        if absent:
            raise UserError(f"{spec.name} cannot run here:\n{describe(absent)}")
        options.require_device()
        method = spec.load(options)
        assert isinstance(method, Method)  # by `how`
        if isinstance(method, Staged):
            method.networks()  # what is wrong with them is wrong for every photograph: now, not once for each
        self.spec, self.method, self.options = spec, method, options
        self.scale: int = getattr(method, "scale", SCALE)
        self.notes: tuple[str, ...] = getattr(method, "notes", ())

    def restore(
        self,
        picture: "Picture",
        seed: int,
        scale: float | None = None,
        progress: Progress = silent,
    ) -> "Picture":
        """The restored picture, at the depth and with the colour profile of the given one.

        Args:
            seed: for methods that draw random numbers.
            scale: how many times as large the result is, at most `self.scale`; None for that. What the method made is
                resized bicubically.
            progress: called as `tsd.console.stages` says where the method knows how far it is.

        Raises:
            UserError: a side is too short, or the memory does not suffice; the message says what helps.
            ValueError: the method returned no image in [0, 1].
        """
        import numpy as np
        import torch

        from tsd.images import enlarged, resized

        width, height = picture.size
        if min(width, height) < MIN_SIDE:
            raise UserError(f"{width}x{height} pixels: methods take sides of {MIN_SIDE} or more")
        if hasattr(self.method, "progress"):
            self.method.progress = progress  # pyright: ignore[reportAttributeAccessIssue]
        lr = torch.from_numpy(np.ascontiguousarray(picture.color)).permute(2, 0, 1)[None].contiguous()
        try:
            with torch.no_grad():
                sr = checked_output(self.method.restore(lr, seed), height, width, self.scale)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise UserError(self._memory_advice(width, height)) from error
            raise
        color = sr[0].permute(1, 2, 0).contiguous().numpy()
        if scale is not None and scale != self.scale:
            color = resized(color, *enlarged_size(width, height, scale))
        return enlarged(picture, color)

    def _memory_advice(self, width: int, height: int) -> str:
        advice = f"not enough memory on {self.options.device} to restore {width}x{height} pixels with {self.spec.name}"
        if self.options.tiles is not None:
            least = 2 * self.options.tiles.context + MIN_SIDE
            return f"{advice}; what helps: --tile {max(self.options.tiles.side // 2, least)}"
        helps = "tiles: leave --tile 0 away" if self.spec.tiles else "smaller parts of the photograph"
        return f"{advice}, which takes it whole; what helps: {helps}"


def _why_no_tiles(spec: MethodSpec) -> str:
    if spec.kind == "resize":
        return ", and resizing needs none"
    if spec.kind == "function":
        return "; a function sees the photograph whole and makes its own tiles"
    return f"; {spec.display} makes its own" if spec.kind in ("diffusion", "gan") else ""
