"""Rows of several runs in one table: which stand together, which apart and why, and what stands beside each."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.records.lines import rewrite_lines
from bench.records.records import Records
from bench.records.schema import Publication, Rescored, values_sha256
from bench.report.summarize import mean_ci95
from bench.site.build import SiteRequest, build
from bench.site.collection import collect
from bench.site.leaderboard import Board, boards_of, to_csv
from tsd.errors import UserError

Change = Callable[[dict], None]


@pytest.fixture
def other(run: Path) -> Path:
    """A second measurement of the same run: the same images and values, other seconds, another machine."""
    found = shutil.copytree(run, run.parent / "other")
    for method in ("bicubic", "my-net"):
        edit_rows(found, method, "images.jsonl", lambda row: row.update(seconds=row["seconds"] * 2))
        edit_run(found, method, lambda content: content["environments"]["key"].update(processor="Another <CPU>"))
    return found


def edit_rows(run: Path, method: str, file: str, change: Change) -> None:
    path = run / "records" / "mini" / method / file
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
        del row["schema"]
    rewrite_lines(path, rows)


def edit_run(run: Path, method: str, change: Change) -> None:
    path = run / "records" / "mini" / method / "run.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_plan(run: Path, change: Change) -> None:
    path = run / "records" / "table1.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def board(*runs: Path) -> Board:
    (found,) = boards_of(collect(runs))
    return found


def test_one_run_needs_no_leaderboard_unless_it_was_published(run: Path) -> None:
    assert boards_of(collect([run])) == []
    Records(run).add_publication(Publication("2026-11-29", "Ada <b>", "lab/a", "0.1.0", False))
    assert [(row.by, row.published) for row in board(run).rows] == [("Ada <b>", "2026-11-29")] * 2


def test_the_same_measured_twice_stands_together_and_says_how_alike(run: Path, other: Path) -> None:
    found = board(run, other)
    assert [(row.run, row.display[:7]) for row in found.together] == [
        ("run", "Bicubic"), ("run", "My net "), ("other", "Bicubic"), ("other", "My net "),
    ]  # fmt: skip
    assert found.apart == ()
    assert found.rows[2].note == "also in run: 3 of 3 images have the same bytes"
    assert found.rows[2].machine == "Another <CPU>, fp32"
    assert found.rows[0].harness == "None"
    values = [row["value"] for row in map(json.loads, _lines(run, "my-net", "scores.psnr.jsonl"))]
    cell = found.rows[1].cells["psnr"]
    assert (cell.value, cell.low, cell.high) == mean_ci95(values)


def _lines(run: Path, method: str, file: str) -> list[str]:
    return (run / "records" / "mini" / method / file).read_text().splitlines()


def test_a_copy_is_no_second_measurement(run: Path) -> None:
    copy = shutil.copytree(run, run.parent / "copy")
    assert {row.apart for row in board(run, copy).apart} == {
        ("the records of run once more: a copy, not a second measurement",)
    }


def _other_protocol(run: Path) -> None:
    edit_plan(run, lambda plan: plan["metrics"][1].update(protocol="lpips vgg"))
    edit_rows(run, "my-net", "scores.lpips.jsonl", lambda row: row.update(protocol="lpips vgg"))


def _fewer_images(run: Path) -> None:
    edit_plan(run, lambda plan: plan["testsets"][0].update(names=["one", "two"]))


OTHERWISE: dict[str, tuple[Callable[[Path], None], str]] = {
    "settings": (
        lambda run: edit_run(run, "my-net", lambda content: content["provenance"]["settings"].update(note="other")),
        "settings.note: run '</script><script>window.hacked = 1</script>', other 'other'",
    ),
    "weights": (
        lambda run: edit_run(run, "my-net", lambda content: content["provenance"].update(weights={"net<b>.pth": "cd"})),
        "weights.net<b>.pth: run 'ab",
    ),
    "precision": (
        lambda run: edit_run(run, "my-net", lambda content: content["environments"]["key"].update(dtype="fp16")),
        "computed in fp16, not fp32",
    ),
    "seed": (lambda run: edit_run(run, "my-net", lambda content: content.update(seed=7)), "seed 7, not 42 as in run"),
    "protocol": (_other_protocol, "LPIPS by another protocol: lpips vgg; run: lpips alex"),
    "weights of a metric": (
        lambda run: edit_rows(run, "my-net", "scores.lpips.jsonl", lambda row: row.update(weights={"alex.pth": "0"})),
        "LPIPS with other weights of the metric than run",
    ),
    "images": (_fewer_images, "2 images, not the 3 of run"),
    "inputs": (
        lambda run: edit_rows(
            run, "my-net", "images.jsonl", lambda row: row["name"] == "one" and row.update(lr_sha256="0" * 64)
        ),
        "another input or ground truth of one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_moves_numbers_sets_a_row_apart(run: Path, other: Path, kind: str) -> None:
    change, expected = OTHERWISE[kind]
    change(other)
    (row,) = [row for row in board(run, other).apart if row.display.startswith("My net")]
    assert row.run == "other"
    assert len(row.apart) == 1
    assert row.apart[0].startswith(expected)
    assert row.cells["psnr"].rank is None


def test_runs_of_different_tables_share_a_leaderboard(run: Path, other: Path) -> None:
    path = other / "records" / "table1.json"
    path.write_text(path.read_text().replace('"table1"', '"table7"'))
    path.rename(path.with_name("table7.json"))
    assert len(board(run, other).together) == 4


def rescored(run: Path, metric: str, **changes) -> Rescored:
    """What a re-scoring that found every value again writes."""
    handle = Records(run).of("mini", "my-net")
    rows = handle.scores(metric)
    protocol = next(iter(rows.values())).protocol
    environment = {"bench": "0.1.0", "processor": "A <CPU>"}
    row = Rescored(
        metric, protocol, "2026-11-30", "Ada <b>", values_sha256(rows), 3, 3, 0.0, "one", 0.001, True, environment, {}
    )
    return replace(row, **changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ([{}], "✓ 1 of 2 metrics"),
        ([{}, {"metric": "lpips"}], "✓ all metrics"),
        ([{"n": 2}], "in part"),
        ([{"agrees": False, "largest": 0.3}], "✗ PSNR"),
        ([{"agrees": False}, {}], "✓ 1 of 2 metrics"),  # the newest counts
        ([{"values_sha256": "0"}], ""),
        ([], ""),
    ],
)
def test_the_mark_of_what_was_scored_again(run: Path, other: Path, changes: list[dict], text: str) -> None:
    for change in changes:
        row = rescored(run, change.pop("metric", "psnr"), **change)
        Records(run).of("mini", "my-net").add_rescoring(row)
    mark = board(run, other).rows[1].verified
    assert mark.text == text
    assert mark.differs == text.startswith("✗")
    if text:
        assert "by Ada <b>, on A <CPU>, bench 0.1.0" in mark.evidence
    else:
        assert ("changed since" in mark.evidence) == bool(changes)


def test_the_mark_goes_when_a_value_changes(run: Path, other: Path) -> None:
    Records(run).of("mini", "my-net").add_rescoring(rescored(run, "psnr"))
    edit_rows(run, "my-net", "scores.psnr.jsonl", lambda row: row.update(value=row["value"] + 1))
    assert board(run, other).rows[1].verified.text == ""


def test_the_page_has_the_leaderboard_first_and_its_rows_as_csv(run: Path, other: Path) -> None:
    OTHERWISE["seed"][0](other)
    request = SiteRequest((run, other), run.parent / "out", images=0, labels={other: "lab/<i>other"})
    page = build(request).read_text(encoding="utf-8")
    assert "lab/&lt;i&gt;other" in page
    assert "<i>other" not in page.partition("<script")[0]
    assert "seed 7, not 42 as in run" in page
    assert (run.parent / "out" / "records" / "lab--<i>other" / "table1.json").is_file()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    rows = list(csv.DictReader(io.StringIO(data["board"]["csv"])))
    assert [row["measured_otherwise"] for row in rows] == ["", "", "", "seed 7, not 42 as in run"]
    assert [row["psnr"] for row in rows][:2] == [str(row.cells["psnr"].value) for row in board(run, other).rows[:2]]
    assert to_csv(boards_of(collect([run, other]))).count("\n") == 5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("environments", {"key": {}}, r"other.*run\.json: environment `key` lacks accelerator"),
        ("provenance", {"remarks": 5}, "other: its records do not make the table table1"),
    ],
)
def test_records_of_another_program_are_refused_by_name(
    run: Path, other: Path, key: str, value: object, message: str
) -> None:
    edit_run(other, "my-net", lambda content: content.update({key: value}))
    with pytest.raises(UserError, match=message):
        collect([run, other])
    assert asdict(rescored(run, "psnr"))["n"] == 3
