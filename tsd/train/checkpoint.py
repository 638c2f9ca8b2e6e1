"""Checkpoints: all resumable state in one place, written as one folder that appears complete or not at all.

No random state is saved: every draw is seeded by its sample's own number (`tsd.seeds`), so the step is enough. torch is
imported when a state is saved or loaded, not to find out which checkpoints there are.
"""

import dataclasses
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsd.config import RunConfig
from tsd.errors import UserError
from tsd.files import full_disk_explained

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"^checkpoint-(\d{7})$")
STATE_FILE = "state.pt"
CONFIG_FILE = "config.json"
RECORD_FILE = "record.json"
_UNFINISHED = ".checkpoint-"


@dataclass
class TrainState:
    """All resumable state: whatever is not here does not survive a resumption.

    Attributes:
        tensors: parameter groups by name — `student.denoiser`, `student.vae`, `critic.denoiser`, `ema.…`
            (an average of that group).
        stateful: objects with `state_dict` / `load_state_dict` — optimisers, learning-rate schedules, fp16's scaler.
        step: steps done.
        best: best validation PSNR so far, in dB, or None.
        best_step: the step of that validation; its checkpoint is kept.
    """

    tensors: "dict[str, dict[str, torch.Tensor]]"
    stateful: dict[str, Any]
    step: int = 0
    best: float | None = None
    best_step: int | None = None

    def save(self, folder: Path, config: RunConfig, record: dict[str, Any], *, write: bool = True) -> Path:
        """Writes `<folder>/checkpoint-<step>`, completely or not at all; replaces an existing one of that step.

        Args:
            record: what the run depends on besides its settings, see `check_same_run`.
            write: False in all processes but one. All processes must call this, because they gather sharded tensors
                together.

        Raises:
            UserError: the disk is full; what was written of the checkpoint is removed.
        """
        import torch

        from tsd.model.sharded import full_tensor

        state = {
            "tensors": {
                name: {key: full_tensor(value).cpu() for key, value in group.items()}
                for name, group in self.tensors.items()
            },
            "stateful": {name: item.state_dict() for name, item in self.stateful.items()},
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
        }
        target = folder / f"checkpoint-{self.step:07d}"
        if not write:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=_UNFINISHED))
        try:
            with full_disk_explained(target, self.size_bytes()):
                torch.save(state, temporary / STATE_FILE)
                (temporary / CONFIG_FILE).write_text(config.to_json())
                (temporary / RECORD_FILE).write_text(json.dumps(record, indent=2, sort_keys=True))
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def size_bytes(self) -> int:
        """About how large a checkpoint is: the adapters, and the two moments of those that are trained."""
        groups = {
            name: sum(t.numel() * t.element_size() for t in group.values()) for name, group in self.tensors.items()
        }
        return sum(groups.values()) + 2 * sum(size for name, size in groups.items() if not name.startswith("ema."))

    def load(self, checkpoint: Path) -> None:
        """Restores everything in place.

        Raises:
            UserError: the file is damaged, or its names or shapes are not those of this run.
        """
        import torch

        from tsd.model.sharded import sharded_like

        try:
            state = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged archives raise anything from EOFError to UnpicklingError
            raise UserError(
                f"{checkpoint / STATE_FILE} is damaged ({error}); remove {checkpoint} and resume"
            ) from error
        newer = {"scaler"}  # not in checkpoints of the first release: fp16 then searches its scale again
        stateful = set(self.stateful) - (newer - set(state["stateful"]))
        if set(state["tensors"]) != set(self.tensors) or set(state["stateful"]) != stateful:
            raise UserError(f"{checkpoint} holds {sorted(state['tensors'])}; this run has {sorted(self.tensors)}")
        for name, group in self.tensors.items():
            saved = state["tensors"][name]
            odd = [k for k in group.keys() | saved.keys() if k not in saved or k not in group]
            odd += [k for k in group if k in saved and group[k].shape != saved[k].shape]
            if odd:
                raise UserError(f"{checkpoint}: {name} does not fit this run, e.g. {odd[0]}")
            for key, tensor in group.items():
                tensor.data.copy_(sharded_like(saved[key], tensor))
        for name in stateful:
            self.stateful[name].load_state_dict(state["stateful"][name])
        self.step, self.best, self.best_step = state["step"], state["best"], state.get("best_step")


def checkpoint_folder(output: str | Path) -> Path:
    """Where a run with this output folder keeps its checkpoints."""
    return Path(output) / "checkpoints"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first (by step, never by file time)."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if _NAME.match(entry.name))


def latest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def prune(folder: Path, keep: int, best_step: int | None = None) -> None:
    """Removes all checkpoints except the newest `keep` and that of the best validation."""
    for old in checkpoints(folder)[:-keep]:
        if best_step is None or old.name != f"checkpoint-{best_step:07d}":
            shutil.rmtree(old)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left half-written."""
    for entry in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(entry)


def recorded_unreadable(checkpoint: Path) -> dict[str, int | None]:
    """The training images that a run could not read until this checkpoint, as `PairDataset.listing` gives them."""
    return recorded(checkpoint).get("unreadable", {})


def recorded(checkpoint: Path) -> dict[str, Any]:
    """What a run depended on besides its settings, as `TrainState.save` was told; empty in the first release."""
    path = checkpoint / RECORD_FILE
    return _read_json(path) if path.is_file() else {}


def settings_in(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint is of."""
    return _read_json(checkpoint / CONFIG_FILE)


def check_same_run(checkpoint: Path, config: RunConfig, record: dict[str, Any]) -> None:
    """Refuses to resume a checkpoint with other settings, another model or other data than it was made with.

    Two things may change: how often the run measures, validates and saves, and how the global batch is split over
    processes and micro-batches. Checkpoints of the first release have no record: only their settings are compared, and
    settings that did not exist yet count as their defaults.

    Args:
        record: `stage`, `global_batch`, and fingerprints of `model`, `data`, `init_lora`, `teacher_lora` and others. An
            entry named as a setting is compared in its place: `regularisation` by its content, not by its path. The
            images that could not be read are not compared: they may have been repaired or removed.

    Raises:
        UserError: names everything that differs, with both values.
    """
    now = json.loads(config.to_json())
    record = {name: value for name, value in record.items() if name != "unreadable"}
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}
    saved = defaults | settings_in(checkpoint)
    free = {"checkpoint_every", "validate_every", "gain_every"}
    if (checkpoint / RECORD_FILE).is_file():
        free |= {"batch_size", "gradient_accumulation"}  # the global batch is compared instead
        known = recorded(checkpoint)
        saved |= {name: known[name] for name in record if name in known}
        now |= {name: record[name] for name in record if name in known}
    odd = [name for name in now if name not in free and saved.get(name) != now[name]]
    if odd:
        differing = "; ".join(f"{name}: {saved.get(name)!r} then, {now[name]!r} now" for name in odd)
        raise UserError(
            f"{checkpoint} was made with other settings, model or data ({differing}). Give the same, or another "
            f"--output for a new run."
        )


def _read_json(path: Path) -> dict[str, Any]:
    """A file of a checkpoint.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove {path.parent} and resume") from error
