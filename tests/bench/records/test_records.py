"""What is written to records is read back; what is damaged is said, or redone."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

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
    set_sha256,
    valid_scores,
    valid_set_score,
)
from tsd.errors import UserError
from tsd.files import write_atomic


def image(name: str, **changes) -> ImageRow:
    return replace(ImageRow(name, 7, "l" + name, "h" + name, "s" + name, 80, 64, 0.25, "env", None), **changes)


def score(name: str, **changes) -> ScoreRow:
    row = ScoreRow("psnr", name, 30.125, "s" + name, "h" + name, 1, "p", {"w.mat": "0a"}, {"torch": "2"}, None)
    return replace(row, **changes)


PLAN = Plan(
    table="table1",
    title="Table 1",
    profile="mini",
    seed=42,
    paper="table1.csv",
    reference="bicubic",
    testsets=[PlanSet("mini", "Mini", ["a", "b"], 2)],
    methods=[PlanMethod("bicubic", "Bicubic", None, {"mini": ["x"]})],
    metrics=[PlanMetric("psnr", "PSNR", "image", True, True, 2, "p", [])],
)
RUN = Restoration("bicubic", "mini", "m", 42, {"resize": {"a": -0.75}}, {"env": {"threads": 1}})


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "out")


def rows_file(records: Records) -> Path:
    return records.of("mini", "bicubic").folder / "images.jsonl"


def test_what_is_written_is_read_back(records: Records) -> None:
    failed = image("b", sr_sha256=None, width=None, height=None, seconds=None, error="ValueError: NaN — ä")
    records.write_plan(PLAN)
    records.of("mini", "bicubic").write_run(RUN)
    for row in (image("a"), failed):
        records.of("mini", "bicubic").add_image(row)
    records.of("mini", "bicubic").add_score(score("a"))
    assert records.read_plan("table1") == PLAN
    assert records.of("mini", "bicubic").run() == RUN
    assert records.of("mini", "bicubic").images() == {"a": image("a"), "b": failed}
    assert records.of("mini", "bicubic").scores("psnr") == {"a": score("a")}
    assert records.measured() == [("mini", "bicubic")]
    assert records.of("mini", "bicubic").metrics() == ["psnr"]


def test_nothing_is_there_before_something_is_written(records: Records) -> None:
    assert records.read_plan("table1") is None
    assert records.of("mini", "bicubic").run() is None
    assert records.of("mini", "bicubic").images() == {}
    assert records.measured() == []
    records.of("mini", "bicubic").finish(["a"])
    assert not records.out.exists()


def test_a_row_torn_by_a_kill_is_ignored_and_then_replaced(records: Records) -> None:
    records.of("mini", "bicubic").add_image(image("a"))
    whole = rows_file(records).read_bytes()
    for torn in (b'{"schema": 1, "na', b"{", json.dumps({"schema": 1}).encode()):
        rows_file(records).write_bytes(whole + torn)
        assert list(records.of("mini", "bicubic").images()) == ["a"]
    records.of("mini", "bicubic").add_image(image("b"))
    assert rows_file(records).read_bytes().startswith(whole + b'{"schema": 1, "name": "b"')
    assert list(records.of("mini", "bicubic").images()) == ["a", "b"]


def test_a_file_that_is_only_a_torn_row_is_empty(records: Records) -> None:
    rows_file(records).parent.mkdir(parents=True)
    rows_file(records).write_bytes(b'{"schema": 1, "name"')
    assert records.of("mini", "bicubic").images() == {}
    records.of("mini", "bicubic").add_image(image("a"))
    assert list(records.of("mini", "bicubic").images()) == ["a"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"not json", "not a record"),
        (b"[1]", "expected a JSON object"),
        (b'{"schema": 2}', "schema 2, this version reads schema 1"),
        (b'{"name": "a"}', "schema None"),
        (b'{"schema": 1, "name": "a"}', "has the keys"),
        (b"\x00\x00\x00", "not a record"),
    ],
)
def test_a_damaged_line_is_an_error_with_file_and_line(records: Records, line: bytes, says: str) -> None:
    records.of("mini", "bicubic").add_image(image("a"))
    rows_file(records).write_bytes(rows_file(records).read_bytes() + line + b"\n")
    with pytest.raises(RecordError, match=r"images\.jsonl, line 2") as error:
        records.of("mini", "bicubic").images()
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", 3), ("seed", "7"), ("seed", True), ("width", 1.5), ("seconds", "fast"), ("environment", None)],
)
def test_a_field_of_another_type_is_an_error_that_names_it(records: Records, field: str, value: object) -> None:
    records.of("mini", "bicubic").add_image(image("a"))
    row = json.loads(rows_file(records).read_text()) | {field: value}
    rows_file(records).write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match=f"`{field}` must be"):
        records.of("mini", "bicubic").images()


def test_a_row_has_a_result_or_an_error_never_both_or_neither(records: Records) -> None:
    records.of("mini", "bicubic").add_image(image("a", error="but it failed"))
    with pytest.raises(RecordError, match="either a result or an error"):
        records.of("mini", "bicubic").images()
    records.of("mini", "bicubic").add_score(score("a", value=None))
    with pytest.raises(RecordError, match="either a result or an error"):
        records.of("mini", "bicubic").scores("psnr")


def test_a_reason_names_no_folder_of_this_machine(records: Records) -> None:
    why = "could not be loaded: /home/me/store/hashes.json is damaged, see https://x.org/a/b"
    records.of("mini", "bicubic").add_image(
        image("a", sr_sha256=None, width=None, height=None, seconds=None, error=why)
    )
    records.of("mini", "bicubic").add_score(score("a", value=None, error=why))
    kept = "could not be loaded: …/hashes.json is damaged, see https://x.org/a/b"
    assert records.of("mini", "bicubic").images()["a"].error == kept
    assert [row.error for row in records.of("mini", "bicubic").scores("psnr").values()] == [kept]


def test_a_value_that_is_not_a_number_cannot_be_written(records: Records) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        records.of("mini", "bicubic").add_score(score("a", value=float("nan")))


@pytest.mark.parametrize("value", ["1e999", "-1e999"])
def test_a_value_beyond_all_numbers_is_not_read(records: Records, value: str) -> None:
    records.of("mini", "bicubic").add_score(score("a", value=25.5))
    path = records.of("mini", "bicubic").folder / "scores.psnr.jsonl"
    path.write_text(path.read_text().replace("25.5", value))
    with pytest.raises(RecordError, match="`value` must be float"):
        records.of("mini", "bicubic").scores("psnr")


def test_a_damaged_plan_or_run_is_an_error(records: Records) -> None:
    records.write_plan(PLAN)
    path = records.root / "table1.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RecordError, match="not JSON"):
        records.read_plan("table1")
    path.write_text('{"schema": 1, "methods": 3}')
    with pytest.raises(RecordError, match="must be a list"):
        records.read_plan("table1")


def test_finishing_keeps_the_last_row_of_each_image_in_the_order_of_the_test_set(records: Records) -> None:
    for row in (image("c"), image("a", seconds=9.0), image("x"), image("a")):
        records.of("mini", "bicubic").add_image(row)
    records.of("mini", "bicubic").finish(["a", "b", "c"])
    assert list(records.of("mini", "bicubic").images().values()) == [image("a"), image("c"), image("x")]
    assert len(rows_file(records).read_text().splitlines()) == 3


def test_old_records_are_moved_not_deleted(records: Records) -> None:
    for round_ in (1, 2):
        records.of("mini", "bicubic").write_run(RUN)
        records.of("mini", "bicubic").add_image(image("a"))
        aside = records.of("mini", "bicubic").set_aside()
        assert aside == records.out / "superseded" / "mini" / f"bicubic.{round_}"
        assert (aside / "images.jsonl").exists()
        assert records.of("mini", "bicubic").run() is None


@pytest.mark.parametrize("name", ["../etc", "a/b", "", ".hidden", "a b"])
def test_a_name_that_would_leave_the_folder_is_refused(records: Records, name: str) -> None:
    with pytest.raises(RecordError, match="cannot name a folder"):
        records.of("mini", name)


def test_a_second_process_is_refused_until_the_first_ends(records: Records) -> None:
    code = (
        "import sys; from pathlib import Path; from bench.records.records import Records\n"
        "with Records(Path(sys.argv[1])).lock(): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(records.out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another `bench` run"), records.lock():
            pass
        other.kill()
    code = "import os, sys; from pathlib import Path; from tsd.files import atomic_path\n"
    code += "with atomic_path(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(records.root / "run.json")])
    (leftover,) = records.root.glob(".run.*.tmp.json")
    with records.lock():
        assert not leftover.exists()


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_score_counts_for_its_images_and_protocol_alone() -> None:
    images = {"a": image("a"), "b": image("b", sr_sha256="changed"), "c": image("c")}
    rows = {name: score(name) for name in "abc"} | {"c": score("c", value=None, error="no")}
    assert list(valid_scores(rows, images, "p")) == ["a"]
    assert valid_scores(rows, images, "another protocol") == {}


def test_a_set_score_is_stale_when_any_image_or_the_number_changes() -> None:
    images = {"a": image("a"), "b": image("b")}
    row = score(WHOLE_SET, sr_sha256=set_sha256(images, ["a", "b"]), hr_sha256=None, n=2)
    assert valid_set_score({WHOLE_SET: row}, images, ["b", "a"], "p") == row
    assert valid_set_score({WHOLE_SET: row}, images, ["a"], "p") is None
    assert valid_set_score({WHOLE_SET: row}, images | {"b": image("b", sr_sha256="x")}, ["a", "b"], "p") is None
    assert valid_set_score({WHOLE_SET: row}, images | {"b": image("b", hr_sha256="x")}, ["a", "b"], "p") is None
    assert valid_set_score({WHOLE_SET: row}, images, ["a", "b", "c"], "p") is None
    assert valid_set_score({WHOLE_SET: row}, images, ["a", "b"], "q") is None
    assert valid_set_score({}, images, ["a", "b"], "p") is None


def test_records_of_schema_1_stay_readable() -> None:
    """The files under tests/golden/schema1 were written by version 0.1.0; every later version must read them."""
    records = Records(Path(__file__).parents[2] / "golden" / "schema1")
    assert records.measured() == [("mini", "bicubic")]
    assert records.read_plan("table1") == PLAN
    assert records.of("mini", "bicubic").run() == RUN
    assert records.of("mini", "bicubic").images() == {"a": image("a"), "b": image("b")}
    assert records.of("mini", "bicubic").scores("psnr") == {"a": score("a"), "b": score("b")}


def test_what_several_processes_write_is_read_together_and_merged_by_the_first(records: Records) -> None:
    other = Records(records.out, rank=2)
    records.of("mini", "bicubic").write_run(RUN)
    other.of("mini", "bicubic").write_run(replace(RUN, environments={"far": {"threads": 8}}))
    for writer, names in ((records, "ac"), (other, "bd")):
        for name in names:
            writer.of("mini", "bicubic").add_image(image(name, environment="far" if writer is other else "env"))
            writer.of("mini", "bicubic").add_score(score(name))
    folder = records.of("mini", "bicubic").folder
    parts = ["images.rank2.jsonl", "run.rank2.json", "scores.psnr.rank2.jsonl"]
    assert sorted(path.name for path in folder.glob("*.rank*")) == parts
    assert records.of("mini", "bicubic").images_bytes(2) == (folder / parts[0]).stat().st_size
    assert records.of("mini", "bicubic").scores_bytes("psnr", 3) == 0
    with open(folder / parts[0], "a") as torn:
        torn.write('{"schema": 1, "name": "e"')

    for reader in (records, other, Records(records.out)):
        assert sorted(reader.of("mini", "bicubic").images()) == list("abcd")
        assert sorted(reader.of("mini", "bicubic").scores("psnr")) == list("abcd")
        assert reader.of("mini", "bicubic").metrics() == ["psnr"]
        assert reader.measured() == [("mini", "bicubic")]
        run = reader.of("mini", "bicubic").run()
        assert run is not None
        assert run.environments == {"env": {"threads": 1}, "far": {"threads": 8}}

    records.of("mini", "bicubic").finish("abcd")
    records.of("mini", "bicubic").finish_scores("psnr", "abcd")
    assert not list(folder.glob("*.rank*"))
    assert list(records.of("mini", "bicubic").images()) == list("abcd")
    assert list(records.of("mini", "bicubic").scores("psnr")) == list("abcd")
    assert records.of("mini", "bicubic").run() == run


def test_a_later_row_of_another_process_replaces_an_error(records: Records) -> None:
    records.of("mini", "bicubic").add_image(image("a", sr_sha256=None, error="out of memory"))
    Records(records.out, rank=1).of("mini", "bicubic").add_image(image("a"))
    records.of("mini", "bicubic").finish("a")
    assert Records(records.out).of("mini", "bicubic").images() == {"a": image("a")}
    assert len(rows_file(records).read_text().splitlines()) == 1


def test_a_run_of_which_only_another_process_wrote_is_merged_all_the_same(records: Records) -> None:
    Records(records.out, rank=1).of("mini", "bicubic").add_image(image("b"))
    assert not rows_file(records).exists()
    records.of("mini", "bicubic").finish("b")
    assert list(records.of("mini", "bicubic").images()) == ["b"]
    assert [path.name for path in rows_file(records).parent.iterdir()] == ["images.jsonl"]


def test_the_first_process_holds_the_folder_for_all_of_its_run(records: Records) -> None:
    with records.lock(), Records(records.out, rank=1).lock():
        assert records.of("mini", "net").work_folder == records.out / "images" / ".work" / "mini" / "net"
        work = Records(records.out, rank=1).of("mini", "net").work_folder
        assert work == records.out / "images" / ".work" / "mini" / "net.rank1"
