"""Measures a latency table: loads all methods into one process and lets them take turns, round after round.

A clock on a shared machine drifts by more than methods differ. So every round calls each method once, A B C, A B C, and
ratios are of calls of the same round. The first call of a process stands apart; warm-up calls follow, in two of which
operations and memory are counted; then every call is a record. An interrupted measurement goes on where it stopped.
"""

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import bench
import tsd
from bench.ablation.code_version import code_version, without_words
from bench.device import resolve_device
from bench.errors import one_line
from bench.latency.clock import boundaries_of, first_stage, timed_call
from bench.latency.records import CallRow, LatencyPlan, LatencyRun, PlanRow, RowRecords, read_plan, write_plan
from bench.latency.request import AFTER_COMPILATION, LEAST_WARMUPS, ROUNDS, LatencyRequest
from bench.latency.rows import Row, paper_seconds, reference_names, rows_of
from bench.methods.base import FolderRunner, Method
from bench.methods.stages import Staged, observed
from bench.options import SCALE, RunOptions
from bench.paper.tables import TABLES
from bench.provenance import environment_key
from bench.records.records import Records
from bench.records.schema import StaleRecords
from bench.run.identity import differences
from bench.testsets.manifest import load_testset
from tsd.errors import UserError
from tsd.files import require_writable

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMED_CODE = ((tsd, ("model", "restore", "fast", "prompts")), (bench, ("methods", "latency/clock.py", "pixels.py")))
"""The code that the seconds are of."""


@dataclass
class Subject:
    """A loaded method at one size.

    Attributes:
        failed: why it can go no further at this size; empty while it can.
    """

    row: Row
    method: Method
    records: RowRecords
    failed: str = ""


@dataclass
class Session:
    """What all calls of this process share."""

    request: LatencyRequest
    options: RunOptions
    rounds: int
    warmups: int
    identifier: str = field(default_factory=lambda: uuid4().hex[:12])
    peak: tuple[float, str] | None = None

    def peak_rate(self) -> tuple[float, str]:
        from bench.latency.machine import peak_rate

        self.peak = self.peak or peak_rate(self.options.device, self.options.torch_dtype())
        return self.peak


def measure_latency(request: LatencyRequest, log: Callable[[str], None]) -> LatencyPlan:
    """Times what `request` asks for, as far as it is not recorded; returns the plan of the table.

    Raises:
        UserError: an unknown name, nothing that could be measured, or records of another identity.
    """
    require_writable(request.folder())
    rows = rows_of(request.profile, request.methods, request.random_weights)
    device = _device(request)
    kind = device.partition(":")[0]
    options = RunOptions(
        device,
        request.dtype,
        weights_root=request.weights_root,
        repo_dir=request.repo_dir,
        cache_root=request.cache_root,
    )
    options.require_dtype()
    warmups = LEAST_WARMUPS[kind] + (AFTER_COMPILATION if request.compile else 0)
    session = Session(request, options, request.rounds or ROUNDS[kind], request.warmups or warmups)
    missing = {row.name: row.reasons_missing(options) for row in rows}
    for row in rows:
        if missing[row.name]:
            log(f"left out: {row.display}: {missing[row.name][0]}")
    if all(missing.values()):
        listed = "\n".join(line for lines in missing.values() for line in lines)
        raise UserError(f"nothing can be timed here:\n{listed}\n--random-weights times shapes without weights")
    out = request.folder()
    with Records(out).lock():
        plan = _plan(request, session, rows, missing, read_plan(out, request.table))
        write_plan(out, plan)
        _set_threads(request.threads)
        able = [row for row in rows if not missing[row.name]]
        _redo(request, able, out, log)
        _measure_all(session, able, out, log)
    return plan


def _device(request: LatencyRequest) -> str:
    """The device; the real models on a CPU only when asked for.

    Raises:
        UserError: the profile is `paper`, the device was left open, and there is no GPU.
    """
    device = resolve_device(request.device)
    if request.profile == "paper" and request.device == "auto" and device == "cpu":
        raise UserError("--profile paper measures on a GPU, and torch finds none here; --device cpu asks for the CPU")
    return device


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _plan(
    request: LatencyRequest,
    session: Session,
    rows: Sequence[Row],
    missing: dict[str, list[str]],
    old: LatencyPlan | None,
) -> LatencyPlan:
    """The plan, with the rows and sizes that earlier calls measured into the folder.

    Raises:
        UserError: the folder is of another profile.
    """
    if old is not None and old.profile != request.profile:
        raise UserError(f"the folder holds the profile {old.profile}, now {request.profile}: choose another --out")
    new = [PlanRow(row.name, row.display, row.spec.steps, paper_seconds(row), missing[row.name]) for row in rows]
    listed = {row.name: row for row in [*(old.rows if old else ()), *new]}
    order = [row.name for row in rows_of(request.profile, None, False)]
    names = [name for name in order if name in listed] + [name for name in listed if name not in order]
    return LatencyPlan(
        table=request.table,
        title=TABLES[request.table].title,
        profile=request.profile,
        references=list(reference_names(request.profile)),
        sizes=sorted({*(old.sizes if old else ()), *request.output_sizes()}),
        rounds=session.rounds,
        rows=[listed[name] for name in names],
    )


def _redo(request: LatencyRequest, rows: Iterable[Row], out: Path, log: Callable[[str], None]) -> None:
    names = {row.name for row in rows}
    unknown = [name for name in request.redo if name.replace("@", "-") not in names | {"all"}]
    if unknown:
        raise UserError(f"--redo {unknown[0]}: not among the rows of this run ({', '.join(sorted(names))})")
    for name in names if "all" in request.redo else [name.replace("@", "-") for name in request.redo]:
        for size in request.output_sizes():
            records = RowRecords(out, name, size)
            if records.folder.exists():
                log(f"{name} at {size}: old records moved to {records.set_aside()}")


def _measure_all(session: Session, rows: Sequence[Row], out: Path, log: Callable[[str], None]) -> None:
    """Loads what has calls to make, then goes through the sizes."""
    sizes = session.request.output_sizes()
    needed = [
        row for row in rows if any(len(RowRecords(out, row.name, size).timed()) < session.rounds for size in sizes)
    ]
    if not needed:
        return
    partners = set(reference_names(session.request.profile))
    loaded: list[tuple[Row, Method | FolderRunner]] = []
    for row in rows:
        if row in needed or row.name in partners:
            method = _load(session, row, out, log)
            if method is not None:
                loaded.append((row, method))
    for size in sizes:
        lr, lr_sha256 = input_image(size)
        subjects = [
            Subject(row, method, RowRecords(out, row.name, size))
            for row, method in loaded
            if isinstance(method, Method)
        ]
        if any(len(subject.records.timed()) < session.rounds for subject in subjects):
            _take_turns(session, subjects, lr, lr_sha256)
        for row, method in loaded:
            if isinstance(method, FolderRunner):
                _time_process(session, row, method, RowRecords(out, row.name, size), lr, lr_sha256, log)


def _load(session: Session, row: Row, out: Path, log: Callable[[str], None]) -> Method | FolderRunner | None:
    """The method with its networks in memory; None, and a record of the reason, where that fails."""
    try:
        method = row.spec.load(row.options(session.options))
        if isinstance(method, Method):
            log(f"loading {row.display}")
            boundaries_of(method)
            return method
        if isinstance(method, FolderRunner):
            return method
        raise UserError("it has finished images only: there is nothing to time")
    except Exception as error:
        log(f"{row.display} could not be loaded: {one_line(error)}")
        for size in session.request.output_sizes():
            records = RowRecords(out, row.name, size)
            if records.run() is None:
                run = _run(session, row, size, {}, "")
                key, run = _with_environment(session, run)
                records.write_run(run)
                failed = CallRow(session.identifier, 0, key, {}, {}, f"could not be loaded: {one_line(error)}")
                records.add(failed)
        return None


def input_image(size: int) -> "tuple[Tensor, str]":
    """(1, 3, size / 4, size / 4) in [0, 1], from the first image of the mini test set, mirrored where it is smaller.

    Returns:
        The image, and a hash of its pixels.
    """
    import numpy as np
    import torch

    from bench.pixels import read_image

    pixels = (read_image(load_testset("mini").images[0].lr)[0] * 255).round().byte().numpy()
    side = size // SCALE
    grown = [(0, 0), *((0, max(side - length, 0)) for length in pixels.shape[1:])]
    pixels = np.pad(pixels, grown, mode="symmetric")[:, :side, :side]
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return torch.from_numpy(pixels.copy())[None].float() / 255, digest


def _settings(session: Session) -> dict[str, Any]:
    """What changes seconds besides the method."""
    from bench.latency.machine import environment

    content = environment(session.options.device, session.options.dtype)
    same = ("platform", "processor", "device", "accelerator", "threads", "dtype", "versions", "power.limit")
    return {
        **{key: content[key] for key in same if key in content},
        "compile": session.request.compile,
        "code": timed_code_version(),
    }


def timed_code_version() -> str:
    """One hash over the syntax of the code that restores and is timed."""
    files = {}
    for package, parts in TIMED_CODE:
        root = Path(package.__file__ or "").parent
        for part in parts:
            path = root / part
            for file in sorted(path.rglob("*.py")) if path.is_dir() else filter(Path.is_file, [path]):
                text = without_words(file.read_text(encoding="utf-8"))
                files[str(file.relative_to(root.parent))] = hashlib.sha256(text.encode()).hexdigest()
    return code_version(files)


def _run(session: Session, row: Row, size: int, provenance: dict[str, Any], lr_sha256: str) -> LatencyRun:
    content = json.loads(json.dumps({**provenance, "input": lr_sha256}))
    return LatencyRun(row.name, size, content, _settings(session), {}, {})


def _with_environment(session: Session, run: LatencyRun) -> tuple[str, LatencyRun]:
    from bench.latency.machine import environment

    content = environment(session.options.device, session.options.dtype)
    key = environment_key(content)
    return key, replace(run, environments={**run.environments, key: content})


def _begin(session: Session, subject: Subject, lr_sha256: str) -> str:
    """Continues the records or begins them; returns the key of this process's environment.

    Raises:
        StaleRecords: they are of another identity.
    """
    run = _run(session, subject.row, subject.records.size, subject.method.provenance(), lr_sha256)
    return _continue(session, subject.row, subject.records, run)


def _continue(session: Session, row: Row, records: RowRecords, run: LatencyRun) -> str:
    old = records.run()
    if old is not None and records.timed():
        changes = differences(old.identity(), run.identity())
        if changes:
            listed = "".join(f"\n  {change}" for change in changes[:8])
            raise StaleRecords(
                f"{row.name} at {records.size}: the calls recorded in {records.out} were made otherwise than they "
                f"would be now:{listed}\nSeconds of two kinds are never mixed. Add `--redo {row.name}` (or `--redo "
                "all`), or choose another --out."
            )
        run = replace(run, counted=old.counted, environments=old.environments)
    records.drop_errors()
    key, run = _with_environment(session, run)
    records.write_run(run)
    return key


def _take_turns(session: Session, subjects: list[Subject], lr: "Tensor", lr_sha256: str) -> None:
    """First calls, warm-ups and rounds of all subjects at one size, all of which are of this process."""
    import torch

    from tsd.console.progress import Progress

    keys = {subject.row.name: _begin(session, subject, lr_sha256) for subject in subjects}
    size = subjects[0].records.size

    def missing() -> int:
        """Rounds to be made for the methods that did not fail; one that always fails makes the others no work."""
        return max((session.rounds - len(s.records.timed()) for s in subjects if not s.failed), default=0)

    total = len(subjects) * (1 + session.warmups + missing())
    with torch.no_grad(), Progress(total=total, desc=f"{size} x {size}", unit="call") as bar:

        def each(number: int, turn: Callable[[Subject, int], None]) -> None:
            for subject in [*subjects[number % len(subjects) :], *subjects[: number % len(subjects)]]:
                bar.set_postfix_str(subject.row.name)
                if not subject.failed:
                    try:
                        turn(subject, number)
                    except Exception as error:
                        subject.failed = one_line(error)
                        key = keys[subject.row.name]
                        subject.records.add(CallRow(session.identifier, 0, key, {}, {}, subject.failed))
                        bar.write(f"{subject.row.display} at {size}: {subject.failed}", file=sys.stderr)
                bar.update()

        def record(subject: Subject, number: int) -> None:
            call = timed_call(subject.method, lr, session.options.device)
            key = keys[subject.row.name]
            subject.records.add(CallRow(session.identifier, number, key, call.stages, call.cpu_stages, None))

        def warm_up(subject: Subject, number: int) -> None:
            if number == 1 and not session.request.compile:
                _count(session, subject, lr)
            elif number == 2:
                _measure_memory(session, subject, lr)
            else:
                timed_call(subject.method, lr, session.options.device)

        if session.request.compile:
            for subject in subjects:
                _count(session, subject, lr)
                _compile(subject.method)
        each(0, record)
        rounds = missing()
        for number in range(1, session.warmups + 1 if rounds else 1):
            each(number, warm_up)
        for number in range(1, rounds + 1):
            each(number, record)


def _count(session: Session, subject: Subject, lr: "Tensor") -> None:
    """Counts operations and parameters in one call, unless that was done before."""
    from bench.latency.counts import count_operations, size_of

    run = subject.records.run()
    if run is None or "operations" in run.counted:
        timed_call(subject.method, lr, session.options.device)
        return
    boundaries = boundaries_of(subject.method)

    def work(begin: Callable[[str], None]) -> None:
        with observed(boundaries, begin):
            begin(first_stage(subject.method))
            subject.method.restore(lr, 0)

    operations = count_operations(_networks(subject.method), work)
    size = size_of(_networks(subject.method))
    rate, name = session.peak_rate()
    counted = {
        "parameters": size.parameters,
        "adapters": size.adapters,
        "bytes": size.bytes,
        "operations": {
            "flops": operations.flops,
            "macs": operations.macs,
            "uncounted": operations.uncounted,
            "attention": list(operations.attention),
        },
        "channels_last": _channels_last(subject.method),
        "peak_flops_per_second": rate,
        "peak_of": name,
    }
    subject.records.write_run(replace(run, counted={**run.counted, **counted}))


def _measure_memory(session: Session, subject: Subject, lr: "Tensor") -> None:
    from bench.latency.machine import peak_memory

    run = subject.records.run()
    if run is None or "memory" in run.counted:
        timed_call(subject.method, lr, session.options.device)
        return
    own = int(run.counted.get("bytes", 0))
    memory = peak_memory(lambda: subject.method.restore(lr, 0), session.options.device, own)
    subject.records.write_run(replace(run, counted={**run.counted, "memory": memory}))


def _networks(method: Method) -> "dict[str, nn.Module]":
    return dict(method.networks()) if isinstance(method, Staged) else {}


def _channels_last(method: Method) -> list[str]:
    """The networks whose kernels lie channels-last in memory."""
    import torch

    found = []
    for name, network in _networks(method).items():
        kernels = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[-1] > 1]
        last = [p for p in kernels if p.is_contiguous(memory_format=torch.channels_last)]
        if kernels and len(last) == len(kernels):
            found.append(name)
    return found


def _compile(method: Method) -> None:
    """Compiles the networks in place; of a VAE its two halves, which are what is called."""
    for network in _networks(method).values():
        halves = [getattr(network, name, None) for name in ("encoder", "decoder")]
        for part in [half for half in halves if half is not None] or [network]:
            part.compile(dynamic=False)


def _time_process(
    session: Session,
    row: Row,
    method: FolderRunner,
    records: RowRecords,
    lr: "Tensor",
    lr_sha256: str,
    log: Callable[[str], None],
) -> None:
    """Times a method in its own process, over copies of the input. It takes no turns, so its ratios are of medians."""
    from PIL import Image

    missing = session.rounds - len(records.timed())
    if missing <= 0:
        return
    key = _continue(session, row, records, _run(session, row, records.size, dict(method.provenance()), lr_sha256))
    with tempfile.TemporaryDirectory() as folder:
        pixels = (lr[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        images = {
            f"call-{number:04}": Path(folder) / f"call-{number:04}.png" for number in range(missing + session.warmups)
        }
        for path in images.values():
            Image.fromarray(pixels).save(path)
        started, failures = time.monotonic(), []
        times = {}
        for name, output in method.restore_folder(images, dict.fromkeys(images, 0), Path(folder) / "work"):
            failures += [output] if isinstance(output, str) else []
            seconds = method.seconds(name)
            if seconds is not None:
                times[name] = seconds
    log(f"{row.display} at {records.size}: {len(images)} calls in {time.monotonic() - started:.0f} s")
    counting = list(times.values())[session.warmups - 1 :]  # the first call has no time at all
    for number, seconds in enumerate(counting, start=1):
        records.add(CallRow(session.identifier, number, key, {"process": seconds}, {}, None))
    if not counting:
        reason = failures[0] if failures else "its process did not time its images"
        records.add(CallRow(session.identifier, 0, key, {}, {}, reason))
