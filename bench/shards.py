"""Several processes of one run, started by `accelerate launch`: who this one is, what its share is, how they keep step.

Every process walks through the same jobs in the same order and does its share of each. In between they exchange small
Python objects (reports, rows, hashes; never tensors) over gloo on the CPU and wait for one another, for days if need
be. One that fails says so in place of its next exchange, and all stop; one that dies without a word ends the exchange
of the others, and its launcher ends what is left.

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

from bench.errors import UserError, one_line

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for the others: shares of one job may be hours apart."""
SHOWS_UP_SECONDS = 120.0
"""How long a file written on one machine may take to show on another (NFS caches attributes for up to a minute)."""


class StoppedError(UserError):
    """Another process of this run failed; the message says which and why."""


@dataclass(frozen=True)
class Shard:
    """One of `world` processes: `rank` counts over all machines, `local_rank` on this one, both from 0."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that plans, merges, renders and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every `world`-th item, from `rank` on: the shares of all processes are the items, each once."""
        return items[self.rank :: self.world]

    def line(self, text: str) -> str:
        return f"process {self.rank} of {self.world}: {text}"


ALONE = Shard()


def current_shard() -> Shard:
    """This process by the launcher's variables; `ALONE` without a launcher. Joins nothing.

    Raises:
        UserError: some of the variables are there and others not.
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
    return Shard(int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]))


@contextmanager
def in_step() -> Iterator[Shard]:
    """This process as one of its run: an error in any process ends all of them, and is printed once.

    SIGTERM (`scancel`, `kill`, a launcher that ends the rest of its processes) is taken for an interrupt, so that the
    processes of external methods are not left behind.
    """
    shard = current_shard()
    if not shard.first:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: bars of several processes overwrite each other
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield shard
    except (StoppedError, KeyboardInterrupt) as error:
        if shard.first:
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    except Exception as error:
        reasons = _exchange(shard, None, one_line(error)) if shard.world > 1 else []
        if one_line(error) in reasons[: shard.rank]:
            raise SystemExit(2) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def exchange(shard: Shard, value: T) -> list[T]:
    """What every process brings, by rank; picklable. Waits for all of them.

    Raises:
        StoppedError: one of them failed, or is no more.
    """
    if shard.world == 1:
        return [value]
    return _exchange(shard, value, None)


def from_first(shard: Shard, make: Callable[[], T]) -> T:
    """What `make` gives in the first process, where alone it is called. The others wait for it."""
    return cast(T, exchange(shard, make() if shard.first else None)[0])


def wait(shard: Shard) -> None:
    """Returns when every process has come here."""
    exchange(shard, None)


def shows_up(condition: Callable[[], bool], seconds: float = SHOWS_UP_SECONDS) -> bool:
    """Whether `condition` comes true within so many seconds; looks at once, then twice a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def check_shared(shard: Shard, folder: Path) -> None:
    """Makes sure that all processes see the same `folder`.

    Raises:
        UserError: this process does not see what the first has written there.
    """
    if shard.world == 1:
        return
    path = folder / from_first(shard, lambda: f".{uuid4().hex}.tmp")
    if shard.first:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    wait(shard)
    if not shows_up(path.exists):
        raise UserError(shard.line(f"{folder} is not the folder of process 0: --out must be on a disk that all share"))
    wait(shard)
    if shard.first:
        path.unlink()


def _exchange(shard: Shard, value: Any, failure: str | None) -> list[Any]:
    """Values by rank; of a process that says `failure`, the failures by rank."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    try:
        PartialState(cpu=True, backend="gloo", timeout=PATIENCE)  # a singleton; joins the others on first use
        messages = gather_object([(value, failure)])
    except RuntimeError as error:
        raise StoppedError(f"another process of this run is no more ({one_line(error)})") from error
    failures = [reason for _, reason in messages]
    if failure is not None:
        return failures
    for rank, reason in enumerate(failures):
        if reason is not None:
            raise StoppedError(f"process {rank} of {shard.world} stopped: {reason}")
    return [value for value, _ in messages]
