"""The provenance of a number: hashes of files, the seed of each image, library versions, the machine, the commit.

Only `environment` imports torch.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import bench
from tsd.files import sha256_file

RESTORE_LIBRARIES = (
    "torch", "torchvision", "diffusers", "transformers", "peft", "spandrel", "numpy", "pillow",
)  # fmt: skip
SCORE_LIBRARIES = ("pyiqa", "torch", "torchvision", "timm", "numpy", "scipy", "pillow")


def cached_sha256(path: Path) -> str:
    """Like `sha256_file`, for large files: hashes again only if size or modification time has changed."""
    stat = path.stat()
    return _cached_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _cached_sha256(path: Path, size: int, modified_ns: int) -> str:
    return sha256_file(path)


def sha256_json(content: Any) -> str:
    """Hex sha256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def image_seed(seed: int, name: str) -> int:
    """A stable 63-bit seed for restoring image `name` in a run seeded with `seed`.

    The seed is a hash (BLAKE2b), so that similar seeds and names get unrelated streams. It is equal on every machine.
    """
    digest = hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@cache
def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Versions by distribution name, without importing anything; libraries that are not installed are left out."""
    found = {}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the repository that this package runs from, with "+changes" if bench or tsd differ from it.

    None for an installed package and outside git.
    """
    root = Path(bench.__file__).resolve().parent.parent
    if _git(root, "ls-files", "--error-unmatch", "bench/__init__.py") is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _git(root, "status", "--porcelain", "--", "bench", "tsd") else "")


def environment(device: str, dtype: str) -> dict[str, Any]:
    """The environment of a number: machine, device, threads, dtype, versions and commit. Imports torch."""
    import torch

    return {
        "bench": bench.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": device,
        "accelerator": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "versions": versions(RESTORE_LIBRARIES),
    }


def machine_name(environment: Mapping[str, Any]) -> str | None:
    """What computed in an environment: its accelerator, else its processor; None where neither is recorded."""
    return environment.get("accelerator") or environment.get("processor")


def environment_key(content: dict[str, Any]) -> str:
    """The key of an environment in rows: twelve hex digits."""
    return sha256_json(content)[:12]


def processor() -> str:
    """The model name of the CPU if the system gives it, else its architecture."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
