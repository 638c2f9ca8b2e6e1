"""What the seconds were measured on: driver, power limit, the rate that a matmul reaches, and peak memory of a call."""

import contextlib
import ctypes
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench import provenance
from bench.device import synchronize

if TYPE_CHECKING:
    import torch

REPEATS = 8
SIDE = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices whose product gives the peak rate."""


def environment(device: str, dtype: str) -> dict[str, Any]:
    """The environment of a timing: that of any record, and what changes seconds alone."""
    import torch

    content = provenance.environment(device, dtype)
    content["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if device.startswith("cuda"):
        content |= _gpu(device)
    return content


def _gpu(device: str) -> dict[str, Any]:
    """Facts of the GPU as nvidia-smi and torch state them; None where they cannot be had."""
    import torch

    index = torch.device(device).index or 0
    keys = ("driver_version", "power.limit", "clocks.max.sm")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        query = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader", f"--id=GPU-{uuid}"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        found = dict(zip(keys, (part.strip() for part in done.stdout.split(",")), strict=True))
        return {**found, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {**dict.fromkeys(keys), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def peak_rate(device: str, dtype: "torch.dtype") -> tuple[float, str]:
    """The best rate of a square matmul, and its name: the peak that shares are of.

    In FLOP/s on a GPU, in FLOP per CPU second on a CPU, where other processes would lower the rate by the clock.
    """
    import torch

    kind = device.partition(":")[0]
    side = SIDE[kind]
    a, b = torch.randn(2, side, side).to(device, dtype)
    clock = time.perf_counter if kind == "cuda" else time.process_time
    best = float("inf")
    for _ in range(REPEATS):
        synchronize(device)
        start = clock()
        torch.mm(a, b)
        synchronize(device)
        best = min(best, clock() - start)
    name = f"matmul of {side} x {side} x {side} in {str(dtype).removeprefix('torch.')}"
    return 2 * side**3 / best, name


def peak_memory(call: Callable[[], object], device: str, own_bytes: int) -> dict[str, int | None]:
    """Runs `call` and returns the peak bytes of a process that held this method alone.

    Other methods are loaded too, so it is what the call took beyond what was held before, and the method's own weights.
    On a GPU these are torch's allocated and reserved bytes; on a CPU the resident bytes of the process, None where the
    system does not tell.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        after = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {
            "allocated": own_bytes + after[0] - before[0],
            "reserved": own_bytes + after[1] - before[1],
        }
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # gives freed memory back, which would hide what the call takes
    resets = _reset_resident_peak()
    held = _resident("VmRSS")
    call()
    peak = _resident("VmHWM") if resets else None
    return {"resident": None if held is None or peak is None else own_bytes + max(peak - held, 0)}


def _reset_resident_peak() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as handle:
            handle.write("5")
    except OSError:
        return False
    return True


def _resident(key: str) -> int | None:
    with contextlib.suppress(OSError), open("/proc/self/status") as handle:
        for line in handle:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None
