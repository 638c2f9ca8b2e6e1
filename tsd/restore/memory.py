"""Whether an image fits into memory in one piece, and how large pieces may be where it does not.

Needs are estimated from the widest images inside the VAE, at the size of the result; free memory is what the system
and the device say.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from tsd.config import enlarged_size
from tsd.errors import UserError
from tsd.files import human_size
from tsd.images import ImageError
from tsd.restore.pieces import BAND, smallest_window
from tsd.restore.restorer import Restorer
from tsd.writing import ROW_FORMATS, format_of

WIDE_IMAGES = 4
"""Images of the widest layer at full resolution that are in memory at once while a VAE decodes; 3.5 were measured."""
FIRST_WORK_BYTES = 150_000_000
"""What the first image adds to a process for good, on a CPU: code that is paged in, and heaps."""
COLOUR_BYTES = 13 * 12
"""Bytes for each pixel of the result while colours are aligned on the whole image."""
SHARE = 0.7
"""How much of the free memory a restoration may plan with: others want memory too, and needs are estimates."""
LARGEST_WINDOW = 256
"""Latent positions beyond which larger windows save next to nothing."""


@dataclass(frozen=True)
class Plan:
    """How an image is restored.

    Attributes:
        window: side of the pieces in latent positions; None: in one piece.
        needed_bytes: what the image would take in one piece.
        available_bytes: what may be used.
    """

    window: int | None
    needed_bytes: int
    available_bytes: int


def plan(restorer: Restorer, width: int, height: int, target: Path, memory_gb: float | None = None) -> Plan:
    """Chooses between one piece and pieces for an input of this size.

    Nothing is cut where the settings ask for no tiles (`tile` 0) or for diffusers' tiled VAE.

    Args:
        target: the file to be written; only PNG and TIFF are written without holding the image.
        memory_gb: memory of the whole process to plan for, in GB; by default what is free.

    Raises:
        UserError: not even the smallest pieces would fit.
        ImageError: the format holds the whole image, which would not fit.
    """
    kind, size = format_of(target), enlarged_size(width, height, restorer.config.scale)
    available = available_bytes(restorer.backbone.device, memory_gb)
    work = restorer.processing_size(width, height)
    needed = max(math.prod(work) * _vae_bytes(restorer), math.prod(size) * COLOUR_BYTES)
    if needed <= available or restorer.config.tile == 0 or restorer.config.vae_tile:
        return Plan(None, needed, available)
    held = 0 if kind in ROW_FORMATS else 2 * 4 * math.prod(size)  # the image and its encoded form
    if held > available / 2:
        raise ImageError(
            f"{target}: a {size[0]}x{size[1]} image is held whole to be written as {kind}, which takes "
            f"{human_size(held)} of {human_size(available)} that may be used; use PNG or TIFF (--format png)"
        )
    least = smallest_window(restorer)
    for window in range(max(LARGEST_WINDOW, least), least - 1, -8):
        if held + _piece_bytes(restorer, window, work, size) <= available:
            return Plan(window, needed, available)
    smallest = held + _piece_bytes(restorer, least, work, size)
    raise UserError(
        f"not enough memory: restoring {width}x{height} pixels in the smallest pieces takes about "
        f"{human_size(smallest)} beside the model, and {human_size(available)} may be used; what helps: --dtype bf16, "
        f"or more --memory"
    )


def available_bytes(device: torch.device, memory_gb: float | None = None) -> int:
    """Bytes that a restoration may use on a device beside what the process has already.

    Args:
        memory_gb: see `plan`.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        unused = held - torch.cuda.memory_allocated(device)
        return int(SHARE * (free + unused)) if memory_gb is None else max(int(memory_gb * 1e9) - held + unused, 0)
    if memory_gb is None:
        return int(SHARE * _free_bytes())
    return max(int(memory_gb * 1e9) - _resident_bytes() - FIRST_WORK_BYTES, 0)


def _free_bytes() -> int:
    """What the system can give without swapping, and no more than a container's limit leaves."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free


def _resident_bytes() -> int:
    """What this process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: what it held at most
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _vae_bytes(restorer: Restorer) -> int:
    """Bytes for each pixel that the VAE works on."""
    widths = restorer.backbone.vae.config["block_out_channels"]
    return WIDE_IMAGES * widths[min(1, len(widths) - 1)] * restorer.backbone.dtype.itemsize


def _piece_bytes(restorer: Restorer, window: int, work: tuple[int, int], size: tuple[int, int]) -> int:
    """Bytes for a window, and for the rows of the result that are held at once."""
    side = window * restorer.backbone.vae_factor
    rows = min(side, work[1])
    return (
        rows * min(side, work[0]) * _vae_bytes(restorer) + 16 * rows * work[0] + 8 * 12 * min(BAND, size[1]) * size[0]
    )
