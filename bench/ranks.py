"""The processes of one run started by `accelerate launch`: rank, share of the work, and how they wait for one another.

Every process goes through the same jobs in the same order and does its share of each. In between they exchange small
Python objects (reports, rows, hashes; never tensors) over gloo on the CPU and wait for one another, for days if
necessary. A process that fails sends its error in place of its next value, and all stop. When a process is killed, the
next call of the others fails, and the launcher ends those that remain.

Without a launcher (WORLD_SIZE unset or 1) a run has one process, and neither accelerate nor torch is imported here.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

from bench.errors import one_line
from tsd.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(days=7)
"""How long a process waits for the others: they may finish their shares of a job hours apart."""
VISIBLE_WITHIN_SECONDS = 120.0
"""How long a file written on one machine may take to be visible on another (NFS caches attributes up to a minute)."""


class StoppedError(UserError):
    """Another process of this run failed; the message says which and why."""


@dataclass(frozen=True)
class Rank:
    """One of the processes of a run.

    Attributes:
        index: number of this process over all machines, from 0.
        world: number of processes over all machines.
        local: number of this process on its machine, from 0.
    """

    index: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that plans, merges, renders and prints."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every `world`-th item from `index` on: each item is in the share of exactly one process."""
        return items[self.index :: self.world]

    def line(self, text: str) -> str:
        return f"process {self.index} of {self.world}: {text}"


ALONE = Rank()


def current_rank() -> Rank:
    """The rank that the launcher's variables give this process; `ALONE` without a launcher. Does not connect yet.

    Raises:
        UserError: some of the variables are set and others are not.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return ALONE
    values = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not all(value.isdecimal() for value in values.values()):
        found = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise UserError(
            f"the launcher's variables do not fit together: {found}. Use `accelerate launch`, or unset them"
        )
    return Rank(int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]))


@contextmanager
def on_all_ranks() -> Iterator[Rank]:
    """Yields the rank of this process. An error in any process of the run ends all of them and is printed once.

    SIGTERM (from `scancel`, `kill`, or a launcher that ends its other processes) is treated as an interrupt, so that
    the processes of external methods are ended too.
    """
    rank = current_rank()
    if not rank.first:
        os.environ["TQDM_DISABLE"] = "1"  # bars of several processes overwrite each other
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield rank
    except (StoppedError, KeyboardInterrupt) as error:
        if rank.first:
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    except Exception as error:
        reasons = _all_gather(rank, None, one_line(error)) if rank.world > 1 else []
        if one_line(error) in reasons[: rank.index]:
            raise SystemExit(2) from None
        raise
    else:
        _leave(rank)
    finally:
        signal.signal(signal.SIGTERM, before)


def all_gather(rank: Rank, value: T) -> list[T]:
    """Returns the picklable `value` of every process, by rank. Waits for all of them.

    Raises:
        StoppedError: one of them failed or was killed.
    """
    if rank.world == 1:
        return [value]
    return _all_gather(rank, value, None)


def from_first(rank: Rank, make: Callable[[], T]) -> T:
    """Returns what `make` returns in the first process. The others wait for it and do not call `make`."""
    return cast(T, all_gather(rank, make() if rank.first else None)[0])


def barrier(rank: Rank) -> None:
    """Returns when every process has called it."""
    all_gather(rank, None)


def wait_until_visible(condition: Callable[[], bool], seconds: float = VISIBLE_WITHIN_SECONDS) -> bool:
    """Whether `condition` comes true within `seconds`. Checks at once, then twice a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def check_shared(rank: Rank, folder: Path) -> None:
    """Makes sure that all processes see the same `folder`.

    Raises:
        UserError: this process does not see what the first has written there.
    """
    if rank.world == 1:
        return
    path = folder / from_first(rank, lambda: f".{uuid4().hex}.tmp")
    if rank.first:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    barrier(rank)
    if not wait_until_visible(path.exists):
        raise UserError(rank.line(f"{folder} is not the folder of process 0: --out must be on a disk that all share"))
    barrier(rank)
    if rank.first:
        path.unlink()


def _leave(rank: Rank) -> None:
    """Ends the connection of a run that went well. The interpreter's exit may abort on threads that still serve it."""
    if rank.world > 1:
        from accelerate import PartialState

        if PartialState._shared_state:
            PartialState().destroy_process_group()
            PartialState._reset_state()  # the next run in this process joins anew


def _all_gather(rank: Rank, value: Any, failure: str | None) -> list[Any]:
    """Returns the values of all processes by rank; in a process that has a `failure`, the failures of all by rank."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    try:
        PartialState(cpu=True, backend="gloo", timeout=TIMEOUT)  # a singleton; joins the others on first use
        messages = gather_object([(value, failure)])
    except RuntimeError as error:
        raise StoppedError(f"another process of this run has ended ({one_line(error)})") from error
    failures = [reason for _, reason in messages]
    if failure is not None:
        return failures
    for index, reason in enumerate(failures):
        if reason is not None:
            raise StoppedError(f"process {index} of {rank.world} stopped: {reason}")
    return [value for value, _ in messages]
