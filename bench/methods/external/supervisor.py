"""A script, started by process.py, that runs one command and ends it whatever happens to the harness.

The first line of its standard input says what to run (JSON: argv, cwd, env, log); nothing follows. When standard input
is closed, by the harness or because the harness was killed, the supervisor ends the command and everything that the
command started. It also finds processes that left their parent or their session: on Linux it adopts them
(PR_SET_CHILD_SUBREAPER).

The answer, on standard output, is one JSON object: `exit`, the command's exit code (negative: the signal that ended
it), or `error`, why it could not be started.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
TERMINATE_SECONDS = 2.0
GIVE_UP_SECONDS = 30.0
POLL_SECONDS = 1.0


def main() -> int:
    parent = os.getppid()
    spec = json.loads(_first_line())
    die_with_supervisor = _linux_only()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with open(spec["log"], "ab", buffering=0) as log:
        try:
            child = subprocess.Popen(
                spec["argv"],
                cwd=spec["cwd"],
                env=spec["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_supervisor,
            )
        except OSError as error:
            print(json.dumps({"error": f"{error.strerror}: {os.path.basename(error.filename or spec['argv'][0])}"}))
            return 0
    signal.signal(signal.SIGTERM, lambda number, frame: _end(child.pid))
    threading.Thread(target=_end_when_stdin_closes, args=(parent, child.pid), daemon=True).start()
    code = child.wait()
    _end(child.pid)  # processes that the command left running
    print(json.dumps({"exit": code}))
    return 0


def _first_line() -> bytes:
    """Reads byte by byte, so that nothing of standard input lies in a buffer that `select` does not see."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(1)
        line += byte
    return line


def _linux_only() -> Callable[[], None] | None:
    """Adopts orphans, and returns a function that makes a child die if the supervisor is killed."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_when_stdin_closes(parent: int, child: int) -> None:
    while os.getppid() == parent:  # another process may hold a copy of the pipe's other end
        if select.select([0], [], [], POLL_SECONDS)[0] and not os.read(0, 4096):
            break
    _end(child)


def _end(child: int) -> None:
    """Ends the command and every descendant: first with SIGTERM, then with SIGKILL, until none is left."""
    import psutil

    started = time.monotonic()
    asked: set[int] = set()
    while time.monotonic() - started < GIVE_UP_SECONDS:
        alive = [process for process in psutil.Process().children(recursive=True) if not _has_ended(process, child)]
        if not alive:
            return
        grace = time.monotonic() - started < TERMINATE_SECONDS
        if not grace:
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                if not grace:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
        time.sleep(0.02)


def _has_ended(process, child: int) -> bool:
    """Whether a descendant has ended; an adopted one is reaped, so that its number becomes free."""
    import psutil

    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
    except psutil.Error:
        return True
    if process.pid != child:  # the main thread waits for the exit code of `child`
        with contextlib.suppress(OSError):
            os.waitpid(process.pid, os.WNOHANG)
    return True


if __name__ == "__main__":
    sys.exit(main())
