"""Injects faults into commands and feeds readers broken inputs; says what survived. `nox -s faults` runs it.

The heavy imports happen once; every run is forked from here, before torch has computed anything. Exit status 1 if
anything was lost.
"""

import argparse
import importlib
import os
import platform
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fuzzing
from forked import forked, print_into
from injection import KINDS, Injection
from situations import SITUATIONS, Situation, leftovers

IMPORTED_ONCE = (
    "torch", "accelerate", "pyiqa", "datasets", "diffusers", "peft", "transformers", "bench.run.pipeline",
    "bench.run.score", "bench.ablation.mixture.training", "bench.ablation.report.write", "tsd.data.prepare",
    "tsd.restore.restorer", "tsd.train.student",
)  # fmt: skip
LIMIT_SECONDS = 600
TOGETHER, REPLACED, BY_CLOCK = "together", "replaced", "clock-kill"
OTHER_KINDS = {
    TOGETHER: "two processes on one folder",
    REPLACED: "an input replaced after a kill",
    BY_CLOCK: "SIGKILL by the clock, after a share of the seconds that the command takes",
}


@dataclass
class Ran:
    """A process that has ended. `status` is negative after a signal; `instants` is how many there were."""

    status: int
    printed: str
    instants: int
    seconds: float

    @property
    def crashed(self) -> bool:
        return "Traceback (most recent call last)" in self.printed


@dataclass
class Tally:
    """What became of the cases of one kind: how many there were, and what was lost, with the instant."""

    instants: int
    cases: int = 0
    lost: list[str] = field(default_factory=list)


class Bench:
    """One command on one set of inputs, and its result without faults."""

    def __init__(self, situation: Situation, place: Path) -> None:
        self.situation, self.place, self.count = situation, place, 0
        self.inputs = place / "in"
        self.inputs.mkdir(parents=True)
        child = forked(lambda: situation.prepare(self.inputs) or 0)  # this process must not have computed anything
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the inputs could not be made"
        self.whole = self.case()
        counting = Injection(self.whole / "out", "count")
        ran = self.run(self.whole, counting)
        assert ran.status == 0, ran.printed
        self.seconds, self.writes = ran.seconds, ran.instants
        self.reads = self.run(self.case(), Injection(self.place, "count-read")).instants
        self.expected = situation.content(self.whole / "out")
        assert self.expected, "a command without results"

    def case(self, *, own_inputs: bool = False) -> Path:
        """A new folder with the inputs, as a link or as a copy."""
        self.count += 1
        folder = self.place / f"case{self.count}"
        folder.mkdir()
        if own_inputs:
            shutil.copytree(self.inputs, folder / "in")
        else:
            (folder / "in").symlink_to(self.inputs)
        return folder

    def start(self, folder: Path, injection: Injection | None = None) -> int:
        def act() -> int:
            os.setsid()
            os.chdir(folder)
            print_into(f"printed.{os.getpid()}")
            self.situation.before()
            program, *words = self.situation.argv
            cli = importlib.import_module(f"{program}.cli")
            if injection is not None:
                injection.install()
            return cli.main(words)

        return forked(act)

    def end(self, child: int, folder: Path, injection: Injection | None, began: float) -> Ran:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() - began > LIMIT_SECONDS:
                os.killpg(child, signal.SIGKILL)
                return Ran(-100, f"did not end within {LIMIT_SECONDS} seconds", 0, LIMIT_SECONDS)
            time.sleep(0.005)
        printed = (folder / f"printed.{child}").read_text(errors="replace")
        instants = injection.count if injection is not None else 0
        return Ran(os.waitstatus_to_exitcode(status), printed, instants, time.monotonic() - began)

    def run(self, folder: Path, injection: Injection | None = None) -> Ran:
        began = time.monotonic()
        return self.end(self.start(folder, injection), folder, injection, began)

    # -- one case each; an empty text says that nothing was lost

    def continued(self, folder: Path) -> str:
        """Runs the command to its end, and compares."""
        ran = self.run(folder)
        if ran.status != 0:
            return f"the same command ends with {ran.status}: {last_line(ran.printed)}"
        return self.compared(folder)

    def compared(self, folder: Path) -> str:
        found = self.situation.content(folder / "out")
        odd = sorted(name for name in self.expected.keys() | found.keys() if self.expected.get(name) != found.get(name))
        if odd:
            return f"other results: {', '.join(odd[:3])}"
        left = leftovers(folder / "out")
        return f"left behind: {', '.join(left[:3])}" if left else ""

    def injected(self, kind: str, at: int) -> str:
        folder = self.case()
        injection = Injection(folder if kind == "eio-read" else folder / "out", kind, at)
        ran = self.run(folder, injection)
        fault = self.judged(kind, ran, folder) or self.continued(folder)
        shutil.rmtree(folder)
        return fault

    def judged(self, kind: str, ran: Ran, folder: Path) -> str:
        """What is wrong with a command's end under a fault."""
        if ran.status == -100:
            return "hangs"
        if kind == "kill":
            return "" if ran.status == -signal.SIGKILL else f"was not killed: {ran.status}"
        if ran.crashed:
            return f"a traceback: {last_line(ran.printed)}"
        if kind == "clock":
            return f"ends with {ran.status}: {last_line(ran.printed)}" if ran.status else self.compared(folder)
        return "" if ran.status in (0, 1, 2) else f"ends with {ran.status}: {last_line(ran.printed)}"

    def together(self) -> str:
        """Two processes begin at once: at least one ends well, the other well or with a clear message."""
        folder, began = self.case(), time.monotonic()
        children = [self.start(folder) for _ in range(2)]
        runs = [self.end(child, folder, None, began) for child in children]
        if crashed := next((ran for ran in runs if ran.crashed), None):
            return f"a traceback: {last_line(crashed.printed)}"
        if not any(ran.status == 0 for ran in runs) or any(ran.status not in (0, 1, 2) for ran in runs):
            return f"they end with {' and '.join(str(ran.status) for ran in runs)}: {last_line(runs[0].printed)}"
        return self.continued(folder)

    def replaced(self, at: int) -> str:
        """An input becomes another file after a kill: refused, or the result is that of the new inputs alone."""
        if self.situation.replace is None:
            return ""
        folder, fresh = self.case(own_inputs=True), self.case(own_inputs=True)
        self.run(folder, Injection(folder / "out", "kill", at))
        for place in (folder, fresh):
            self.situation.replace(place / "in")
        ran = self.run(folder)
        if ran.crashed:
            return f"a traceback: {last_line(ran.printed)}"
        if ran.status != 0:
            return ""
        self.run(fresh)
        mixed = self.situation.content(folder / "out") != self.situation.content(fresh / "out")
        return "goes on with results of both files" if mixed else ""

    def killed_by_clock(self, share: float) -> str:
        folder, began = self.case(), time.monotonic()
        child = self.start(folder)
        time.sleep(share * self.seconds)
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(child, signal.SIGKILL)
        self.end(child, folder, None, began)
        return self.continued(folder)


def last_line(text: str) -> str:
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "nothing printed"


def measure(situation: Situation, place: Path, seed: int, numbers: dict[str, int]) -> dict[str, Tally]:
    """Every kind of fault for one command; `numbers` says how many instants of each."""
    bench = Bench(situation, place)
    tallies: dict[str, Tally] = {}
    for kind, wanted in numbers.items():
        instants = bench.reads if kind == "eio-read" else bench.writes
        draw = random.Random(f"{seed} {situation.name} {kind}")
        count = min(wanted, instants)
        chosen = sorted(draw.sample(range(1, instants + 1), count))
        tally = tallies[kind] = Tally(instants)
        for at in chosen if kind in KINDS else chosen[: 1 if kind == TOGETHER else count]:
            if kind == TOGETHER:
                lost = bench.together()
            elif kind == REPLACED:
                if situation.replace is None:
                    break
                lost = bench.replaced(at)
            elif kind == BY_CLOCK:
                lost = bench.killed_by_clock(draw.random())
            else:
                lost = bench.injected(kind, at)
            tally.cases += 1
            if lost:
                tally.lost.append(f"{situation.name}, {kind} at {at} of {instants}: {lost}")
                print(f"lost: {tally.lost[-1]}", flush=True)
        print(f"{situation.name}: {kind}: {tally.cases - len(tally.lost)} of {tally.cases} survived", flush=True)
    return tallies


def report(seed: int, found: dict[str, dict[str, Tally]], fuzzed: dict[str, fuzzing.Outcome], command: str) -> str:
    kinds = [kind for kind in (*KINDS, *OTHER_KINDS) if any(kind in tallies for tallies in found.values())]
    lost = [line for tallies in found.values() for tally in tallies.values() for line in tally.lost]
    lost += [f"{name}: {line}" for name, outcome in fuzzed.items() for line in outcome.lost]
    text = [
        "# Faults injected", "",
        f"Written by `{command}` with seed {seed}, on Python {platform.python_version()}. A cell says how many cases",
        "survived, of how many. An instant is a change of the file system that Python asks for; the column *instants*",
        "says how many a command has. Every case ends with the same command run again, whose results must be those of",
        "a run without faults, seconds aside.", "",
    ]  # fmt: skip
    if kinds:
        text += ["| command | instants | " + " | ".join(kinds) + " |", "|:--|--:|" + "--:|" * len(kinds)]
        for name, tallies in found.items():
            cells = [
                f"{t.cases - len(t.lost)}/{t.cases}" if (t := tallies.get(kind)) and t.cases else "" for kind in kinds
            ]
            instants = max(tally.instants for kind, tally in tallies.items() if kind != "eio-read")
            text.append(f"| `{name}` | {instants} | " + " | ".join(cells) + " |")
        text += ["", *(f"- *{kind}*: {(KINDS | OTHER_KINDS)[kind]}" for kind in kinds), ""]
    if fuzzed:
        text += ["| broken inputs | mutants | right result | clear error | lost |", "|:--|--:|--:|--:|--:|"]
        text += [f"| {name} | {o.cases} | {o.right} | {o.refused} | {len(o.lost)} |" for name, o in fuzzed.items()]
        text.append("")
    text += ["## Lost", "", *(f"- {line}" for line in lost)] if lost else ["Nothing was lost."]
    return "\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--instants", type=int, default=100, metavar="N", help="kills of each command (default: 100)")
    parser.add_argument(
        "--others", type=int, default=20, metavar="N", help="instants of each other fault (default: 20)"
    )
    parser.add_argument(
        "--mutants", type=int, default=100, metavar="N", help="broken inputs of each form (default: 100)"
    )
    situations = {situation.name: situation for situation in SITUATIONS}
    parser.add_argument("--commands", nargs="*", default=[*situations], choices=situations, metavar="NAME")
    parser.add_argument("--kinds", nargs="*", default=[*KINDS, *OTHER_KINDS], metavar="KIND")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the table there")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    if args.commands:
        for module in IMPORTED_ONCE:
            importlib.import_module(module)
    numbers = {kind: args.instants if kind == "kill" else args.others for kind in args.kinds}
    numbers |= {kind: min(numbers[kind], 5) for kind in (REPLACED, BY_CLOCK, "clock") if kind in numbers}
    found: dict[str, dict[str, Tally]] = {}
    fuzzed: dict[str, fuzzing.Outcome] = {}
    call = f"nox -s faults -- {shlex.join(argv)}" if argv else "nox -s faults"

    def written() -> str:
        text = report(args.seed, found, fuzzed, call)
        if args.report is not None:
            args.report.write_text(text)
        return text

    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        if args.mutants:
            fuzzed = fuzzing.fuzz(Path(place) / "fuzzing", args.seed, args.mutants)
        for number, name in enumerate(args.commands):
            found[name] = measure(situations[name], Path(place) / str(number), args.seed, numbers)
            written()  # a run takes hours
    text = written()
    print(text)
    return int("## Lost" in text)


if __name__ == "__main__":
    sys.exit(main())
