"""What a run leaves to read: `log.jsonl`, the trackers of accelerate, and validation images."""

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
"""Columns that no two runs share; every other number of a run is repeatable."""


def peak_mib(device: torch.device) -> float:
    """Most memory this process has held so far: allocated on a CUDA device, else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class RunLog:
    """Writes rows and images of the main process; in all others every method does nothing."""

    def __init__(self, output: Path, accelerator: Accelerator) -> None:
        self.output, self.accelerator = output, accelerator
        self.path = output / "log.jsonl"

    def cut(self, step: int) -> None:
        """Drops what a killed run logged after the checkpoint that is being resumed, a half-written line included."""
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
        """A strip, uint8 (3, H, W), as `validation/step-….png` and to every tracker that takes images."""
        if not self.accelerator.is_main_process:
            return
        pixels = strip.permute(1, 2, 0).numpy()
        with atomic_path(self.output / "validation" / f"step-{step:07d}.png") as path:
            Image.fromarray(pixels).save(path)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({title: pixels[None]}, step=step, **layout)  # pyright: ignore
