"""The clock of one call: a mark where each stage begins, and the seconds between the marks.

On a GPU marks are CUDA events, which do not make the CPU wait; they are read after the call, when its image is on the
CPU and everything has been synchronised once. On a CPU they are `time.perf_counter`, with the CPU seconds of all
threads beside it: on a machine that others use too, the clock also counts them, and CPU seconds do not.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bench.methods.base import Method
from bench.methods.stages import COUNTED, Boundary, Staged, observed
from bench.pixels import checked_pixels, png

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Call:
    """The times of one call.

    Attributes:
        stages: seconds by stage.
        cpu_stages: CPU seconds of all threads by stage; empty on a GPU, where they say nothing.
    """

    stages: dict[str, float]
    cpu_stages: dict[str, float]


def counted_seconds(stages: dict[str, float]) -> float:
    """The seconds of the paper's protocol: networks alone."""
    return sum(stages.get(stage, 0.0) for stage in COUNTED)


class Timeline:
    """Marks of one call on a device, in order."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.on_gpu = device.startswith("cuda")
        self.marks: list[tuple[str, Any, float]] = []

    def begin(self, stage: str) -> None:
        self.marks.append((stage, self._now(), time.process_time()))

    def call(self) -> Call:
        """Seconds by stage; a stage that began several times has their sum. The last mark ends the one before it."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize(self.device)
        stages: dict[str, float] = {}
        cpu: dict[str, float] = {}
        for (stage, start, cpu_start), (_, end, cpu_end) in pairwise(self.marks):
            stages[stage] = stages.get(stage, 0.0) + (start.elapsed_time(end) / 1000 if self.on_gpu else end - start)
            cpu[stage] = cpu.get(stage, 0.0) + cpu_end - cpu_start
        return Call(stages, {} if self.on_gpu else cpu)

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        import torch

        with torch.cuda.device(self.device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event


def boundaries_of(method: Method) -> Sequence[Boundary]:
    """Where the method's stages begin; loads its networks. None for a method that does not say."""
    return method.boundaries() if isinstance(method, Staged) else ()


def first_stage(method: Method) -> str:
    """What `restore` begins with. A method that does not name its stages counts whole."""
    return "upsample" if isinstance(method, Staged) else "denoise"


def timed_call(method: Method, lr: "Tensor", device: str) -> Call:
    """Restores `lr` once, rounds and encodes the image, and returns the times.

    Raises:
        ValueError: the method returned no image, as in `bench.pixels.checked_pixels`.
        RuntimeError: a stage that the method names never began, so its time would count for another.
    """
    boundaries = boundaries_of(method)
    timeline = Timeline(device)
    with observed(boundaries, timeline.begin):
        timeline.begin(first_stage(method))
        sr = method.restore(lr, 0)
        timeline.begin("")
    call = timeline.call()
    missed = {boundary.stage for boundary in boundaries} - set(call.stages)
    if missed:
        raise RuntimeError(f"the stages {', '.join(sorted(missed))} never began: the method's boundaries are wrong")
    start, cpu_start = time.perf_counter(), time.process_time()
    png(checked_pixels(sr, lr.shape[-2], lr.shape[-1]))
    call.stages["png"] = time.perf_counter() - start
    if call.cpu_stages:
        call.cpu_stages["png"] = time.process_time() - cpu_start
    return call
