"""Checkpoints: all resumable state is one named list, written as one folder that appears whole or not at all.

Randomness needs no saving: every draw is seeded by its sample's own number (`tsd.seeds`), so the step is enough.
"""

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tsd.config import TrainConfig
from tsd.errors import UserError

_NAME = re.compile(r"^checkpoint-(\d{7})$")
STATE_FILE = "state.pt"


@dataclass
class TrainState:
    """The one named list: whatever is not here does not survive a resumption.

    Attributes:
        tensors: parameter groups by name — `student.denoiser`, `student.vae`, `critic.denoiser`, `ema.…`.
        stateful: objects with `state_dict` / `load_state_dict` — optimisers and learning-rate schedules.
        step: steps done.
        best: best validation PSNR so far, in dB, or None.
    """

    tensors: dict[str, dict[str, torch.Tensor]]
    stateful: dict[str, Any]
    step: int = 0
    best: float | None = None

    def save(self, folder: Path, config: TrainConfig) -> Path:
        """Writes `<folder>/checkpoint-<step>`, whole or not at all; an existing one of that step is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".checkpoint-"))
        state = {
            "tensors": {name: {k: v.detach().cpu() for k, v in group.items()} for name, group in self.tensors.items()},
            "stateful": {name: item.state_dict() for name, item in self.stateful.items()},
            "step": self.step,
            "best": self.best,
        }
        torch.save(state, temporary / STATE_FILE)
        (temporary / "config.json").write_text(config.to_json())
        target = folder / f"checkpoint-{self.step:07d}"
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        return target

    def load(self, checkpoint: Path) -> None:
        """Restores everything in place.

        Raises:
            UserError: the file is damaged, or its names or shapes are not those of this run.
        """
        try:
            state = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged archives raise anything from EOFError to UnpicklingError
            raise UserError(
                f"{checkpoint / STATE_FILE} is damaged ({error}); remove {checkpoint} and resume"
            ) from error
        if set(state["tensors"]) != set(self.tensors) or set(state["stateful"]) != set(self.stateful):
            raise UserError(f"{checkpoint} holds {sorted(state['tensors'])}; this run has {sorted(self.tensors)}")
        for name, group in self.tensors.items():
            saved = state["tensors"][name]
            odd = [k for k in group.keys() | saved.keys() if k not in saved or k not in group]
            odd += [k for k in group if k in saved and group[k].shape != saved[k].shape]
            if odd:
                raise UserError(f"{checkpoint}: {name} does not fit this run, e.g. {odd[0]}")
            for key, tensor in group.items():
                tensor.data.copy_(saved[key])
        for name, item in self.stateful.items():
            item.load_state_dict(state["stateful"][name])
        self.step, self.best = state["step"], state["best"]


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first (by step, never by file time)."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if _NAME.match(entry.name))


def latest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def check_same_config(checkpoint: Path, config: TrainConfig) -> None:
    """A checkpoint may only be resumed with the settings it was made with, lengths of run and report excepted.

    Raises:
        UserError: names every setting that differs, with both values.
    """
    saved, now = json.loads((checkpoint / "config.json").read_text()), json.loads(config.to_json())
    free = {"checkpoint_every", "validate_every"}
    odd = [name for name in now if name not in free and saved.get(name) != now[name]]
    differing = [f"{name}: {saved.get(name)!r} then, {now[name]!r} now" for name in odd]
    if differing:
        raise UserError(
            f"{checkpoint} was made with other settings ({'; '.join(differing)}). Give the same settings, or another "
            f"--output for a new run."
        )
