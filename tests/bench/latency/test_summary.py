"""Statistics against closed forms, from records that are written like any others."""

import csv
import random
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from bench.latency.records import CallRow, LatencyPlan, LatencyRun, PlanRow, RowRecords, read_plan, write_plan
from bench.latency.summary import middle, summarize_latency
from bench.latency.table import to_csv, write_latency_table
from bench.records.schema import RecordError

SETTINGS = {
    "device": "cpu", "accelerator": None, "processor": "a processor", "threads": 1, "dtype": "fp32",
    "versions": {"torch": "2"},
}  # fmt: skip
COUNTED = {
    "parameters": 2_000_000, "adapters": 0, "bytes": 8_000_000, "peak_flops_per_second": 10e9, "peak_of": "matmul",
    "operations": {"flops": {"denoise": 10**9, "colour": 7}, "macs": {"denoise": 4 * 10**8}, "uncounted": {"gelu": 3},
                   "attention": ["_flash"]},
    "channels_last": ["vae"], "memory": {"resident": 2**20},
}  # fmt: skip


def plan_of(*names: str, references: tuple[str, ...] = ("a",)) -> LatencyPlan:
    rows = [PlanRow(name, name.upper(), 1, None, []) for name in names]
    return LatencyPlan("table3", "Table 3: computational complexity", "mini", list(references), [256], 3, rows)


def write(out: Path, name: str, seconds: list[float], session: str = "s", first: float | None = None) -> RowRecords:
    """Calls of the given seconds, each with three further seconds that do not count."""
    records = RowRecords(out, name, 256)
    records.write_run(LatencyRun(name, 256, {"remarks": ["a remark"]}, SETTINGS, COUNTED, {"e": {}}))
    values = [(0, first)] if first is not None else []
    for number, value in [*values, *enumerate(seconds, 1)]:
        stages = {"upsample": 1.0, "encode": 0.25 * value, "denoise": 0.75 * value, "png": 2.0}
        records.add(CallRow(session, number, "e", stages, {"denoise": value / 2, "png": 1.0}, None))
    return records


def test_middle_is_the_median_with_its_interval() -> None:
    values = [random.Random(1).gauss(5, 1) for _ in range(41)]
    found = middle(values)
    assert found.value == median(values)
    assert found.low is not None
    assert found.high is not None
    ordered = sorted(values)
    # The interval from order statistics: ranks 14 and 28 of 41 hold the median with 95 %.
    assert found.low == pytest.approx(ordered[13], abs=0.25)
    assert found.high == pytest.approx(ordered[27], abs=0.25)
    assert found.p10 == ordered[4]
    assert found.p90 == ordered[36]
    assert middle(values) == found
    assert middle([2.0]).low is None
    assert (middle([1.0, 5.0]).low, middle([1.0, 5.0]).high) == (1.0, 5.0)  # every value may be drawn


def test_ratios_are_of_calls_of_the_same_round(tmp_path: Path) -> None:
    drift = [1.0, 9.0, 2.0, 30.0, 4.0]
    write(tmp_path, "a", [2 * x for x in drift], first=99.0)
    write(tmp_path, "b", drift)
    write(tmp_path, "c", [5.0], session="another")
    (table,) = summarize_latency(tmp_path, plan_of("a", "b", "c", "d"))
    a, b, c, d = table.rows
    assert a.seconds is not None
    assert a.seconds.value == 8.0  # neither upsampling nor the PNG
    assert a.first == 99.0
    assert (b.ratios["a"].value, b.ratios["a"].low, b.ratios["a"].high, b.ratios["a"].n) == (2.0, 2.0, 2.0, 5)
    assert a.ratios["a"].value == 1.0
    assert c.ratios["a"].value == 8.0 / 5.0
    assert c.ratios["a"].low is None
    assert "a" not in c.cpu_ratios
    assert d.reasons == ("not timed yet; `bench latency` does it",)
    assert b.total("flops") == 10**9
    assert b.crowding == pytest.approx(2.0)
    assert b.share_of_peak == pytest.approx(10**9 / 2.0 / 10e9)


def test_the_files_say_what_counts(tmp_path: Path) -> None:
    write(tmp_path, "a", [2.0, 4.0, 6.0])
    write(tmp_path, "b", [1.0, 2.0, 3.0])
    plan = plan_of("a", "b", "c")
    plan = replace(plan, rows=[*plan.rows[:2], replace(plan.rows[2], missing=["C needs a GPU"])])
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path, "table3") == plan
    markdown = write_latency_table(tmp_path, plan)
    assert "2.00 [2.00, 2.00]" in markdown
    assert "C was not measured (C needs a GPU)." in markdown
    assert "B: a remark" in markdown
    assert "No formula counts `gelu`" in markdown
    assert (tmp_path / "table3.tex").read_text().count(r"\begin{table}") == 3
    with open(tmp_path / "table3.csv", newline="") as file:
        _, cells, absent = csv.DictReader(file)
    assert absent["not_measured"] == "C needs a GPU"
    assert (cells["row"], cells["seconds"], cells["times_a"], cells["flops"]) == ("b", "2.0", "2.0", "1000000000")
    assert to_csv(plan, summarize_latency(tmp_path, plan)) == (tmp_path / "table3.csv").read_text()


def test_a_torn_line_is_work_to_be_done_again_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    records = write(tmp_path, "a", [1.0, 2.0])
    path = records.folder / "calls.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert [row.seconds for row in records.timed()] == [1.0]
    write(tmp_path, "a", [3.0], session="t")
    assert [row.seconds for row in records.timed()] == [1.0, 3.0]
    path.write_bytes(b'{"schema": 1, "session": 3}\n' + whole)
    with pytest.raises(RecordError, match=r"calls.jsonl, line 1: a CallRow has the keys"):
        records.calls()
