"""The log of a run: `log.jsonl`, the trackers of accelerate, and validation images."""

import contextlib
import json
import resource
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from tsd.files import atomic_path, write_text

TIMING = ("seconds", "images_per_second", "peak_mib")
"""Columns that differ from run to run; every other number is reproducible."""


def peak_mib(device: torch.device) -> float:
    """The peak memory of this process so far in MiB: allocated on a CUDA device, else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class RunLog:
    """Writes rows and images in the main process; in all other processes every method does nothing."""

    def __init__(self, output: Path, accelerator: Accelerator) -> None:
        self.output, self.accelerator = output, accelerator
        self.path = output / "log.jsonl"

    def truncate(self, step: int) -> None:
        """Drops the rows that a killed run logged after `step`, that of its checkpoint or 0, and a torn line."""
        if self.accelerator.is_main_process and self.path.is_file():
            rows = []
            for line in self.path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    if json.loads(line)["step"] <= step:
                        rows.append(line)
            write_text(self.path, "".join(f"{row}\n" for row in rows))

    def row(self, step: int, numbers: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.accelerator.log(numbers, step=step)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")

    def images(self, step: int, title: str, strip: Tensor) -> None:
        """Writes a strip, uint8 (3, H, W), to `validation/step-….png` and to every tracker that takes images."""
        if not self.accelerator.is_main_process:
            return
        pixels = strip.permute(1, 2, 0).numpy()
        with atomic_path(self.output / "validation" / f"step-{step:07d}.png") as path:
            Image.fromarray(pixels).save(path)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({title: pixels[None]}, step=step, **layout)  # pyright: ignore
