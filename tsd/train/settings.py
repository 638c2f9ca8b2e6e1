"""The settings of a training run besides its `RunConfig`, and its result: paths, and how the run is carried out.

This module imports no torch, so that wrong settings are refused before anything heavy is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsd.errors import UserError
from tsd.files import mini_model_dir

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from tsd.data.pairs import ImageInput


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The paths that a run reads and writes, and how it is carried out. Its numerical settings are in `RunConfig`.

    Attributes:
        model: base model, a folder in diffusers layout or a hub id; by default the mini model of the package.
        data: image folders, files or uint8 arrays (see `PairDataset`), or one folder that `tsd prepare` wrote, or a
            torch `Dataset` of one's own (see `tsd.train.feed.require_dataset`).
        output: run folder: `config.json`, `log.jsonl`, `checkpoints/`, `student/` or `teacher/` (last), `best/`,
            `logs/`, `validation/`. None is allowed for `check_run` only, which writes nothing.
        resume: continue from the newest checkpoint in `output`; without it an `output` with checkpoints is an error.
        init_lora: folder of an existing student (released layout) to start from, instead of B = 0; distillation only.
        teacher_lora: folder of the teacher's LoRA (of `train_teacher`, or any of that layout), which stays frozen;
            by default the teacher is the base as it is. Distillation only.
        prompt_embeds: folder with `default/` and `null/` prompts; by default the model folder's own.
        val_data: folder of held-out photographs; without it nothing is validated and there is no `best/`.
        workers: data-loading processes; 0 loads in the training process.
        stop_after: stop after this many steps in all with a checkpoint, to be resumed later.
        time_limit_seconds: stop with a checkpoint before this time has passed (see `tsd.train.stopping`).
        keep: how many of the newest checkpoints to keep, besides that of the best validation; 1 or more.
        tracker: one of accelerate's names, or `none`.
        cpu: train on the CPU even if there is an accelerator.

    Raises:
        UserError: a number out of range, or an `output` that is a file.
    """

    model: str | Path = field(default_factory=mini_model_dir)
    data: "str | Path | Sequence[ImageInput] | Dataset[dict[str, Any]]"
    output: str | Path | None
    resume: bool = False
    init_lora: str | Path | None = None
    teacher_lora: str | Path | None = None
    prompt_embeds: str | Path | None = None
    val_data: str | Path | None = None
    workers: int = 0
    stop_after: int | None = None
    time_limit_seconds: float | None = None
    keep: int = 2
    tracker: str = "tensorboard"
    cpu: bool = False

    def __post_init__(self) -> None:
        for name, least in (("keep", 1), ("workers", 0), ("stop_after", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} is {value}; expected {least} or more")
        if self.output is not None and Path(self.output).is_file():
            raise UserError(f"the output {self.output} is a file; give a folder")


@dataclass(frozen=True)
class FinishedRun:
    """The result of a run.

    Attributes:
        output: the run folder.
        lora: folder of the LoRA files as they stand after the last step, `student/` or `teacher/` in `output`. Give it
            to `Restorer.load(lora=…)`, or as `teacher_lora` to the distillation.
        best: folder of the LoRA files of the best validation; None if nothing was validated.
        log: `log.jsonl`, one JSON object a step.
        step: steps done in all.
        total_steps: steps of the whole run.
        stopped_by: what ended the run before its last step (`the time limit`, `SIGTERM`, `Ctrl-C`, `another process`),
            or None, as after `stop_after`. With `resume` it continues.
    """

    output: Path
    lora: Path
    best: Path | None
    log: Path
    step: int
    total_steps: int
    stopped_by: str | None
