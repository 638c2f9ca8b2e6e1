"""Small changes to the modules that make numbers: do their tests notice? `nox -s mutants` runs it, with cosmic-ray.

A mutant is one change by one of cosmic-ray's operators: another comparison, a larger number, `break` for `continue`.
They are drawn by seed from all modules of `TESTS` together. Each is tested in a process forked from here, where the
libraries are imported and this project is not; the changed module is never on disk.
"""

import argparse
import difflib
import importlib
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType

import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "bench/report/summarize.py": ["tests/bench/report/test_summarize.py"],
    "bench/report/compare.py": ["tests/bench/report/test_compare.py"],
    "bench/records/schema.py": ["tests/bench/records", "tests/faults/test_faults.py"],
    "bench/ablation/statistics.py": ["tests/bench/ablation/test_statistics.py"],
    "bench/latency/summary.py": ["tests/bench/latency/test_summary.py"],
    "bench/methods/resize.py": ["tests/bench/methods/test_resize.py"],
    "tsd/algorithm/objective.py": ["tests/tsd/algorithm"],
    "tsd/algorithm/dasm.py": ["tests/tsd/algorithm"],
    "tsd/model/process.py": ["tests/tsd/model/test_process.py"],
    "tsd/restore/color.py": ["tests/tsd/restore/test_color.py"],
    "tsd/restore/tiling.py": ["tests/tsd/restore/test_tiling.py"],
}
"""The modules that make numbers, and the tests that must notice a change."""
WITHOUT_TORCH = frozenset({
    "bench/report/summarize.py", "bench/report/compare.py", "bench/records/schema.py", "bench/ablation/statistics.py",
})  # fmt: skip
"""Modules whose tests need no torch: they run without `tests/conftest.py`."""
IMPORTED_ONCE = ("numpy", "pandas", "PIL.Image", "matplotlib.pyplot", "scipy.stats")
IMPORTED_WITH_TORCH = ("torch", "torchvision", "diffusers", "transformers", "peft", "safetensors.torch")
LIMIT_SECONDS = 300
ENOUGH = 0.9


@dataclass(frozen=True)
class Mutant:
    module: str
    operator: str
    occurrence: int
    line: int

    def source(self) -> str:
        operator = cosmic_ray.plugins.get_operator(self.operator)()
        changed = mutate_code((ROOT / self.module).read_text(), operator, self.occurrence)
        assert changed is not None
        return changed

    def difference(self) -> str:
        """What the change replaces, and by what, on one line."""
        before, after = (ROOT / self.module).read_text().splitlines(), self.source().splitlines()
        lines = [
            line for line in difflib.unified_diff(before, after, n=0, lineterm="") if line[:3] not in ("---", "+++")
        ]
        return " ".join(f"{line[0]} `{line[1:].strip()}`" for line in lines if line[0] in "+-")


class Changed(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module from a changed source."""

    def __init__(self, module: str, source: str) -> None:
        super().__init__(module.removesuffix(".py").replace("/", "."), str(ROOT / module))
        self.source = source

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        return spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


def all_mutants(modules: Sequence[str]) -> list[Mutant]:
    found = []
    for module in modules:
        tree = get_ast((ROOT / module).read_text())
        for name in sorted(cosmic_ray.plugins.operator_names()):
            kind = cosmic_ray.plugins.get_operator(name)
            if kind.arguments() or name.endswith(("NoOp", "/RemoveDecorator", "/ExceptionReplacer")):
                continue
            places = [start for node in ast_nodes(tree) for start, _ in kind().mutation_positions(node)]
            found += [Mutant(module, name, number, start[0]) for number, start in enumerate(places)]
    return found


def outcome(mutant: Mutant | None, module: str) -> str:
    """ "killed", "survived" or "hangs"; without a mutant what the tests say of the module as it is."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            with tempfile.TemporaryFile() as printed:
                for number in (1, 2):
                    os.dup2(printed.fileno(), number)
            if mutant is not None:
                sys.meta_path.insert(0, Changed(mutant.module, mutant.source()))
            cut = ["--confcutdir=tests/bench"] if module in WITHOUT_TORCH else []
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *cut, *TESTS[module]]))
        finally:
            os._exit(status)
    began = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        if time.monotonic() - began > LIMIT_SECONDS:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hangs"
        time.sleep(0.01)


def report(args: argparse.Namespace, total: int, found: dict[Mutant, str]) -> str:
    noticed = sum(result != "survived" for result in found.values())
    text = [
        "# Mutants", "",
        f"`nox -s mutants` with seed {args.seed}: {len(found)} of {total} mutants, {noticed} noticed by the tests "
        f"({noticed / max(len(found), 1):.0%}).", "", "| module | mutants | noticed |", "|:--|--:|--:|",
    ]  # fmt: skip
    tried = Counter(mutant.module for mutant in found)
    killed = Counter(mutant.module for mutant, result in found.items() if result != "survived")
    text += [f"| `{module}` | {tried[module]} | {killed[module]} |" for module in args.modules if tried[module]]
    text += ["", "## Survivors", ""]
    text += [f"- `{m.module}`, line {m.line}: {m.difference()}" for m, result in found.items() if result == "survived"]
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mutants", type=int, default=100, metavar="N", help="how many are drawn (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS), metavar="FILE")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the table there")
    args = parser.parse_args()
    os.chdir(ROOT)
    for name in (*IMPORTED_ONCE, *(IMPORTED_WITH_TORCH if set(args.modules) - WITHOUT_TORCH else ())):
        importlib.import_module(name)
    for module in args.modules:
        if outcome(None, module) != "survived":
            print(f"the tests of {module} fail as it is", file=sys.stderr)
            return 2
    mutants = all_mutants(args.modules)
    chosen = random.Random(args.seed).sample(mutants, min(args.mutants, len(mutants)))
    found = {}
    for number, mutant in enumerate(sorted(chosen, key=lambda m: (m.module, m.line, m.operator, m.occurrence)), 1):
        found[mutant] = outcome(mutant, mutant.module)
        print(
            f"{number} of {len(chosen)}: {found[mutant]}: {mutant.module}:{mutant.line} {mutant.operator}", flush=True
        )
        if args.report is not None:  # a run takes an hour
            args.report.write_text(report(args, len(mutants), found))
    print(report(args, len(mutants), found))
    return int(sum(result != "survived" for result in found.values()) < ENOUGH * len(found))


if __name__ == "__main__":
    sys.exit(main())
