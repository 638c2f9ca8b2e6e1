"""Averages, intervals, marks and reasons, on records written by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.records.records import Records
from bench.records.schema import (
    WHOLE_SET,
    ImageRow,
    Plan,
    PlanMethod,
    PlanMetric,
    PlanSet,
    RecordError,
    Restoration,
    ScoreRow,
    Verification,
    VerifiedMetric,
    set_sha256,
)
from bench.report.document import lay_out
from bench.report.markdown import to_markdown
from bench.report.summarize import SECONDS, Cell, mean_ci95, ranked, summarize

NAMES = ["a", "b", "c"]
PSNR = PlanMetric("psnr", "PSNR", "image", True, True, 2, "luma", [])
LPIPS = PlanMetric("lpips", "LPIPS", "image", True, False, 4, "alex", [])
FID = PlanMetric("fid", "FID", "set", True, False, 2, "inception", [])


def plan(methods: list[str], metrics: list[PlanMetric], names: list[str] = NAMES) -> Plan:
    return Plan(
        table="table1",
        title="Table 1",
        profile="mini",
        seed=42,
        paper=None,
        reference="bicubic",
        testsets=[PlanSet("mini", "Mini", names, 3)],
        methods=[PlanMethod(name, name.upper(), 1, {}) for name in methods],
        metrics=metrics,
    )


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def restored(records: Records, method: str, names: list[str] = NAMES, **changes) -> None:
    machine = {"processor": "CPU", "accelerator": None, "threads": 2, "dtype": "fp32", "versions": {"torch": "2.6"}}
    records.of("mini", method).write_run(Restoration(method, "mini", "m", 42, {}, {"e": machine}))
    for number, name in enumerate(names):
        row = ImageRow(name, 1, "l" + name, "h" + name, method + name, 8, 8, 0.5 + number, "e", None)
        records.of("mini", method).add_image(replace(row, **changes))


def scored(records: Records, method: str, metric: PlanMetric, values: list[float], **changes) -> None:
    for name, value in zip(NAMES, values, strict=False):
        row = ScoreRow(
            metric.name, name, value, method + name, "h" + name, 1, metric.protocol, {}, {"pyiqa": "0.1"}, None
        )
        records.of("mini", method).add_score(replace(row, **changes))


def cell(records: Records, plan: Plan, method: str, metric: str) -> Cell:
    (section,) = summarize(records, plan).sections
    (row,) = [row for row in section.rows if row.method == method]
    return row.cells[metric]


def test_the_interval_is_students_t() -> None:
    values = list(np.random.default_rng(0).normal(27, 3, 12))
    mean, low, high = mean_ci95(values)
    expected = stats.t.interval(0.95, 11, loc=np.mean(values), scale=stats.sem(values))
    assert mean == pytest.approx(np.mean(values), rel=1e-12)
    assert (low, high) == pytest.approx(expected, rel=1e-12)
    assert mean_ci95([3.0]) == (3.0, None, None)


def test_a_mean_does_not_depend_on_the_order_of_images() -> None:
    values = [*np.random.default_rng(1).normal(0, 1e9, 50), 1e-9]
    assert mean_ci95(values) == mean_ci95(values[::-1])


def test_a_cell_is_the_mean_over_exactly_the_planned_images(records: Records) -> None:
    restored(records, "bicubic")
    scored(records, "bicubic", PSNR, [20.0, 21.0, 25.0])
    found = cell(records, plan(["bicubic"], [PSNR]), "bicubic", "psnr")
    assert (found.value, found.n) == (22.0, 3)
    assert (found.low, found.high) == pytest.approx(mean_ci95([20.0, 21.0, 25.0])[1:])
    first = cell(records, plan(["bicubic"], [PSNR], ["a", "b"]), "bicubic", "psnr")
    assert (first.value, first.n) == (20.5, 2)
    seconds = cell(records, plan(["bicubic"], [PSNR]), "bicubic", SECONDS)
    assert (seconds.value, seconds.n) == (1.5, 3)


def test_one_missing_value_makes_a_dash_not_a_shorter_average(records: Records) -> None:
    restored(records, "bicubic")
    scored(records, "bicubic", PSNR, [20.0, 21.0])
    found = cell(records, plan(["bicubic"], [PSNR]), "bicubic", "psnr")
    assert (found.value, found.n) == (None, 0)
    assert found.reasons == ("PSNR of BICUBIC is not scored yet; `bench run` does the rest",)


@pytest.mark.parametrize("change", [{"protocol": "rgb"}, {"sr_sha256": "old"}, {"hr_sha256": "other"}])
def test_scores_of_other_images_or_another_protocol_do_not_count(records: Records, change: dict[str, str]) -> None:
    restored(records, "bicubic")
    scored(records, "bicubic", PSNR, [20.0, 21.0, 25.0], **change)
    assert cell(records, plan(["bicubic"], [PSNR]), "bicubic", "psnr").value is None


def test_reasons_say_what_is_missing(records: Records) -> None:
    missing = replace(LPIPS, missing=["LPIPS needs alexnet.pth at X", "LPIPS needs heads.pth at Y"])
    restored(records, "bicubic")
    scored(records, "bicubic", PSNR, [20.0, 21.0, 25.0])
    table = plan(["bicubic", "net", "partial"], [PSNR, missing, FID])
    table = replace(table, methods=[*table.methods[:1], replace(table.methods[1], missing={"mini": ["net.pth"]})])
    table = replace(table, methods=[*table.methods, PlanMethod("partial", "Partial", 1, {"other": ["x"]})])
    restored(records, "partial", ["a"])
    assert cell(records, table, "bicubic", "lpips").reasons == tuple(missing.missing)
    assert cell(records, table, "bicubic", "fid").reasons[0].startswith("FID of BICUBIC is not scored yet")
    assert cell(records, table, "net", "psnr").reasons == ("net.pth",)
    assert cell(records, table, "net", SECONDS).reasons == ("net.pth",)
    expected = ("Partial: 1 of 3 images restored; `bench run` does the rest",)
    assert cell(records, table, "partial", "psnr").reasons == expected


def test_recorded_values_show_even_where_the_weights_are_no_longer_there(records: Records) -> None:
    restored(records, "net")
    scored(records, "net", LPIPS, [0.25, 0.25, 0.25])
    table = plan(["net"], [replace(LPIPS, missing=["gone"])])
    table = replace(table, methods=[replace(table.methods[0], missing={"mini": ["gone"]})])
    assert cell(records, table, "net", "lpips").value == 0.25


def test_failures_are_counted_and_the_first_is_told(records: Records) -> None:
    restored(records, "bicubic", ["a"])
    failed = {"sr_sha256": None, "seconds": None, "error": "ValueError: NaN"}
    restored(records, "bicubic", ["b", "c"], **failed)
    scored(records, "bicubic", PSNR, [20.0])
    reasons = cell(records, plan(["bicubic"], [PSNR]), "bicubic", "psnr").reasons
    assert reasons == ("BICUBIC failed on 2 of 3 images, first on b: ValueError: NaN",)

    restored(records, "net")
    scored(records, "net", PSNR, [20.0, 20.0, 20.0])
    row = records.of("mini", "net").scores("psnr")["c"]
    records.of("mini", "net").add_score(replace(row, value=None, error="too small"))
    reasons = cell(records, plan(["net"], [PSNR]), "net", "psnr").reasons
    assert reasons == ("PSNR of NET failed on 1 of 3 images, first on c: too small",)


def test_published_images_have_no_time(records: Records) -> None:
    restored(records, "theirs", seconds=None)
    found = cell(records, plan(["theirs"], []), "theirs", SECONDS)
    assert found.reasons == ("THEIRS: published images, the time is not measured here",)


def test_what_a_method_remarks_stands_with_its_row_once_it_has_images(records: Records) -> None:
    for names, expected in ((["a", "b"], ()), (NAMES, ("no tagger", "unseeded"))):
        restored(records, "theirs", names)
        run = records.of("mini", "theirs").run()
        assert run is not None
        records.of("mini", "theirs").write_run(replace(run, provenance={"remarks": ["no tagger", "unseeded"]}))
        (section,) = summarize(records, plan(["theirs", "other"], [])).sections
        assert [row.remarks for row in section.rows] == [expected, ()]


def test_a_recorded_row_whose_method_cannot_run_here_says_so(records: Records) -> None:
    restored(records, "net")
    for missing, expected in ({}, ()), ({"mini": ["NET needs a file"]}, ("recorded elsewhere: it cannot run here",)):
        made = replace(plan([], []), methods=[PlanMethod("net", "NET", 1, missing)])
        ((row,),) = (section.rows for section in summarize(records, made).sections)
        assert (row.remarks, row.reasons) == (expected, ())


def test_without_a_ground_truth_a_reference_metric_is_a_dash_that_says_so(records: Records) -> None:
    restored(records, "net", hr_sha256=None)
    assert cell(records, plan(["net"], [PSNR]), "net", "psnr").reasons == (
        "PSNR needs a ground truth, and Mini has none",
    )
    lacking = replace(LPIPS, missing=["LPIPS needs a file"])
    assert cell(records, plan(["net"], [lacking]), "net", "lpips").reasons == (
        "LPIPS needs a ground truth, and Mini has none",
    ), "fetching the file would not help"


def test_a_set_level_value_has_n_and_no_interval(records: Records) -> None:
    restored(records, "net")
    digest = set_sha256(records.of("mini", "net").images(), NAMES)
    records.of("mini", "net").add_score(ScoreRow("fid", WHOLE_SET, 120.5, digest, None, 3, "inception", {}, {}, None))
    assert cell(records, plan(["net"], [FID]), "net", "fid") == Cell(120.5, 3)
    assert cell(records, plan(["net"], [FID], ["a", "b"]), "net", "fid").value is None


def marks(records: Records, metric: PlanMetric, *values: list[float], names: list[str] = NAMES) -> list[str]:
    """The marks of methods with these values per image: rank, and "=" where it is shared; "" for none.

    Three images are taken for enough.
    """
    methods = [f"m{number}" for number in range(len(values))]
    for method, own in zip(methods, values, strict=True):
        restored(records, method)
        scored(records, method, metric, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.summarize.FEWEST", len(NAMES))
        (section,) = summarize(records, plan([*methods, "none"], [metric], names)).sections
    assert {row.cells[SECONDS].rank for row in section.rows} == {None}
    cells = [row.cells[metric.name] for row in section.rows]
    assert (cells[-1].rank, cells[-1].tied) == (None, False)
    return [f"{cell.rank or ''}{'=' if cell.tied else ''}" for cell in cells[:-1]]


def test_best_and_second_best_are_marked_on_unrounded_values_in_the_metrics_direction(records: Records) -> None:
    values = [20.0, 21.0, 25.0]
    columns = [[value + step for value in values] for step in (0.0, 0.001, 0.002)]
    assert marks(records, PSNR, *columns) == ["", "2", "1"], "small against the spread, and sure"
    assert marks(records, LPIPS, *columns) == ["1", "2", ""]


def test_two_rows_are_ranked_and_one_is_not() -> None:
    values = {3: [1.0, 2.0, 3.0, 4.0], 5: [2.1, 3.0, 4.1, 5.0]}
    assert ranked(values, higher_is_better=True) == {5: (1, False), 3: (2, False)}
    assert ranked(values, higher_is_better=False) == {3: (1, False), 5: (2, False)}
    assert ranked({3: values[3]}, higher_is_better=True) == {}


def test_means_whose_paired_interval_includes_zero_are_tied_for_best_and_nobody_is_second(records: Records) -> None:
    best, close, worse = [22.0, 23.0, 24.0], [22.5, 23.2, 23.2], [20.0, 21.1, 21.9]
    assert mean_ci95([a - b for a, b in zip(close, best, strict=True)])[2] > 0 > np.mean(close) - np.mean(best)  # type: ignore[operator]
    assert marks(records, PSNR, close, best, worse) == ["1=", "1=", ""]
    assert marks(records, PSNR, best, best, worse) == ["1=", "1=", ""], "equal to the last digit"


def test_what_is_second_may_be_tied_as_well(records: Records) -> None:
    second, close = [22.0, 23.0, 24.0], [22.5, 23.2, 23.2]
    best = [value + 5 for value in second]
    assert marks(records, PSNR, close, best, second, [value - 5 for value in second]) == ["2=", "1", "2=", ""]


def test_a_row_is_tied_with_the_best_by_its_own_interval_not_by_its_place(records: Records) -> None:
    """The second of the means is surely worse than the best; the third scatters so much that it may not be."""
    best, second, third = [22.0, 23.0, 24.0], [21.9, 22.9, 23.9], [26.0, 18.0, 24.0]
    assert marks(records, PSNR, best, second, third) == ["1=", "", "1="]


def test_on_few_images_nothing_is_marked_and_no_interval_leaves_the_range(records: Records) -> None:
    ssim = PlanMetric("ssim", "SSIM", "image", True, True, 4, "luma", [])
    for method, psnrs, ssims in (
        ("bicubic", [20.0, 21.0, 25.0], [0.6, 0.61, 0.62]),
        ("net", [20.2, 21.2, 25.2], [0.52, 0.92, 0.97]),
    ):
        restored(records, method)
        scored(records, method, PSNR, psnrs)
        scored(records, method, ssim, ssims)
    (section,) = summarize(records, plan(["bicubic", "net"], [PSNR, ssim])).sections
    _, net = section.rows
    assert [net.cells[name].rank for name in ("psnr", "ssim")] == [None, None]
    assert net.cells["psnr"].low is not None
    mean, _, high = mean_ci95([0.52, 0.92, 0.97])
    assert high is not None
    assert high > 1
    assert net.cells["ssim"] == Cell(pytest.approx(mean), 3)
    assert net.differences["ssim"].low is not None
    text = to_markdown(lay_out(summarize(records, plan(["bicubic", "net"], [PSNR, ssim])), []))
    assert "| NET      | +0.20 [+0.20, +0.20] |" in text
    assert "On fewer than 6 images nothing is called better or worse." in text
    assert "—: the interval would leave the metric's range." in text
    assert not set("▲▼*") & set(text.replace("**", ""))


def test_without_an_interval_nothing_is_marked(records: Records) -> None:
    assert marks(records, PSNR, [20.0], [30.0], names=["a"]) == ["", ""], "a single image"
    for method, value in (("m0", 100.0), ("m1", 120.0)):
        digest = set_sha256(records.of("mini", method).images(), NAMES)
        records.of("mini", method).add_score(
            ScoreRow("fid", WHOLE_SET, value, digest, None, 3, "inception", {}, {}, None)
        )
        found = cell(records, plan(["m0", "m1"], [FID]), method, "fid")
        assert (found.value, found.rank) == (value, None), "a value of a whole set"


def test_a_row_says_why_it_has_no_images(records: Records) -> None:
    restored(records, "net")
    table = plan(["net", "gone", "begun"], [PSNR])
    net, gone, begun = table.methods
    table = replace(table, methods=[net, replace(gone, missing={"mini": ["why"]}), begun])
    (section,) = summarize(records, table).sections
    assert [row.reasons for row in section.rows] == [
        (), ("why",), ("BEGUN: 0 of 3 images restored; `bench run` does the rest",)
    ]  # fmt: skip


def test_a_single_value_is_not_called_the_best(records: Records) -> None:
    restored(records, "net")
    scored(records, "net", PSNR, [20.0, 20.0, 20.0])
    assert cell(records, plan(["net", "other"], [PSNR]), "net", "psnr").rank is None


def test_differences_are_paired_by_image(records: Records) -> None:
    base, own = [10.0, 30.0, 50.0], [11.0, 31.5, 50.5]
    for method, values in (("bicubic", base), ("net", own)):
        restored(records, method)
        scored(records, method, PSNR, values)
        scored(records, method, LPIPS, values if method == "net" else values[:2])
    (section,) = summarize(records, plan(["bicubic", "net"], [PSNR, LPIPS, FID])).sections
    reference, row = section.rows
    assert section.reference == "BICUBIC"
    assert reference.differences == {}
    assert list(row.differences) == ["psnr"], "LPIPS lacks an image in the reference row, FID has no images"
    found = row.differences["psnr"]
    interval = stats.ttest_rel(own, base).confidence_interval()
    assert found.value == pytest.approx(1.0)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_without_a_complete_reference_row_there_are_no_differences(records: Records) -> None:
    restored(records, "net")
    scored(records, "net", PSNR, [1.0, 2.0, 3.0])
    for methods in (["net"], ["bicubic", "net"]):
        (section,) = summarize(records, plan(methods, [PSNR])).sections
        assert section.reference is None
        assert all(row.differences == {} for row in section.rows)


def test_versions_and_machines_are_those_of_the_rows_that_count(records: Records) -> None:
    restored(records, "net")
    scored(records, "net", PSNR, [1.0, 2.0, 3.0])
    scored(records, "net", LPIPS, [1.0, 2.0, 3.0], protocol="old", versions={"pyiqa": "0.0.1"})
    restored(records, "theirs", seconds=None)
    table = summarize(records, plan(["net", "theirs"], [PSNR, LPIPS]))
    assert table.versions == ("pyiqa 0.1", "torch 2.6")
    assert table.machines == ("CPU, 2 threads, fp32",)
    run = records.of("mini", "net").run()
    assert run is not None
    machine = run.environments["e"] | {"accelerator": "H200"}
    records.of("mini", "net").write_run(
        replace(run, environments={"e": machine, "unused": machine | {"accelerator": "A100"}})
    )
    assert summarize(records, plan(["net"], [PSNR])).machines == ("H200, fp32",)


@pytest.mark.parametrize(
    ("changed", "found"),
    [({"threads": 2}, "lacks accelerator, dtype, processor, versions"), ({"versions": None}, "found None")],
)
def test_an_environment_that_says_too_little_is_refused(records: Records, changed: dict[str, Any], found: str) -> None:
    restored(records, "net")
    run = records.of("mini", "net").run()
    assert run is not None
    whole = run.environments["e"] if "versions" in changed else {}
    records.of("mini", "net").write_run(replace(run, environments={"e": whole | changed}))
    with pytest.raises(RecordError, match=rf"run\.json: .*`e` .*{found}"):
        summarize(records, plan(["net"], [PSNR]))


def test_what_was_verified_stands_in_one_sentence_for_each_verdict(records: Records) -> None:
    restored(records, "net")
    scored(records, "net", PSNR, [1.0, 2.0, 3.0])
    verdicts = [("psnr", "luma", 3, True), ("lpips", "alex", 3, True), ("fid", "inception", 9, False)]
    verdicts.append(("psnr", "another protocol", 3, True))
    found = [
        VerifiedMetric(name, name.upper(), "log", "a log", protocol, 3, total, 2e-5, "a", 1e-6, agrees)
        for name, protocol, total, agrees in verdicts
    ]
    records.write_verification(Verification("2026-01-02", {"processor": "a CPU"}, {}, found))
    assert summarize(records, plan(["net"], [PSNR, LPIPS, FID])).verified == (
        "Verified on 2026-01-02 on a CPU against a log, 3 images: PSNR (largest difference 2.0e-05), "
        "LPIPS (largest difference 2.0e-05)",
        "NOT verified on 2026-01-02 on a CPU against a log, the first 3 of 9 images: FID (largest difference 2.0e-05)",
    )


def test_without_timing_no_trace_of_time_is_left(records: Records) -> None:
    restored(records, "net")
    table = summarize(records, plan(["net"], [PSNR]), timing=False)
    assert [column.name for column in table.columns] == ["psnr"]
    assert table.machines == ()
    assert SECONDS not in table.sections[0].rows[0].cells


def test_a_mean_of_large_values_is_exact() -> None:
    assert mean_ci95([1e16, 1.0, -1e16])[0] == pytest.approx(1 / 3)
    assert math.isfinite(mean_ci95([0.0, 0.0])[1])  # type: ignore[arg-type]


def test_rows_on_the_same_base_are_set_against_each_other(records: Records) -> None:
    for method, values in (
        ("bicubic", [20.0, 21.0, 25.0]),
        ("ours", [21.0, 23.0, 24.0]),
        ("theirs", [21.5, 22.0, 23.0]),
    ):
        restored(records, method)
        scored(records, method, PSNR, values)
    restored(records, "unscored")
    pairs = [("ours", "theirs"), ("ours", "unscored"), ("ours", "no such row")]
    (section,) = summarize(records, plan(["bicubic", "ours", "theirs", "unscored"], [PSNR]), pairs=pairs).sections
    (pair,) = section.pairs
    assert (pair.method, pair.display, pair.against) == ("ours", "OURS", "THEIRS")
    mean, low, high = mean_ci95([-0.5, 1.0, 1.0])
    found = pair.differences["psnr"]
    assert (found.value, found.low, found.high, found.n) == (mean, low, high, 3)
