"""One run of a script over a folder: its inputs, outputs and log, and the provenance of the outputs.

    <work>/attempt-3/job.json    the method's provenance ("account"), and the inputs and seeds by name
    <work>/attempt-3/seeds.json  what `bench_seed` reads
    <work>/attempt-3/times.jsonl what `bench_time` writes
    <work>/attempt-3/lr/, sr/    the folders that the script is given
    <work>/attempt-3.log         its output; kept

Every attempt gets a new number, so that no log is overwritten and a process that is still ending cannot write into it.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.methods.external.collect import OutputNames, collect
from bench.methods.external.command import SEED_LIMIT
from tsd.files import write_atomic


class Attempt:
    """A folder `attempt-N` and the log beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lr, self.sr = folder / "lr", folder / "sr"
        self.seeds, self.job = folder / "seeds.json", folder / "job.json"
        self.times = folder / "times.jsonl"
        self.log = folder.with_name(f"{folder.name}.log")

    def log_display_path(self) -> str:
        """The path of the log below the folder of results."""
        parts = self.log.parts
        start = parts.index(".work") - 1 if ".work" in parts else len(parts) - 2
        return "/".join(parts[start:])

    def begin(self, provenance: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]]) -> None:
        """Makes the folder of outputs and records what they will be made by.

        Args:
            images: by name, "lr_sha256" and "seed".
        """
        self.sr.mkdir(parents=True)
        seeds = {name: image["seed"] % SEED_LIMIT for name, image in images.items()}
        write_atomic(self.seeds, json.dumps(seeds).encode())
        write_atomic(self.job, json.dumps({"account": provenance, "images": images}).encode())

    def resume(
        self,
        provenance: Mapping[str, Any],
        images: Mapping[str, Mapping[str, Any]],
        names: OutputNames,
        sizes: Mapping[str, tuple[int, int]],
    ) -> dict[str, Path]:
        """The complete outputs of this attempt that have the same provenance, input and seed, by name."""
        try:
            job = json.loads(self.job.read_bytes())
        except (OSError, ValueError):
            return {}
        if job["account"] != provenance:
            return {}
        same = {name: sizes[name] for name, image in images.items() if job["images"].get(name) == image}
        return collect(self.sr, names.with_others(job["images"]), same).files


def attempts(work: Path) -> list[Attempt]:
    """The attempts whose folders are there, oldest first."""
    found = [(int(match[1]), path) for path in work.glob("attempt-*") if (match := _numbered(path.name))]
    return [Attempt(path) for _, path in sorted(found) if path.is_dir()]


def next_attempt(work: Path) -> Attempt:
    """A new attempt, whose number neither a folder nor a log has."""
    numbers = [int(match[1]) for path in work.glob("attempt-*") if (match := _numbered(path.stem))]
    return Attempt(work / f"attempt-{max(numbers, default=0) + 1}")


def remove_attempts(work: Path) -> None:
    """Removes all folders; the logs stay."""
    for attempt in attempts(work):
        shutil.rmtree(attempt.folder)


def _numbered(name: str) -> re.Match[str] | None:
    return re.fullmatch(r"attempt-(\d+)", name)
