"""Runs a command. When the harness ends, for any reason, the command and everything it started are ended too."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.methods.external.log import last_lines
from tsd.errors import UserError

SUPERVISOR = Path(__file__).with_name("supervisor.py")
TAIL = 60


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        exit_code: negative for the signal that ended it; None where it never started or was stopped.
        seconds: how long it ran.
        limit_seconds: the time limit, if it was stopped for that.
        error: why it could not be started.
    """

    exit_code: int | None
    seconds: float
    limit_seconds: float | None = None
    error: str = ""

    def describe(self) -> str:
        """Says in a clause how it ended: "the process ended with exit code 1"."""
        if self.error:
            return f"the process could not be started ({self.error})"
        if self.limit_seconds is not None:
            return f"timed out: the process was stopped after {self.limit_seconds:.0f} s, its time limit"
        if self.exit_code is None:
            return "the process was stopped"
        if self.exit_code < 0:
            name = signal.Signals(-self.exit_code).name
            hint = ", as when memory runs out" if name == "SIGKILL" else ""
            return f"crashed: the process was ended by {name}{hint}"
        if self.exit_code:
            return f"crashed: the process ended with exit code {self.exit_code}"
        return "the process ended with exit code 0"


class Process:
    """A running command: own session, nothing on standard input, both outputs appended to a file.

    As a context manager it is stopped at the end of the block, if it still runs then.
    """

    def __init__(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self._started = time.monotonic()
        self._supervisor = subprocess.Popen(
            [sys.executable, "-P", str(SUPERVISOR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the harness alone, which then stops it
        )
        spec = {"argv": list(argv), "cwd": str(cwd), "env": dict(env), "log": str(log)}
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(json.dumps(spec).encode() + b"\n")
        self._supervisor.stdin.flush()

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self, seconds: float | None = None) -> Ending | None:
        """Waits at most `seconds`; returns how it ended, or None while it runs."""
        try:
            self._supervisor.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        assert self._supervisor.stdout is not None
        answer = self._supervisor.stdout.read()
        if not answer:
            return Ending(None, self.seconds())
        outcome = json.loads(answer)
        return Ending(outcome.get("exit"), self.seconds(), error=outcome.get("error", ""))

    def seconds(self) -> float:
        """The time since it was started."""
        return time.monotonic() - self._started

    def stop(self) -> None:
        """Ends the command and everything it started, and returns when nothing runs any more."""
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()
        self._supervisor.stdout.close()


def run_tool(
    argv: Sequence[str], *, title: str, log: Path, cwd: Path, env: Mapping[str, str], limit: float | None = None
) -> Ending:
    """Runs git or uv to its end, and shows the time and the last line of its output on stderr meanwhile.

    Args:
        title: what the line on stderr begins with.
        limit: seconds after which it is stopped.
    """
    from tsd.console.progress import Progress

    with (
        Process(argv, cwd=cwd, env=env, log=log) as process,
        Progress(desc=title, bar_format="{desc} [{elapsed}]{postfix}", delay=1, leave=False) as bar,
    ):
        while (ending := process.wait(0.5)) is None:
            if limit is not None and process.seconds() > limit:
                return Ending(None, process.seconds(), limit_seconds=limit)
            bar.set_postfix_str(" ".join(last_lines(log, 1))[-TAIL:])
    return ending


def require_success(ending: Ending, log: Path, what: str, hint: str) -> None:
    """Raises UserError, with the last lines of `log`, unless the tool succeeded."""
    if ending.exit_code != 0:
        tail = "".join(f"\n  {line}" for line in last_lines(log, 6))
        raise UserError(f"{what}: {ending.describe()}; {hint}{tail}")
