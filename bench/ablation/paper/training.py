"""Trains the student of one cell by `tsd.train`, so that it stops in time and on request, and can be continued."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.ablation.domain import Stopped
from bench.ablation.paper.files import Files
from tsd.config import TrainConfig

POLL_SECONDS = 1.0


def train_cell(
    config: TrainConfig, files: Files, folder: Path, *, device: str, stop: Callable[[], bool], deadline: float | None
) -> Path:
    """Trains, or continues what is in `folder`/run; returns the folder of the finished student.

    The training log becomes `folder`/log.jsonl when the training is finished.

    Args:
        deadline: by the clock of `time.time`; the training ends with a checkpoint before it.

    Raises:
        Stopped: the time was up, `stop()` came true or a signal came; the same call continues.
    """
    run_folder, log = folder / "run", folder / "log.jsonl"
    if log.is_file():
        return run_folder / "student"
    left = None if deadline is None else deadline - time.time()
    if left is not None and left <= 0:
        raise Stopped("the time limit")

    from tsd.train.settings import RunSettings
    from tsd.train.student import train

    assert files.data is not None, "`Files.missing` is asked before a cell is trained"
    with _ending_on(stop):
        run = train(
            RunSettings(
                model=files.model_folder(),
                data=files.data,
                output=run_folder,
                resume=True,
                teacher_lora=files.teacher_lora,
                prompt_embeds=files.prompt_embeds,
                time_limit_seconds=left,
                tracker="none",
                cpu=device == "cpu",
            ),
            config,
        )
    if run.stopped_by is not None:
        raise Stopped(run.stopped_by)
    shutil.copy(run.log, log)
    return run.lora


@contextmanager
def _ending_on(stop: Callable[[], bool]) -> Iterator[None]:
    """Ends the training in the block, with a checkpoint, when `stop()` comes true.

    The training ends on SIGTERM, for which it has a handler while it runs; before and after, none is sent.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if stop() and signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.default_int_handler):
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
