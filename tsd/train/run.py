"""The part that the loops of both stages share: set-up, resumption, and the end of a step (log, validate, save, stop).

The loops themselves (`tsd.train.student`, `tsd.train.teacher`) contain only their algorithm.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tsd.algorithm.turns import Batch
from tsd.config import RunConfig
from tsd.console.progress import Progress
from tsd.errors import UserError
from tsd.files import alone_in, full_disk_explained, write_text
from tsd.model.backbone import Backbone, load_backbone
from tsd.model.gradient_checkpointing import enable_gradient_checkpointing
from tsd.precision import torch_dtype
from tsd.train.checkpoint import TrainState, checkpoint_folder, latest, prune, remove_unfinished
from tsd.train.ema import averaged
from tsd.train.feed import batches, data_record
from tsd.train.optim import DivergenceError
from tsd.train.parallel import any_process, is_sharded, mean, new_accelerator, shard
from tsd.train.paths import newest_checkpoint, require_cpu_precision
from tsd.train.preflight import Checked, check_run
from tsd.train.run_log import RunLog, peak_mib
from tsd.train.settings import FinishedRun, RunSettings
from tsd.train.stopping import Stopper

UNREADABLE = "unreadable.txt"
"""File in a run's folder that lists the training images that could not be read."""


@dataclass(frozen=True)
class Validation:
    """A validation's result.

    Attributes:
        score: higher is better; the best one is kept in `best/`.
        numbers: to log.
        strip: images to look at, uint8 (3, H, W).
        title: what the strip shows.
        summary: the result in a few words.
    """

    score: float
    numbers: dict[str, float]
    strip: Tensor
    title: str
    summary: str


class Run:
    """One training run in one process; a context manager that closes trackers and progress bar.

    Args:
        shown: names of the numbers to show in the progress bar.

    Raises:
        UserError: a fault that `tsd.train.preflight` finds, or an `output` that is missing or holds another run.
    """

    def __init__(self, settings: RunSettings, config: RunConfig, *, shown: Sequence[str]) -> None:
        self.stopper = Stopper(settings.time_limit_seconds)
        self.settings, self.config, self.shown = settings, config, shown
        if settings.output is None:
            raise UserError("--output DIR is needed (or --print-config, --dry-run)")
        self.output = Path(settings.output)
        self.folder = checkpoint_folder(self.output)
        self.newest = newest_checkpoint(self.output, resume=settings.resume)
        if settings.cpu or not torch.accelerator.is_available():
            require_cpu_precision(config)
        self.accelerator: Accelerator = new_accelerator(config, self.output, tracker=settings.tracker, cpu=settings.cpu)
        self.checked: Checked = check_run(settings, config, self.accelerator.num_processes)
        self.log = RunLog(self.output, self.accelerator)
        self._held = ExitStack()
        self.end = min(config.total_steps, settings.stop_after or config.total_steps)
        self.stopped_by: str | None = None
        self._step_began = time.monotonic()
        self._told: set[str] = set()
        self._bar: Any = None

    def load(self, attach: Callable[[Backbone], None]) -> Backbone:
        """Loads the backbone with this stage's adapters (`attach`), sharded and checkpointed as configured."""
        sharded, device = is_sharded(self.accelerator), self.accelerator.device
        backbone = load_backbone(
            self.checked.folder,
            device="cpu" if sharded else device,  # a sharded base may not fit on one device
            dtype=torch_dtype(self.config.base_dtype),
            prompt_embeds=self.settings.prompt_embeds,
        )
        attach(backbone)
        if self.config.gradient_checkpointing:
            enable_gradient_checkpointing(backbone.denoiser, backbone.vae)
        if sharded:
            vae = backbone.vae
            shard(self.accelerator, backbone.denoiser, vae.encoder, *([vae.quant_conv] if vae.quant_conv else []))
            vae.decoder.to(device)
            if vae.post_quant_conv:
                vae.post_quant_conv.to(device)
            backbone.prompts = {name: prompt.to(device) for name, prompt in backbone.prompts.items()}
        return backbone

    def begin(self, state: TrainState) -> Iterator[Batch]:
        """Resumes `state` if there is a checkpoint, starts the trackers, and returns this process's batches.

        Raises:
            UserError: another process trains into the folder, or the checkpoint cannot be read.
        """
        accelerator, config = self.accelerator, self.config
        if accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            busy = f"another `tsd train` writes to {self.output}: wait for it, or choose another --output"
            self._held.enter_context(alone_in(self.output, busy))
            if newest_checkpoint(self.output, resume=self.settings.resume) != self.newest:
                raise UserError(f"another `tsd train` has just written to {self.output}: the same command continues")
        if accelerator.scaler is not None:
            state.stateful["scaler"] = accelerator.scaler
        if self.newest is not None:
            state.load(self.newest)
            self.print_on_main(f"resumed from {self.newest} at step {state.step}")
        self.log.truncate(state.step)
        if accelerator.is_main_process:
            remove_unfinished(self.folder)
            write_text(self.output / "config.json", config.to_json())
            self._write_unreadable()
        if self.settings.tracker != "none":
            accelerator.init_trackers("tsd", config={"config": config.to_json()})
        quiet = not accelerator.is_main_process
        self._bar = Progress(total=self.end, initial=state.step, desc="train", unit="step", disable=quiet)
        self._step_began = time.monotonic()
        return batches(
            self.checked.data,
            config,
            state.step,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            workers=self.settings.workers,
            device=accelerator.device,
            report=self._list_unreadable,
        )

    def _list_unreadable(self, news: dict[str, str]) -> None:
        """Tells of training images that cannot be read, and lists them for whoever repairs or removes them."""
        data: Any = self.checked.data
        new = {name: reason for name, reason in news.items() if name not in self._told}
        data.unreadable.update(new)
        self._told |= new.keys()
        for reason in new.values():
            self._bar.write(f"warning: {reason}: replaced by the next image", file=sys.stderr)
        self.checked.record.update(data_record(data, None))
        self.checked.record["unreadable"] = data.listing()
        self._write_unreadable()

    def _write_unreadable(self) -> None:
        unreadable = getattr(self.checked.data, "unreadable", None)
        if unreadable and self.accelerator.is_main_process:
            write_text(self.output / UNREADABLE, "".join(f"{reason}\n" for reason in unreadable.values()))

    def describe(self, text: str) -> None:
        """Sets the word in front of the progress bar."""
        self._bar.set_description(text, refresh=False)

    def last_good(self) -> Path | None:
        """The newest checkpoint, for the message that training diverged."""
        return latest(self.folder)

    def done(self, state: TrainState) -> bool:
        """Whether the last step is done, or something stopped the run."""
        return state.step >= self.end or self.stopped_by is not None

    def mean(self, micro_batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Logged numbers averaged over micro-batches and processes."""
        names = micro_batches[0]
        sums = {name: sum(float(logs[name]) for logs in micro_batches) / len(micro_batches) for name in names}
        return mean(self.accelerator, sums)

    def finish_step(
        self,
        state: TrainState,
        logs: dict[str, float],
        validate: Callable[[], Validation] | None,
        save: Callable[[Path, bool], None],
    ) -> None:
        """Ends a step: logs it, validates and saves when due, and decides with all processes whether to stop."""
        config, accelerator = self.config, self.accelerator
        state.step += 1
        seconds = time.monotonic() - self._step_began
        self.stopper.record("step", seconds)
        logs |= {
            "seconds": seconds,
            "images_per_second": config.global_batch(accelerator.num_processes) / seconds,
            "peak_mib": peak_mib(accelerator.device),
        }
        self._bar.update()
        self._bar.set_postfix({name: f"{logs[name]:.4f}" for name in self.shown if name in logs})
        reason = self.stopper.reason()
        last = state.step == self.end
        if not last and any_process(accelerator, reason is not None):
            self.stopped_by = reason or "another process"
        better = False
        if validate is not None and self.stopped_by is None and (last or state.step % config.validate_every == 0):
            with self.stopper.timed("validation"), averaged(state), accelerator.autocast():
                result = validate()
                if not all(map(math.isfinite, result.numbers.values())):
                    raise DivergenceError(
                        f"the validation at step {state.step} gave values that are NaN or infinite: {result.numbers}; "
                        f"the last good checkpoint is {self.last_good()}"
                    )
                better = state.best is None or result.score > state.best
                if better:
                    with self._full_disk_survived(needed=False):
                        save(self.output / "best", accelerator.is_main_process)
                    state.best, state.best_step = result.score, state.step
            if accelerator.is_main_process:
                self._bar.write(f"step {state.step}: {result.summary}{', the best so far' * better}", file=sys.stderr)
            logs |= {f"val_{name}": value for name, value in result.numbers.items()}
            self.log.images(state.step, result.title, result.strip)
        with self._full_disk_survived(needed=False), full_disk_explained(self.log.path):
            self.log.row(state.step, logs)
        if last or better or self.stopped_by is not None or state.step % config.checkpoint_every == 0:
            with self.stopper.timed("checkpoint"), self._full_disk_survived(needed=last or self.stopped_by is not None):
                state.save(self.folder, config, self.checked.record, write=accelerator.is_main_process)
                if accelerator.is_main_process:
                    prune(self.folder, self.settings.keep, state.best_step)
                accelerator.wait_for_everyone()
        self._step_began = time.monotonic()

    @contextmanager
    def _full_disk_survived(self, *, needed: bool) -> Iterator[None]:
        """Goes on without a file if the disk is full, since there may be room for the next; not if it is needed.

        Raises:
            UserError: the disk is full, and the run ends here.
        """
        try:
            yield
        except UserError as error:
            if needed:
                raise
            self._bar.write(f"warning: {error}. The training goes on without it", file=sys.stderr)

    def finish(self, state: TrainState, folder: Path, save: Callable[[Path, bool], None]) -> FinishedRun:
        """Writes the weights as they stand after the last step done, and returns the run's paths."""
        with averaged(state):
            save(folder, self.accelerator.is_main_process)
        if self.stopped_by is not None:
            self.print_on_main(
                f"stopped by {self.stopped_by} after step {state.step} of {self.config.total_steps}, with a checkpoint"
            )
        self.accelerator.wait_for_everyone()
        best = self.output / "best" if state.best is not None else None
        total = self.config.total_steps
        return FinishedRun(self.output, folder, best, self.log.path, state.step, total, self.stopped_by)

    def print_on_main(self, text: str) -> None:
        """Prints a line to stderr in the main process only."""
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr)

    def __enter__(self) -> "Run":
        self.stopper.__enter__()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.stopper.__exit__()
        self._held.close()
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            self.accelerator.end_training()
