"""How a script is called: its arguments, its environment variables, and the folder of inputs that it reads."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.methods.external import seed_module
from tsd.errors import UserError

if TYPE_CHECKING:
    from bench.cards.card import Command

SEED_LIMIT = 2**32
# Variables by which torchrun, accelerate, MPI and Slurm number their processes; the script is not one of those.
LAUNCHER_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|GROUP_WORLD_SIZE"
    r"|(TORCHELASTIC|ACCELERATE|FSDP|PET|OMPI|PMI|PMIX|MV2|SLURM)_.*"
)
PYTHON_VARIABLES = re.compile(
    r"PYTHON(PATH|HOME|SAFEPATH|STARTUP|OPTIMIZE|WARNINGS)|VIRTUAL_ENV.*|CONDA_.*|UV_.*|PIP_.*"
)


def arguments(command: "Command", values: Mapping[str, str]) -> list[str]:
    """The script and its arguments with {lr}, {sr}, {weights} and {seed} replaced."""
    return [_fill(argument, values) for argument in command.arguments]


def values(*, lr: Path, sr: Path, weights: Path, seed: int) -> dict[str, str]:
    """The value of each placeholder. The seed is reduced to [0, 2**32), which every library takes."""
    return {"lr": str(lr), "sr": str(sr), "weights": str(weights.absolute()), "seed": str(seed % SEED_LIMIT)}


def variables(
    command: "Command", values: Mapping[str, str], *, python: Path, weights: Path, seeds: Path, times: Path, device: str
) -> dict[str, str]:
    """The environment variables of the process: the harness's own without those of its Python and its launcher.

    The script finds `bench_seed` and `bench_time`, sees one GPU or none, and does not reach the model hub: it loads
    what was verified. A card's variables come last and may override these; its PYTHONPATH is added.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if not LAUNCHER_VARIABLES.fullmatch(key) and not PYTHON_VARIABLES.fullmatch(key)
    }
    own = {
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
        "VIRTUAL_ENV": str(python.parent.parent),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",  # some repositories have their bytecode under version control
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": visible_gpu(device, os.environ.get("CUDA_VISIBLE_DEVICES")),
        "TSD_BENCH_WEIGHTS": str(weights.absolute()),
        "TSD_BENCH_SEEDS": str(seeds),
        "TSD_BENCH_TIMES": str(times),
    }
    asked = {key: _fill(value, values) for key, value in command.variables.items()}
    path = [os.path.dirname(seed_module.__file__), *filter(None, [asked.pop("PYTHONPATH", "")])]
    return {**kept, **own, **asked, "PYTHONPATH": os.pathsep.join(path)}


def visible_gpu(device: str, outer: str | None) -> str:
    """Returns CUDA_VISIBLE_DEVICES for the one GPU that `device` names: "cuda:1" is "6" where "4,6" are visible.

    Raises:
        UserError: there is no such GPU among the visible ones.
    """
    if not device.startswith("cuda"):
        return ""
    index = int(device.partition(":")[2] or 0)
    if outer is None:
        return str(index)
    listed = [part.strip() for part in outer.split(",") if part.strip()]
    if index >= len(listed):
        raise UserError(f"the device is {device}, but CUDA_VISIBLE_DEVICES={outer} shows {len(listed)} GPUs")
    return listed[index]


def write_inputs(images: Mapping[str, Path], folder: Path, upscale: str) -> None:
    """Writes NAME.png, 8-bit RGB, for every image: as it is, or with `upscale` "bicubic" enlarged x4.

    The resize is that of the row "Bicubic" (bench/methods/resize.py), rounded once.
    """
    from bench.methods.resize import Bicubic
    from bench.pixels import PNG_SIGNATURE, checked_pixels, png, read_image
    from tsd.images import read_picture

    folder.mkdir(parents=True, exist_ok=True)
    for name, path in images.items():
        target = folder / f"{name}.png"
        data = path.read_bytes()
        if upscale:
            lr = read_image(path)
            data = png(checked_pixels(Bicubic().restore(lr, 0), *lr.shape[-2:]))
        else:
            picture = read_picture(path)
            if not (data.startswith(PNG_SIGNATURE) and picture.mode == "RGB" and picture.as_stored):
                data = png(picture.to_rgb8())
        target.write_bytes(data)  # a copy: nothing keeps a script from writing to its inputs


def _fill(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], text)
