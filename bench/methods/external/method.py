"""Competitors that run as they were published: the official repository, in its own environment, restores a folder.

All of them share the mechanism in this folder; the differences are in the cards. The harness checks every output: a
crash costs only the images that are missing, a process that hangs is stopped, and an exit code proves nothing.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.cards.card import Card, Command, Patch
from bench.device import has_nvidia_driver
from bench.errors import without_paths
from bench.methods.base import MethodSpec, spec_of
from bench.methods.external import environment, repository
from bench.methods.external.attempt import Attempt, attempts, next_attempt, remove_attempts
from bench.methods.external.collect import Collected, OutputNames, collect
from bench.methods.external.command import arguments, values, variables, visible_gpu, write_inputs
from bench.methods.external.git import git_program
from bench.methods.external.install import Installed, install
from bench.methods.external.log import last_lines, note
from bench.methods.external.process import Ending, Process
from bench.methods.external.times import read_times
from bench.options import RunOptions
from bench.records.schema import DESCRIPTIONS
from bench.store.missing import Missing, Obstacle
from bench.store.store import missing_weights, verified_weights
from bench.testsets.manifest import lr_size_of
from tsd.console.progress import Progress
from tsd.errors import UserError
from tsd.files import sha256_file

POLL_SECONDS = 1.0
QUOTED_CHARACTERS = 140


@dataclass(frozen=True)
class ExternalMethod:
    """A card with its weights verified; a `FolderRunner`.

    Attributes:
        weights: sha256 of every weight file, by its name in the store.
        times: seconds of the images that were yielded, as far as the card's patches time them.
    """

    card: Card
    options: RunOptions
    weights: Mapping[str, str]
    times: dict[str, float] = field(default_factory=dict)

    @property
    def command(self) -> Command:
        assert self.card.command is not None  # of a card with run = "external"
        return self.card.command

    def seeded(self) -> bool:
        return self.card.seeding == "image"

    def seconds(self, name: str) -> float | None:
        return self.times.get(name)

    def provenance(self) -> dict[str, object]:
        assert self.card.environment is not None
        command = self.command
        return {
            "repository": self.card.repository,
            "commit": self.card.commit,
            "patches": [{"file": patch.file, "sha256": _patch_sha256(patch)} for patch in self.card.patches],
            "patch_reasons": [patch.reason for patch in self.card.patches],
            "python": self.card.environment.python,
            "requirements": list(self.card.environment.requirements),
            "before": self.card.environment.before,
            "command": list(command.arguments),
            "variables": dict(command.variables),
            "links": dict(command.links),
            "outputs": command.outputs,
            "upscale": command.upscale or "none",
            "seeding": self.card.seeding,
            "weights": dict(self.weights),
            "remarks": self._remarks(),
        }

    def _remarks(self) -> list[str]:
        remarks = ["unseeded"] if self.card.seeding == "none" else []
        if self.card.timing:
            remarks.append(f"s/image counts {self.card.timing}; the first image of a process is not counted")
        return remarks

    def environment(self) -> dict[str, object]:
        return environment.describe(self.card, self.options)

    def restore_folder(
        self, images: Mapping[str, Path], seeds: Mapping[str, int], work: Path
    ) -> Iterator[tuple[str, Path | str]]:
        """Restores as `FolderRunner` says. Images are yielded after the process has ended; they may change before."""
        sizes = {name: _size(path) for name, path in images.items()}
        refused = {name: reason for name, size in sizes.items() if (reason := self._refusal(size))}
        jobs = {
            name: {"lr_sha256": sha256_file(path), "seed": seeds[name] if self.seeded() else 0}
            for name, path in images.items()
            if name not in refused
        }
        made_by = {key: value for key, value in self.provenance().items() if key not in DESCRIPTIONS}
        provenance = json.loads(json.dumps({**made_by, "device": self.options.device, "seed": self.options.seed}))
        names = OutputNames(self.command.outputs, self.command.ignore, jobs)
        done: dict[str, Path] = {}
        for earlier in attempts(work):
            resumed = earlier.resume(provenance, jobs, names, sizes)
            self.times.update(read_times(earlier.times, resumed))
            done |= resumed
        pending = {name: images[name] for name in jobs if name not in done}
        installed = install(self.card, self.options) if jobs else None
        yield from done.items()
        if installed and pending:
            attempt = next_attempt(work)
            attempt.begin(provenance, {name: jobs[name] for name in pending})
            with self._bar(len(jobs), len(done)) as bar:
                write_inputs(pending, attempt.lr, self.command.upscale)
                ending = self._run(
                    installed, attempt, OutputNames(self.command.outputs, self.command.ignore, pending), bar
                )
            result = collect(attempt.sr, names, {name: sizes[name] for name in pending})
            reasons = {name: self._reason(name, attempt, installed, ending, result) for name in result.faults}
            self._log_outcome(attempt, ending, result)
            self.times.update(read_times(attempt.times, result.files))
            for name in pending:
                yield name, result.files[name] if name in result.files else reasons[name]
        yield from refused.items()
        remove_attempts(work)

    def _refusal(self, size: tuple[int, int]) -> str:
        """Why an input cannot be handled; empty where it can."""
        expected = self.command.lr_size
        if expected is None or size == tuple(expected):
            return ""
        return (
            f"{self.card.display} handles inputs of {expected[0]}x{expected[1]} only; this one is {size[0]}x{size[1]}"
        )

    def _run(self, installed: Installed, attempt: Attempt, names: OutputNames, bar: Progress) -> Ending:
        """Runs the script to its end or its time limit; meanwhile the bar counts the outputs that are there."""
        weights = self.options.weights()
        filled = values(lr=attempt.lr, sr=attempt.sr, weights=weights, seed=self.options.seed)
        argv = [str(installed.python), *arguments(self.command, filled)]
        env = variables(
            self.command,
            filled,
            python=installed.python,
            weights=weights,
            seeds=attempt.seeds,
            times=attempt.times,
            device=self.options.device,
        )
        count = len(os.listdir(attempt.lr))
        bound = self.command.startup_seconds + count * self.command.seconds_per_image
        limit = self.options.time_limit_seconds or bound
        changed = {key: value for key, value in env.items() if os.environ.get(key) != value}
        head = f"{self.card.display}, {count} images, time limit {limit:.0f} s"
        note(attempt.log, head, argv=argv, variables=changed)
        before = bar.n
        with Process(argv, cwd=installed.checkout, env=env, log=attempt.log) as process:
            while (ending := process.wait(POLL_SECONDS)) is None:
                bar.n = before + len(names.found(attempt.sr)[0])
                bar.refresh()
                if process.seconds() > limit:
                    return Ending(None, process.seconds(), limit_seconds=limit)
        return ending

    def _bar(self, total: int, done: int) -> Progress:
        title = f"{self.card.display} (own environment)"
        return Progress(total=total, initial=done, desc=title, unit="image", leave=False)

    def _log_outcome(self, attempt: Attempt, ending: Ending, result: Collected) -> None:
        """Sums the run up in the log; prints on stderr what a reader should know of a run that succeeded."""
        lines = [f"{ending.describe()}, after {ending.seconds:.0f} s"]
        lines.append(f"{len(result.files)} images are complete, {len(result.faults)} are not")
        lines += [f"{name}: {fault or 'no output'}" for name, fault in result.faults.items()]
        if result.unmatched:
            lines.append(f"files that belong to no image: {', '.join(result.unmatched)}")
        if ending.exit_code != 0 and not result.faults:
            lines.append("every image is complete, so the run counts as a success")
        note(attempt.log, *lines)
        if result.unmatched or (ending.exit_code != 0 and not result.faults):
            further = f"; {len(result.unmatched)} files belong to no image" if result.unmatched else ""
            Progress.write(
                f"{self.card.display}: {ending.describe()}{further}; log: {attempt.log_display_path()}", file=sys.stderr
            )

    def _reason(self, name: str, attempt: Attempt, installed: Installed, ending: Ending, result: Collected) -> str:
        """Why an image is missing, in one line that may be recorded and published."""
        log = f"log: {attempt.log_display_path()}"
        if result.faults[name]:
            return f"{result.faults[name]} ({log})"
        lines = last_lines(attempt.log, 1, mentioning=name) if ending.exit_code == 0 else []
        lines = lines or last_lines(attempt.log, 1)
        known = {
            attempt.folder: attempt.folder.name,
            installed.checkout: self.card.name,
            self.options.weights().absolute(): "weights",
            self.options.cache(): "cache",
        }
        words = without_paths(" ".join(lines), known)
        quoted = f": {words[:QUOTED_CHARACTERS]}{'…' if len(words) > QUOTED_CHARACTERS else ''}" if words else ""
        partial = "partial result: no output for this image, though " if ending.exit_code == 0 else "no output, "
        return f"{partial}{ending.describe()} ({log}){quoted}"


def external_spec(card: Card) -> MethodSpec:
    """The row of a card with run = "external"."""

    def load(options: RunOptions) -> ExternalMethod:
        assert card.command is not None
        if card.command.cuda and not options.device.startswith("cuda"):
            raise UserError(_no_gpu(card, options).line())
        visible_gpu(options.device, os.environ.get("CUDA_VISIBLE_DEVICES"))
        repository.check(card, options)
        return ExternalMethod(card, options, verified_weights(card, options))

    def missing(options: RunOptions) -> list[Missing | Obstacle]:
        return [*missing_weights(card, options), *_obstacles(card, options)]

    return spec_of(card, load, missing, "own environment")


def _obstacles(card: Card, options: RunOptions) -> Iterator[Obstacle]:
    """Yields what keeps the card from running here, besides absent weights. Looks at names only."""
    assert card.command is not None
    if os.name != "posix":
        yield Obstacle(card.display, "runs on Linux and macOS only")
    if card.command.cuda and not (options.device.startswith("cuda") and has_nvidia_driver()):
        yield _no_gpu(card, options)
    if environment.uv_program() is None and not environment.is_built(card, options):
        yield Obstacle(card.display, "needs uv, which builds its environment: `pip install uv`")
    try:
        git_program()
        if not repository.is_checked_out(card, options):
            repository.find_origin(card, options)
    except UserError as error:
        yield Obstacle(card.display, f"needs its repository: {error}")
    size = lr_size_of(options.testset) if options.testset is not None else None
    expected = card.command.lr_size
    if expected is not None and size is not None and size != tuple(expected):
        yield Obstacle(
            card.display,
            f"handles inputs of {expected[0]}x{expected[1]} only; those of {options.testset} are {size[0]}x{size[1]}",
        )


def _no_gpu(card: Card, options: RunOptions) -> Obstacle:
    asked = options.device.startswith("cuda")
    found = "this machine has no driver of one" if asked else f"the device is {options.device}"
    return Obstacle(card.display, f"needs an NVIDIA GPU, and {found}; run it on a machine with one, --device cuda")


def _patch_sha256(patch: Patch) -> str:
    return hashlib.sha256(json.dumps([patch.find, patch.replace]).encode()).hexdigest()


def _size(path: Path) -> tuple[int, int]:
    from tsd.images import picture_size

    return picture_size(path)
