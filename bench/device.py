"""Chooses the device that a command runs on."""

import ctypes
import functools
import re
from ctypes.util import find_library

from bench.ranks import ALONE, Rank
from tsd.errors import UserError


def resolve_device(name: str, rank: Rank = ALONE) -> str:
    """Resolves `auto` to cuda if torch finds a GPU, else to cpu. In a shared run each process gets its own GPU.

    Importing torch takes seconds, which neither a run with nothing left to do nor a wrong call should spend: it is
    imported only if the driver of a GPU is installed.

    Raises:
        UserError: no device of that name, a GPU is required and there is none, there are too few, or one is named for
            several processes.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"no device is called {name!r}; expected cpu, cuda or cuda:N")
    if rank.world > 1 and name.startswith("cuda:"):
        raise UserError(f"--device {name} with {rank.world} processes: each takes a GPU of its own; expected cuda")
    if name == "cpu":
        return name
    available = has_nvidia_driver() or any(map(find_library, ("nvcuda", "amdhip64")))
    if available:
        import torch

        available = torch.cuda.is_available()
    if not available:
        if name == "auto":
            return "cpu"
        raise UserError(f"--device {name}: torch finds no CUDA device on this machine; expected cpu, or a GPU")
    if rank.world == 1:
        return "cuda" if name == "auto" else name
    found = torch.cuda.device_count()
    if rank.local >= found:
        raise UserError(f"more processes than GPUs on this machine ({found}): expected --num_processes to be their sum")
    return f"cuda:{rank.local}"


def synchronize(device: str) -> None:
    """Waits until a GPU has done all it was given; a CPU always has."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


@functools.cache
def has_nvidia_driver() -> bool:
    """Whether the library of NVIDIA's driver is installed; does not initialise a GPU.

    The dynamic loader is tried first: `find_library` needs ldconfig, gcc or ld, which small containers do not have.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return find_library("cuda") is not None
    return True
