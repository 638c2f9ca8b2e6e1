"""Records of timings: what was timed, on what, and every call.

Under the output folder:

    records/table3.json                          the plan of the table: its rows, sizes and rounds
    records/latency/<row>/<size>/run.json        method, settings, machine and code, with what was counted once
    records/latency/<row>/<size>/calls.jsonl     one line per timed call, and per first call of a process
    superseded/latency/<row>-<size>.<number>/           records moved aside by `--redo`

Seconds of other weights, settings, machines or code are never mixed: all of these are the identity of the records. The
lines obey the rules of bench/records/lines.py.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import without_paths
from bench.latency.clock import counted_seconds
from bench.records.lines import append_line, read_lines, read_object, rewrite_lines, set_aside, write_object
from bench.records.schema import DESCRIPTIONS, RecordError, check_environments, from_json, list_from_json


@dataclass(frozen=True)
class PlanRow:
    """A row of the table. `missing` says what kept it from being measured, one line per cause."""

    name: str
    display: str
    steps: int | None
    paper_seconds: float | None
    missing: list[str]


@dataclass(frozen=True)
class LatencyPlan:
    """What the table consists of.

    Attributes:
        references: names of the rows that ratios refer to.
        sizes: sides of the outputs in pixels.
        rounds: how many timed calls were asked for.
    """

    table: str
    title: str
    profile: str
    references: list[str]
    sizes: list[int]
    rounds: int
    rows: list[PlanRow]


@dataclass(frozen=True)
class LatencyRun:
    """What was timed at one size.

    Attributes:
        provenance: the method's statement of its weights and settings.
        settings: everything else that changes seconds: device, machine, threads, precision, versions, code.
        counted: what was counted once: parameters, bytes, operations, memory, the machine's peak rate.
        environments: of the processes that added calls, by key.
    """

    row: str
    size: int
    provenance: dict[str, Any]
    settings: dict[str, Any]
    counted: dict[str, Any]
    environments: dict[str, dict[str, Any]]

    def identity(self) -> dict[str, Any]:
        provenance = {key: value for key, value in self.provenance.items() if key not in DESCRIPTIONS}
        return {"row": self.row, "size": self.size, **provenance, "settings": self.settings}


@dataclass(frozen=True)
class CallRow:
    """One call, or the reason why it failed.

    Attributes:
        session: of the process; calls of one session and round follow one another, so that their ratios count.
        round: from 1; 0 is the first call of the process, which counts for nothing but is shown.
        environment: key into `LatencyRun.environments`.
        stages: seconds by stage; of a method's own process the stage `process`, which is what its card says.
        cpu_stages: CPU seconds of all threads by stage; empty on a GPU and for a method's own process.
        error: one line; None on success.
    """

    session: str
    round: int
    environment: str
    stages: dict[str, float]
    cpu_stages: dict[str, float]
    error: str | None

    @property
    def key(self) -> tuple[str, int]:
        return self.session, self.round

    @property
    def seconds(self) -> float:
        """What the paper's protocol counts."""
        return self.stages.get("process", 0.0) + counted_seconds(self.stages)

    @property
    def cpu_seconds(self) -> float | None:
        """The same in CPU seconds; None where they are not known."""
        return counted_seconds(self.cpu_stages) if self.cpu_stages else None


@dataclass(frozen=True)
class RowRecords:
    """The records of one row at one size, which need not exist."""

    out: Path
    row: str
    size: int

    @property
    def folder(self) -> Path:
        return self.out / "records" / "latency" / self.row / str(self.size)

    def run(self) -> LatencyRun | None:
        path = self.folder / "run.json"
        if not path.exists():
            return None
        run = from_json(LatencyRun, read_object(path), path)
        check_environments({"settings": run.settings}, path)
        return run

    def write_run(self, run: LatencyRun) -> None:
        write_object(self.folder / "run.json", asdict(run))

    def calls(self) -> dict[tuple[str, int], CallRow]:
        """The last row of every call, in the order in which they were made.

        Raises:
            RecordError: a line is no call, or has neither stages nor an error.
        """
        path = self.folder / "calls.jsonl"
        rows: dict[tuple[str, int], CallRow] = {}
        for raw, where in read_lines(path) if path.exists() else ():
            row = from_json(CallRow, raw, where)
            if (row.error is None) != bool(row.stages):
                raise RecordError(f"{where}: a call has either stages or an error")
            rows[row.key] = row
        return rows

    def timed(self) -> list[CallRow]:
        """The calls that count."""
        return [row for row in self.calls().values() if row.round > 0 and row.error is None]

    def add(self, row: CallRow) -> None:
        """Appends a call."""
        error = None if row.error is None else without_paths(row.error)
        append_line(self.folder / "calls.jsonl", {**asdict(row), "error": error})

    def drop_errors(self) -> None:
        """Forgets failed calls, so that they are tried again."""
        calls = self.calls()
        if any(row.error is not None for row in calls.values()):
            rewrite_lines(self.folder / "calls.jsonl", [asdict(row) for row in calls.values() if row.error is None])

    def set_aside(self) -> Path:
        """Moves the records to `superseded/latency/` and returns their new folder."""
        return set_aside(self.folder, self.out / "superseded" / "latency", f"{self.row}-{self.size}")


def write_plan(out: Path, plan: LatencyPlan) -> None:
    write_object(out / "records" / f"{plan.table}.json", asdict(plan))


def read_plan(out: Path, table: str) -> LatencyPlan | None:
    """The plan of a folder of timings; None where there is none.

    Raises:
        RecordError: a file that is no such plan.
    """
    path = out / "records" / f"{table}.json"
    if not path.exists():
        return None
    raw = read_object(path)
    raw["rows"] = list_from_json(PlanRow, raw, "rows", path)
    return from_json(LatencyPlan, raw, path)
