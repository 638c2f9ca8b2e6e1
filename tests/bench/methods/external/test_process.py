"""Processes end, with all they started, and their endings are told apart."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.errors import without_paths
from bench.methods.external.log import last_lines, note
from bench.methods.external.process import Ending, Process, require_success, run_tool
from tsd.errors import UserError


def run(code: str, tmp_path: Path) -> tuple[Ending, str]:
    log = tmp_path / "log"
    with Process([sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ), log=log) as process:
        ending = process.wait(30)
    assert ending is not None
    return ending, log.read_text()


def test_output_of_both_kinds_and_the_exit_code(tmp_path: Path) -> None:
    ending, said = run("import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(7)", tmp_path)
    assert ending.exit_code == 7
    assert said == "out\nerr\n"
    assert ending.describe() == "crashed: the process ended with exit code 7"
    assert run("pass", tmp_path)[0].describe() == "the process ended with exit code 0"


def test_ended_by_a_signal(tmp_path: Path) -> None:
    ending, _ = run("import os; os.kill(os.getpid(), 9)", tmp_path)
    assert ending.describe() == "crashed: the process was ended by SIGKILL, as when memory runs out"
    ending, _ = run("import os; os.kill(os.getpid(), 11)", tmp_path)
    assert ending.describe() == "crashed: the process was ended by SIGSEGV"


def test_nothing_to_read_and_no_terminal(tmp_path: Path) -> None:
    _, said = run("import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid())", tmp_path)
    assert said == "'' True\n"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    process = Process(["/nowhere/python"], cwd=tmp_path, env={}, log=tmp_path / "log")
    ending = process.wait(30)
    assert ending is not None
    assert ending.describe() == "the process could not be started (No such file or directory: python)"


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
pids = open("pids", "a"); pids.write(f"{os.getpid()}\\n"); pids.close()
time.sleep(600)
"""


def pids(tmp_path: Path, count: int) -> list[int]:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        if (tmp_path / "pids").exists():
            found = [int(line) for line in (tmp_path / "pids").read_text().split()]
            if len(found) == count:
                return found
        time.sleep(0.05)
    raise AssertionError("they did not start")


def test_stop_ends_a_daemon_that_ignores_being_asked(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", STUBBORN], cwd=tmp_path, env=dict(os.environ), log=tmp_path / "log")
    started = pids(tmp_path, 2)
    assert process.wait(0) is None
    process.stop()
    assert not any(psutil.pid_exists(pid) for pid in started)
    process.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_what_a_command_leaves_running_ends_with_it(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"
    code += "; import time; time.sleep(1.5)"
    assert run(code, tmp_path)[0].exit_code == 0
    assert not any(psutil.pid_exists(pid) for pid in pids(tmp_path, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="a child dies with its parent on Linux only")
def test_the_command_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = "import os, time; open('pids', 'w').write(str(os.getpid())); time.sleep(600)"
    process = Process([sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ), log=tmp_path / "log")
    [pid] = pids(tmp_path, 1)
    psutil.Process(pid).parent().kill()  # pyright: ignore[reportOptionalMemberAccess]
    ending = process.wait(20)
    assert ending is not None
    assert ending.describe() == "the process was stopped"
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == pid], timeout=10)
    assert not psutil.pid_exists(pid)


def test_a_fork_of_the_harness_that_holds_its_standard_input_does_not_keep_it_alive(tmp_path: Path) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
from bench.methods.external.process import Process
process = Process([sys.executable, "-c", {STUBBORN!r}], cwd=Path("."), env=dict(os.environ), log=Path("log").absolute())
if os.fork() == 0:
    time.sleep(20)
    os._exit(0)
time.sleep(600)
"""
    harness = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    started = pids(tmp_path, 2)
    harness.send_signal(signal.SIGKILL)
    harness.wait(20)
    ends = time.monotonic() + 15
    while any(psutil.pid_exists(pid) for pid in started):
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_tools_have_a_limit_and_their_failure_is_told_with_what_they_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(60)"]
    ending = run_tool(argv, title="tool", log=log, cwd=tmp_path, env=dict(os.environ), limit=1.0)
    with pytest.raises(UserError, match=r"made nothing: timed out: .* after 1 s, its time limit; try again\n  hello"):
        require_success(ending, log, "made nothing", "try again")


def test_last_lines_of_progress_bars_and_without_the_harness_s_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log, 3) == []
    log.write_bytes(b"one\ntwo a\r 10%\r 20%\r\n\n\xff three a\n")
    note(log, "of the harness", argv=["x"])
    assert last_lines(log, 2) == ["20%", "\ufffd three a"]
    assert last_lines(log, 9, mentioning="a") == ["two a", "\ufffd three a"]
    assert log.read_bytes().endswith(b'[bench] of the harness\n[bench] argv: ["x"]\n')
    log.write_text("x" * 100_000 + "\nend\n")
    assert last_lines(log, 1) == ["end"]


def test_reasons_are_without_paths_of_this_machine() -> None:
    known = {Path("/home/me/cache"): "cache", Path("/home/me/cache/tiny-1"): "tiny"}
    text = (
        'File "/home/me/cache/tiny-1/a/run.py", line 3; /opt/lib/python3/x.py:5, (/tmp/y) at https://x.org/a/b or c/d'
    )
    assert without_paths(text, known) == ('File "tiny/a/run.py", line 3; …/x.py:5, (…/y) at https://x.org/a/b or c/d')
