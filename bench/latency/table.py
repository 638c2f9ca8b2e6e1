"""Writes the files of a latency table: Markdown for people, LaTeX for papers, CSV for programs, from records alone."""

from collections.abc import Sequence
from pathlib import Path

from bench.latency.records import LatencyPlan
from bench.latency.summary import BUSY, Middle, SizeTable, TimedRow, summarize_latency
from bench.methods.stages import COUNTED, STAGES
from bench.paper.tables import TABLES, paper_figures
from bench.provenance import machine_name
from bench.report.csvs import csv_text
from bench.report.document import DASH, Chapter, Document, Entry, Grid
from bench.report.latex import to_latex
from bench.report.markdown import to_markdown
from tsd.files import write_atomic

GIGA, MIB = 10**9, 2**20
MOST_NAMED = 6
"""Operators without a formula that the table names; the CSV has all of them."""


def write_latency_table(out: Path, plan: LatencyPlan) -> str:
    """Writes TABLE.md, TABLE.csv and TABLE.tex; returns the Markdown."""
    tables = summarize_latency(out, plan)
    document = lay_out(plan, tables)
    markdown = to_markdown(document)
    for ending, content in (("md", markdown), ("csv", to_csv(plan, tables)), ("tex", to_latex(document))):
        write_atomic(out / f"{plan.table}.{ending}", content.encode())
    return markdown


def lay_out(plan: LatencyPlan, tables: Sequence[SizeTable]) -> Document:
    """The document of a latency table."""
    chapters = [_chapter(plan, table) for table in tables]
    if plan.profile == "paper":
        chapters.append(_paper())
    remarks = [
        f"{row.row.display}: {remark}"
        for table in tables
        for row in table.rows
        if row.seconds and row.run
        for remark in row.run.provenance.get("remarks", ())
    ]
    lists = [("Remarks", tuple(dict.fromkeys(remarks)))] if remarks else []
    lists.append(("How it was measured", tuple(_evidence(plan, tables))))
    sizes = ", ".join(f"{size} x {size}" for size in plan.sizes)
    return Document(f"{plan.title}, x4 to {sizes} pixels", f"Profile `{plan.profile}`.", tuple(chapters), tuple(lists))


def _chapter(plan: LatencyPlan, table: SizeTable) -> Chapter:
    timed = [row for row in table.rows if row.seconds is not None]
    subject = f"Seconds per image, {table.size} x {table.size} pixels"
    notes = [f"{row.row.display} was not measured ({row.reasons[0]})." for row in table.rows if row.seconds is None]
    grids = [_headline(plan, table, timed, tuple(notes))]
    if timed:
        grids += [_stages(timed), _costs(timed)]
    return Chapter(f"{table.size} x {table.size} pixels", subject, tuple(grids))


def _headline(plan: LatencyPlan, table: SizeTable, timed: Sequence[TimedRow], notes: tuple[str, ...]) -> Grid:
    on_cpu, crowded = any(row.cpu_seconds for row in timed), any(map(_mark, timed))
    paper = table.size == 512 and any(row.row.paper_seconds is not None for row in timed)
    references = [(name, _reference_words(plan, name)) for name in plan.references]
    headers = ["Method", "Steps", "s/image", "95 %", "10–90 %", *(["CPU s"] if on_cpu else [])]
    headers += [f"× {words}" for _, words in references]
    headers += ["first call", *(["paper, A100"] if paper else [])]
    rows = []
    for row in timed:
        seconds = row.seconds
        assert seconds is not None
        cells = [row.row.display + _mark(row), DASH if row.row.steps is None else str(row.row.steps)]
        cells += [_number(seconds.value), _range(seconds.low, seconds.high), _range(seconds.p10, seconds.p90)]
        cells += [_number(row.cpu_seconds.value) if row.cpu_seconds else DASH] if on_cpu else []
        cells += [_ratio((row.cpu_ratios if crowded else row.ratios).get(name)) for name, _ in references]
        cells += [DASH if row.first is None else _number(row.first)]
        cells += [DASH if row.row.paper_seconds is None else f"{row.row.paper_seconds:.4f}"] if paper else []
        rows.append(tuple(map(Entry, cells)))
    legend = (
        "Medians of what the paper's protocol counts: tagger, text encoder, encode, denoise, decode; nothing of "
        "loading, resizing, colour and files. × is how many times as fast as that row, the median over rounds [its "
        f"95 % interval], {'in CPU seconds' if crowded else 'by the clock'}."
    )
    if crowded:
        legend += f" *: the clock shows more than {BUSY} times the CPU seconds, so others used the processor too."
    return Grid("", tuple(headers), tuple(rows), legend if rows else "", notes)


def _stages(timed: Sequence[TimedRow]) -> Grid:
    """Medians by stage: in CPU seconds where they are known, since the clock counts other processes too."""
    unit = "CPU seconds" if all(row.cpu_stages for row in timed) else "seconds"
    shown = [row.cpu_stages if unit == "CPU seconds" else row.stages for row in timed]
    names = [name for name in (*STAGES, "process") if any(name in stages for stages in shown)]
    rows = [
        (Entry(row.row.display), *(Entry(_number(stages[name]) if name in stages else DASH) for name in names))
        for row, stages in zip(timed, shown, strict=True)
    ]
    legend = f"The headline counts {', '.join(COUNTED)}. Of a network that is not taken apart all is `denoise`."
    return Grid(f"Where the time goes: medians of {unit} by stage", ("Method", *names), tuple(rows), legend)


def _costs(timed: Sequence[TimedRow]) -> Grid:
    memory = {
        key: name
        for key, name in (("allocated", "peak MiB"), ("reserved", "reserved MiB"), ("resident", "resident MiB"))
        if any((row.counted("memory") or {}).get(key) for row in timed)
    }
    headers = ("Method", "parameters, M", "adapters, M", "loaded, MiB", "GFLOP", "GMAC", "GFLOP/s", "of peak")
    rows = []
    for row in timed:
        flops, macs, share = row.total("flops"), row.total("macs"), row.share_of_peak
        base = row.cpu_seconds or row.seconds
        cells = [
            row.row.display,
            _scaled(row.counted("parameters"), 10**6, 1),
            _scaled(row.counted("adapters") or None, 10**6, 1),
            _scaled(row.counted("bytes"), MIB, 0),
            _scaled(flops, GIGA, 1),
            _scaled(macs, GIGA, 1),
            _scaled(flops and base and base.value and flops / base.value, GIGA, 0),
            DASH if share is None else f"{100 * share:.0f} %",
            *(_scaled((row.counted("memory") or {}).get(key), MIB, 0) for key in memory),
        ]
        rows.append(tuple(map(Entry, cells)))
    legend = (
        "GFLOP: matrix products, convolutions and attention, a multiply-add as two. GMAC: linear and convolution "
        "layers alone, as the published tables count, a multiply-add as one. GFLOP/s are per CPU second on a CPU."
    )
    return Grid("What an image takes", (*headers, *memory.values()), tuple(rows), legend)


def _paper() -> Chapter:
    figures = paper_figures(TABLES["table3"].paper)
    rows = tuple(tuple(Entry(row[key]) for key in ("method", "steps", "seconds")) for row in figures)
    subject = "The paper's own figures, on an A100 at 512 x 512, not measured here"
    return Chapter(subject, subject, (Grid("", ("Method", "Steps", "s/image"), rows),))


def _evidence(plan: LatencyPlan, tables: Sequence[SizeTable]) -> list[str]:
    timed = [row for table in tables for row in table.rows if row.seconds and row.run]
    runs = [row.run for row in timed if row.run]
    calls = sorted({row.seconds.n for row in timed if row.seconds})
    lines = []
    if calls:
        counts = str(calls[0]) if len(calls) == 1 else f"{calls[0]} to {calls[-1]}"
        lines.append(f"{counts} timed calls of each method, which took turns in one process, after warm-up calls.")
    settings = dict.fromkeys(_machine(run.settings) for run in runs)
    lines += [f"Machine: {text}" for text in settings]
    lines += dict.fromkeys(
        f"Peak: {run.counted['peak_flops_per_second'] / GIGA:.0f} GFLOP/s, {run.counted['peak_of']}"
        for run in runs
        if "peak_of" in run.counted
    )
    attention = dict.fromkeys(name for run in runs for name in run.counted.get("operations", {}).get("attention", ()))
    if attention:
        lines.append(f"Attention: {', '.join(name.strip('_') for name in attention)}")
    layouts = [(row.row.display, row.counted("channels_last")) for row in timed]
    last = [f"{display} ({', '.join(networks)})" for display, networks in layouts if networks]
    if last:
        lines.append(f"Channels-last kernels: {'; '.join(dict.fromkeys(last))}; all others in the default layout")
    uncounted = sorted({name for run in runs for name in run.counted.get("operations", {}).get("uncounted", {})})
    if uncounted:
        more = f" and {len(uncounted) - MOST_NAMED} more (in the CSV)" if len(uncounted) > MOST_NAMED else ""
        lines.append(f"No formula counts {', '.join(f'`{name}`' for name in uncounted[:MOST_NAMED])}{more}")
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in run.settings["versions"].items()) for run in runs
    )
    lines += [f"Versions: {text}" for text in versions]
    lines.append("Every number comes from the records of single calls beside this file (`records/`).")
    return lines


def _machine(settings: dict[str, object]) -> str:
    device = machine_name(settings)
    threads = "" if settings.get("accelerator") else f", {settings.get('threads')} thread(s)"
    power = f", power limit {settings['power.limit']}" if settings.get("power.limit") else ""
    compiled = ", compiled" if settings.get("compile") else ", not compiled"
    return f"{device}{threads}{power}, {settings.get('dtype')}{compiled}"


def to_csv(plan: LatencyPlan, tables: Sequence[SizeTable]) -> str:
    """One line per row and size, in full precision."""
    lines: list[dict[str, object]] = []
    for table in tables:
        for row in table.rows:
            line: dict[str, object] = {"size": table.size, "row": row.row.name, "display": row.row.display}
            line |= {"steps": row.row.steps, "paper_seconds": row.row.paper_seconds}
            line |= _columns("seconds", row.seconds) | _columns("cpu_seconds", row.cpu_seconds)
            line["first_call_seconds"] = row.first
            for name in plan.references:
                line |= _columns(f"times_{name}", row.ratios.get(name))
                line |= _columns(f"cpu_times_{name}", row.cpu_ratios.get(name))
            line |= {f"stage_{name}": seconds for name, seconds in row.stages.items()}
            line |= {f"cpu_stage_{name}": seconds for name, seconds in row.cpu_stages.items()}
            operations = row.counted("operations") or {}
            for unit in ("flops", "macs"):
                line[unit] = row.total(unit)
                line |= {f"{unit}_{stage}": count for stage, count in operations.get(unit, {}).items()}
            line["uncounted"] = " ".join(f"{name}:{n}" for name, n in operations.get("uncounted", {}).items())
            line["attention"] = " ".join(operations.get("attention", ()))
            line |= {key: row.counted(key) for key in ("parameters", "adapters", "bytes", "peak_flops_per_second")}
            line["share_of_peak"] = row.share_of_peak
            line |= {f"peak_{key}_bytes": value for key, value in (row.counted("memory") or {}).items()}
            if row.run:
                line["channels_last"] = " ".join(row.counted("channels_last") or ())
                line["machine"] = _machine(row.run.settings)
                line["remarks"] = " | ".join(row.run.provenance.get("remarks", ()))
            line["not_measured"] = " | ".join(row.reasons)
            lines.append(line)
    return csv_text(lines)


def _columns(name: str, value: Middle | None) -> dict[str, object]:
    value = value or Middle(float("nan"), 0)
    columns: dict[str, object] = {name: value.value if value.n else None, f"{name}_n": value.n}
    columns |= {f"{name}_ci95_low": value.low, f"{name}_ci95_high": value.high}
    return columns | {f"{name}_p10": value.p10, f"{name}_p90": value.p90}


def _reference_words(plan: LatencyPlan, name: str) -> str:
    row = next((row for row in plan.rows if row.name == name), None)
    return (row.display if row else name).removesuffix(", random weights")


def _mark(row: TimedRow) -> str:
    return " *" if (row.crowding or 1) > BUSY else ""


def _number(seconds: float) -> str:
    """Three digits that count."""
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def _range(low: float | None, high: float | None) -> str:
    return DASH if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _ratio(ratio: Middle | None) -> str:
    if ratio is None:
        return DASH
    interval = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.value:.2f}{interval}"


def _scaled(value: float | None, unit: int, decimals: int) -> str:
    return DASH if not value else f"{value / unit:,.{decimals}f}"
