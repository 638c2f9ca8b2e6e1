"""One command in a process that `Warm` of conftest.py has forked: its folder, variables, output, and what to do.

The global `REQUEST` has `argv` (`tsd …`, `bench …`, `-c CODE` or `FILE.py …`), `cwd`, `environment`, `output` (files of
stdout and stderr) and `before`, Python source that runs first.
"""

import importlib
import os
import runpy
import sys
from typing import Any


def run(request: dict[str, Any]) -> None:
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, path in enumerate(request["output"], start=1):
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.argv = list(request["argv"])
    exec(request["before"], {"__name__": "before"})
    if sys.argv[0] == "-c":
        exec(compile(sys.argv[1], "<string>", "exec"), {"__name__": "__main__"})
    elif sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.exit(importlib.import_module(f"{sys.argv[0]}.cli").main())


run(globals()["REQUEST"])
