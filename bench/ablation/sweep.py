"""Runs a sweep: every cell that is not done yet, in parallel worker processes, seed by seed.

`run_sweep` is `bench sweep` for Python code, without the report. Whatever is wrong with the file, the domain's settings
or the output folder is an error before a worker starts. A failed cell does not end the sweep, a killed worker is
replaced, and the same call continues an interrupted one.
"""

import math
import os
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.ablation.cells import (
    Identity,
    Job,
    jobs_of,
    read_json,
    refuse_stale,
    remove_stale,
    reopen,
    write_code_files,
    write_json,
)
from bench.ablation.domain import Domain
from bench.ablation.experiment import Experiment, check_experiment, chosen
from bench.ablation.records import SweepRecords, collect, read_records, refuse_other_settings, write_records
from bench.ablation.worker import Ended, start, work, worker_environment
from bench.device import resolve_device
from bench.ranks import ALONE, Rank, all_gather, check_shared, from_first
from tsd.files import alone_in, remove_unfinished

KILLED = "its process was killed, perhaps for lack of memory"


@dataclass(frozen=True)
class Outcome:
    """What a call did: jobs (cells, and references by seed) found done, done now, failed with their reasons, and
    stopped by their domain before they were done.
    """

    skipped: int
    done: int
    failed: tuple[str, ...]
    stopped: tuple[str, ...] = ()


def run_sweep(
    experiment: Experiment,
    domain: Domain,
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    jobs: int | None = None,
    device: str = "auto",
    redo_stale: bool = False,
    rank: Rank = ALONE,
) -> Outcome:
    """Trains and scores every cell that is not done, in folders of `out`; `load_records` then reads them.

    Args:
        domain: must be picklable: it is sent to the worker processes.
        seeds, arms: those of the file where None.
        jobs: worker processes; None for one for each core, or one on a GPU. Each computes with cores // jobs threads.
        device: "auto", "cpu", "cuda", ….
        redo_stale: remove cells made with other settings, base or code, and make them again.
        rank: of this process in a shared run; all processes call this.

    Raises:
        UserError: the experiment does not fit the domain, or cells in `out` do not fit the experiment.
        KeyboardInterrupt: after the workers have stopped.
    """
    check_experiment(experiment, domain)
    selected = chosen(arms, experiment)
    identity = Identity.of(domain)
    device = resolve_device(device, rank)
    count, threads = workers_and_threads(jobs, device)
    check_shared(rank, out)
    with _lock(out, rank):

        def plan() -> tuple[list[Job], list[Job]]:
            known = on_disk(experiment, domain, identity, out)
            if redo_stale:
                remove_stale(known)
            refuse_stale(known, identity, out)
            reopen(known, domain.measures)
            write_code_files(identity, out)
            wanted = jobs_of(experiment, domain, identity, out, selected, seeds or experiment.seeds)
            return wanted, [job for job in wanted if job.state() != "done"]

        wanted, pending = from_first(rank, plan)
        share = rank.share(pending)
        failed: list[str] = []
        stopped: list[str] = []
        if share:
            with _Progress(wanted, share, count) as progress, worker_environment(threads):
                pool = _Pool(domain, device, count, threads, progress)
                failed, stopped = pool.run(share), pool.stopped
        failed = [line for lines in all_gather(rank, failed) for line in lines]
        stopped = [line for lines in all_gather(rank, stopped) for line in lines]
    done = len(pending) - len(failed) - len(stopped)
    return Outcome(len(wanted) - len(pending), done, tuple(failed), tuple(stopped))


def load_records(experiment: Experiment, domain: Domain, out: Path) -> SweepRecords:
    """The records of a sweep for its report. Where the cells are in `out`, the compact files are written anew first.

    If the training code has changed since, the compact files are read as they are: they have one base and one code.

    Raises:
        UserError: there is neither, or they do not fit the experiment.
    """
    check_experiment(experiment, domain)
    if (out / "cells").is_dir():
        identity = Identity.of(domain)
        jobs = on_disk(experiment, domain, identity, out)
        if not (out / "cells.jsonl").exists():
            refuse_stale(jobs, identity, out)
        if all(job.state() != "stale" for job in jobs):
            write_records(out, experiment, collect(experiment, jobs, domain.measures), domain.measures)
    records = read_records(out)
    refuse_other_settings(records, experiment, out)
    return records


def workers_and_threads(jobs: int | None, device: str) -> tuple[int, int]:
    """The number of worker processes of this process, and of threads in each.

    Several processes of a shared run on one machine divide its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    count = jobs or (1 if device.startswith("cuda") else cores)
    return count, max(1, cores // count)


def on_disk(experiment: Experiment, domain: Domain, identity: Identity, out: Path) -> list[Job]:
    """Every job of the experiment that has a folder in `out`, of seeds that are not asked for as well."""
    folders = [*out.glob("cells/*/seed-*"), *out.glob("references/seed-*")]
    seeds = sorted({int(folder.name.removeprefix("seed-")) for folder in folders if folder.name[5:].isdecimal()})
    jobs = jobs_of(experiment, domain, identity, out, experiment.arms, seeds)
    return [job for job in jobs if job.state() != "new"]


class _Pool:
    """The worker processes of a call. At most as many jobs are handed out as there are workers."""

    def __init__(self, domain: Domain, device: str, count: int, threads: int, progress: "_Progress") -> None:
        self.domain, self.device, self.count, self.threads, self.progress = domain, device, count, threads, progress
        self.failed: list[str] = []
        self.stopped: list[str] = []

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Does the jobs in order; returns a line for each that failed.

        When a worker is killed (usually for lack of memory), nobody says by which of the running jobs. Each of them is
        then tried again alone, and the one that is killed again has failed.
        """
        waiting = deque(jobs)
        while waiting:
            for job in self._until_broken(waiting, self.count):
                alone = deque([job])
                if self._until_broken(alone, 1):
                    write_json(job.folder / "error.json", {"error": KILLED})
                    self._end(job, Ended("failed", 0.0, KILLED))
        return self.failed

    def _until_broken(self, waiting: "deque[Job]", count: int) -> list[Job]:
        """Does jobs until none waits; if a worker is killed, returns those that were running then."""
        context = get_context("spawn")  # forked processes inherit torch's locks, and do not read glibc's variables
        stop = context.Event()
        strangers = set(active_children())
        executor = ProcessPoolExecutor(
            min(count, len(waiting)), context, start, (self.domain, self.device, self.threads, stop)
        )
        running: dict[Future[Ended], Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < count:
                    running[executor.submit(work, waiting[0])] = waiting[0]
                    waiting.popleft()  # only now: a pool that broke a moment ago takes no job
                # `submit` wakes the pool's thread before it starts a worker: the death of the worker started last may
                # go unseen until another job ends. Any further `submit` makes the thread look at all of them.
                executor.submit(os.getpid)
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    outcome = future.result()
                    self._end(running.pop(future), outcome)
        except BrokenProcessPool:
            _kill(set(active_children()) - strangers)  # the other workers must not go on with what is tried again
            executor.shutdown()
            for job in running.values():
                if job.state() == "done":  # ended in the same moment
                    self._end(job, Ended("done", 0.0))
            return [job for job in running.values() if job.state() != "done"]
        except BaseException:
            stop.set()
            try:
                print("stopping: the cells in progress write their checkpoints …", file=sys.stderr)
                executor.shutdown(cancel_futures=True)
            except BaseException:  # a second Ctrl-C
                _kill(set(active_children()) - strangers)
                raise
            raise
        executor.shutdown()
        return []

    def _end(self, job: Job, ended: Ended) -> None:
        if ended.status == "failed":
            self.failed.append(f"{job.name()}: {ended.error}")
        elif ended.status == "stopped":
            self.stopped.append(job.name())
        self.progress.end(job, ended)


def _kill(processes: Collection[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


class _Progress:
    """The bar: cells done, failed, and the time left by the seconds that cells of each arm took."""

    def __init__(self, wanted: Sequence[Job], pending: Sequence[Job], workers: int) -> None:
        from tsd.console.progress import Progress

        self.pending, self.workers, self.failed = list(pending), workers, 0
        self.seconds: dict[str, list[float]] = {}
        for job in wanted:
            if job.state() == "done":
                done = read_json(job.folder / "done.json") or {}
                self.seconds.setdefault(job.arm, []).append(float(done["seconds"]))
        form = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self.bar = Progress(total=len(self.pending), desc="sweep", unit="cell", bar_format=form, estimates=False)

    def __enter__(self) -> "_Progress":
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def end(self, job: Job, ended: Ended) -> None:
        self.pending.remove(job)
        if ended.status == "done" and ended.seconds:
            self.seconds.setdefault(job.arm, []).append(ended.seconds)
        self.failed += ended.status == "failed"
        self.bar.update()
        self._show()

    def _show(self) -> None:
        left = seconds_left([job.arm for job in self.pending], self.seconds, self.workers)
        parts = [f"{self.failed} failed"] if self.failed else []
        parts += [f"about {_duration(left)} left"] if left is not None else []
        self.bar.set_postfix_str(", ".join(parts))


def seconds_left(arms: Sequence[str], seconds: Mapping[str, Sequence[float]], workers: int) -> float | None:
    """The seconds that the pending cells of these `arms` will take; None before any cell has ended.

    An arm of which no cell has ended is taken to cost what the others do on average.
    """
    means = {arm: math.fsum(values) / len(values) for arm, values in seconds.items() if values}
    if not means:
        return None
    typical = math.fsum(means.values()) / len(means)
    return math.fsum(means.get(arm, typical) for arm in arms) / workers


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _lock(out: Path, rank: Rank) -> Iterator[None]:
    """Keeps a second call out of the folder. In a shared run the first process holds the lock for all."""
    if not rank.first:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out, f"another `bench sweep` works in {out}; expected it to end first, or another --out"):
        remove_unfinished(out, below=True)
        yield
