"""What a worker process does: it takes cells, trains them, and records what they cost or why they failed.

Importing torch takes seconds, so a worker lives for many cells. It imports torch when it starts; this module does not.
"""

import contextlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal

from bench.ablation.cells import Job, read_json, write_json
from bench.ablation.domain import Domain, Stopped
from bench.ablation.records import read_scores
from bench.errors import one_line, without_paths
from bench.methods.external.command import LAUNCHER_VARIABLES
from bench.provenance import environment
from tsd.console.imports import quantizers_of

ALLOCATOR = {
    # glibc gives every freed large tensor back to the system and asks for it again; kept, a training step takes a
    # third of the time (measured on two cores: .64 s → .19 s).
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Ended:
    """How a job ended. `error` is one line for failed ones."""

    status: Literal["done", "stopped", "failed"]
    seconds: float
    error: str | None = None


@contextlib.contextmanager
def worker_environment(threads: int) -> Iterator[None]:
    """Sets the variables that a worker must find when it starts: its threads, glibc's allocator, and no progress bars.

    The allocator's are left alone where the user has set them. A launcher's are taken away: a worker trains alone, and
    accelerate would make it one of the launcher's processes.
    """
    variables = {**dict.fromkeys(THREAD_VARIABLES, str(threads)), **ALLOCATOR, **_given(ALLOCATOR)}
    variables["TQDM_DISABLE"] = "1"  # the bars of several trainings would overwrite that of the sweep
    launchers = [name for name in os.environ if LAUNCHER_VARIABLES.fullmatch(name)]
    before = {name: os.environ.get(name) for name in (*variables, *launchers)}
    os.environ.update(variables)
    for name in launchers:
        del os.environ[name]
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _given(names: dict[str, str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


class Worker:
    """What one process needs for all of its jobs."""

    def __init__(self, domain: Domain, device: str, threads: int, stop: Event) -> None:
        import torch

        torch.set_num_threads(threads)
        if device.startswith("cuda:"):  # libraries that choose a GPU take the current one
            torch.cuda.set_device(device)
        self.domain, self.device, self.stop = domain, device, stop

    def run(self, job: Job) -> Ended:
        """Does a job, or continues it. Every failure is recorded in its folder, none is raised."""
        began, cpu_began = time.monotonic(), _cpu_seconds()
        told, stopped = False, True

        def stop() -> bool:
            nonlocal told
            told = told or self.stop.is_set()
            return told

        if self.stop.is_set():
            return Ended("stopped", 0.0)
        try:
            spent = self._begin(job)
            _reset_peak(self.device)
            with contextlib.suppress(Stopped):
                self._work(job, stop)
                stopped = told and not (job.folder / "scores.jsonl").exists() and job.cell is not None
            costs = _Costs(time.monotonic() - began, _cpu_seconds() - cpu_began, _peak_mib(self.device)).after(spent)
            if stopped:
                write_json(job.folder / "spent.json", vars(costs))
                return Ended("stopped", time.monotonic() - began)
            self._check(job)
            done = {**vars(costs), "environment": _environment(self.device, _dtype(job))}
            write_json(job.folder / "done.json", done)
        except Exception as error:  # a failed cell must not end the sweep
            text = without_paths(one_line(error), {job.folder: job.folder.name})
            with contextlib.suppress(OSError):
                write_json(job.folder / "error.json", {"error": text, "traceback": traceback.format_exc()})
            return Ended("failed", time.monotonic() - began, text)
        return Ended("done", time.monotonic() - began)

    def _begin(self, job: Job) -> "_Costs":
        """Writes what the job is made from, and removes what an interrupted scoring or a failure left."""
        for name in ("scores.jsonl", "error.json"):
            (job.folder / name).unlink(missing_ok=True)
        if job.state() == "new":
            write_json(job.folder / "cell.json", dict(job.origin))
        spent = read_json(job.folder / "spent.json")
        return _Costs(**spent) if spent else _Costs(0.0, 0.0, 0.0, 0)

    def _work(self, job: Job, stop: Callable[[], bool]) -> None:
        with quantizers_of(job.origin.get("settings", {}).get("optimizer", "")):
            if job.cell is None:
                self.domain.score_references(job.seed, job.folder)
            else:
                self.domain.run(job.cell, job.folder, device=self.device, stop=stop)

    def _check(self, job: Job) -> None:
        """Reads what the domain left, so that a report never meets a done cell without scores."""
        names = job.origin["references"] if job.cell is None else [""]
        for name in names:
            read_scores(job.folder / name, self.domain.measures)


@dataclass(frozen=True)
class _Costs:
    seconds: float
    cpu_seconds: float
    peak_mib: float
    calls: int = 1

    def after(self, earlier: "_Costs") -> "_Costs":
        """The costs of this call and of those before it."""
        return _Costs(
            round(self.seconds + earlier.seconds, 3),
            round(self.cpu_seconds + earlier.cpu_seconds, 3),
            round(max(self.peak_mib, earlier.peak_mib), 1),
            self.calls + earlier.calls,
        )


_worker: Worker | None = None  # of this process; an executor can hand its tasks nothing else


def start(domain: Domain, device: str, threads: int, stop: Event) -> None:
    """Makes this process a worker. It leaves signals to its parent, and ends when the parent does."""
    global _worker
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and a cluster send them to every process
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(domain, device, threads, stop)


def work(job: Job) -> Ended:
    """Runs a job in this worker."""
    if _worker is None:
        raise RuntimeError("work() runs in processes that start() has made workers")
    return _worker.run(job)


def _end_with_parent() -> None:
    """Ends this process when its parent has been killed: cells are resumable, and nobody would collect them."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # the mark would otherwise be that of all cells so far
            Path("/proc/self/clear_refs").write_text("5")


def _peak_mib(device: str) -> float:
    """Peak memory since `_reset_peak`: allocated by torch on a GPU, otherwise resident of this process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _dtype(job: Job) -> str:
    return str(job.origin.get("settings", {}).get("mixed_precision", "fp32"))


@cache
def _environment(device: str, dtype: str) -> dict[str, Any]:
    return environment(device, dtype)
