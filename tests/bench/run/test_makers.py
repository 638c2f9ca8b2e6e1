"""A method that is a process over a folder, image by image, by a real one that may misbehave."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from bench.methods import MethodSpec
from bench.methods.base import FolderRunner, nothing_missing
from bench.options import RunOptions
from bench.provenance import image_seed
from bench.records.records import MethodRecords, Records
from bench.records.schema import Plan, PlanMethod, PlanSet
from bench.report.summarize import SECONDS, summarize
from bench.run.report import StageReport
from bench.run.restore import restore_set
from bench.testsets.manifest import TestSet
from tsd.errors import UserError

# Enlarges every image of a folder, one after another, and says so; what is named after a colon it does to that image.
SCRIPT = """
import sys
from pathlib import Path
from PIL import Image

inputs, outputs, *faults = sys.argv[1:]
faults = dict(fault.split(":") for fault in faults)
for path in sorted(Path(inputs).iterdir()):
    fault = faults.get(path.stem)
    if fault == "exit":
        sys.exit(3)
    if fault == "skip":
        continue
    with Image.open(path) as image:
        size = (image.width * 4, image.height * (2 if fault == "small" else 4))
        image.resize(size).convert("RGBA" if fault == "alpha" else "RGB").save(Path(outputs, path.stem + "_x4.png"))
    print(path.stem, flush=True)
"""


@dataclass
class Enlarger:
    """A `FolderRunner` on the script above; `faults` are "NAME:FAULT", `says` becomes the error of the start."""

    faults: list[str] = field(default_factory=list)
    has_seed: bool = True
    says: str | None = None
    settings: dict[str, object] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    work: Path | None = None
    process: subprocess.Popen[str] | None = None

    def restore_folder(
        self, images: Mapping[str, Path], seeds: Mapping[str, int], work: Path
    ) -> Iterator[tuple[str, Path | str]]:
        self.asked, self.seeds, self.work = list(images), dict(seeds), work
        if self.says:
            raise UserError(self.says)
        for name in ("in", "out"):
            shutil.rmtree(work / name, ignore_errors=True)
            (work / name).mkdir()
        for name, path in images.items():
            (work / "in" / f"{name}{path.suffix}").write_bytes(path.read_bytes())
        command = [sys.executable, "-c", SCRIPT, work / "in", work / "out", *self.faults]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                yield line.strip(), work / "out" / f"{line.strip()}_x4.png"
            if self.process.wait():
                raise RuntimeError(f"the script ended with status {self.process.returncode}")
        finally:
            self.process.kill()
            self.process.wait()

    def provenance(self) -> dict[str, object]:
        return {"script": "enlarger", **self.settings}

    def environment(self) -> dict[str, object]:
        if self.process is None:
            raise UserError("nothing was started yet")
        return {"python": "3.8.20", "packages": {"torch": "1.13.1"}}

    def seeded(self) -> bool:
        return self.has_seed

    def seconds(self, name: str) -> float | None:
        return None

    def spec(self) -> MethodSpec:
        return MethodSpec("enlarger", "Enlarger", 1, "function", "", "", lambda options: self, nothing_missing)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "out")


def restore(records: Records, testset: TestSet, runner: FolderRunner, **more) -> StageReport:
    return restore_set(records, testset, runner.spec(), RunOptions(), **more)  # type: ignore[attr-defined]


def test_every_image_gets_a_png_and_a_row_with_the_environment_of_the_process(records: Records, tiny: TestSet) -> None:
    runner = Enlarger()
    assert isinstance(runner, FolderRunner)
    report = restore(records, tiny, runner)
    assert (report.made, report.kept, report.failed) == (3, 0, {})
    rows = records.of("mini", "enlarger").images()
    run = records.of("mini", "enlarger").run()
    assert run is not None
    assert list(rows) == ["photo0", "photo1", "photo2"]
    for image in tiny.images:
        row = rows[image.name]
        assert (row.seed, row.seconds) == (image_seed(42, image.name), None)
        assert (row.width, row.height, row.lr_sha256) == (80, 64, image.lr_sha256)
        assert run.environments[row.environment]["external"] == {"python": "3.8.20", "packages": {"torch": "1.13.1"}}
        with Image.open(records.of("mini", "enlarger").image_path(image.name)) as sr, Image.open(image.lr) as lr:
            assert sr.tobytes() == lr.resize((80, 64)).tobytes()
    assert runner.seeds == {image.name: image_seed(42, image.name) for image in tiny.images}
    assert runner.work == (records.out / "images" / ".work" / "mini" / "enlarger").absolute()
    assert str(records.out.absolute()) not in (records.of("mini", "enlarger").folder / "run.json").read_text()


def test_a_row_is_written_as_soon_as_its_image_is_there(records: Records, tiny: TestSet) -> None:
    seen: list[list[str]] = []

    class Watched(Enlarger):
        def restore_folder(self, images: Mapping[str, Path], seeds: Mapping[str, int], work: Path):
            for output in super().restore_folder(images, seeds, work):
                seen.append(list(records.of("mini", "enlarger").images()))
                yield output

    restore(records, tiny, Watched())
    assert seen == [[], ["photo0"], ["photo0", "photo1"]]


def test_a_method_without_a_seed_records_none(records: Records, tiny: TestSet) -> None:
    restore(records, tiny, Enlarger(has_seed=False))
    assert {row.seed for row in records.of("mini", "enlarger").images().values()} == {None}


@pytest.mark.parametrize(
    ("faults", "failed"),
    [
        (["photo1:skip"], {"photo1": "its process ended and left neither an image nor a reason"}),
        (["photo1:exit"], dict.fromkeys(["photo1", "photo2"], "RuntimeError: the script ended with status 3")),
        (["photo1:small"], {"photo1": "ValueError: wrong size: photo1_x4.png is 80x32, expected 80x64"}),
        (["photo0:alpha"], {"photo0": "ValueError: wrong format: photo0_x4.png is RGBA, expected 8-bit RGB"}),
    ],
)
def test_what_does_not_come_out_right_is_an_error_row_and_is_done_again(
    records: Records, tiny: TestSet, faults: list[str], failed: dict[str, str]
) -> None:
    report = restore(records, tiny, Enlarger(faults))
    assert (report.made, report.failed) == (3 - len(failed), failed)
    rows = records.of("mini", "enlarger").images()
    assert {name: row.error for name, row in rows.items() if row.error} == failed
    again = Enlarger()
    report = restore(records, tiny, again)
    assert (report.made, report.kept, report.failed) == (len(failed), 3 - len(failed), {})
    assert again.asked == list(failed), "only what is not there yet"


def test_what_cannot_be_started_is_the_reason_of_every_image(records: Records, tiny: TestSet) -> None:
    report = restore(records, tiny, Enlarger(says="no environment:\n uv is not installed"))
    assert report.failed == dict.fromkeys(["photo0", "photo1", "photo2"], "no environment: uv is not installed")
    run = records.of("mini", "enlarger").run()
    assert run is not None
    assert [content["external"] for content in run.environments.values()] == [{"unknown": "nothing was started yet"}]
    assert restore(records, tiny, Enlarger()).made == 3


@pytest.mark.parametrize("name", ["photo0", "elsewhere"])
def test_an_output_that_nobody_waits_for_ends_it(records: Records, tiny: TestSet, name: str) -> None:
    class Confused(Enlarger):
        def restore_folder(self, images: Mapping[str, Path], seeds: Mapping[str, int], work: Path):
            outputs = super().restore_folder(images, seeds, work)
            yield next(outputs)
            yield name, "x"

    report = restore(records, tiny, Confused())
    reason = f"ValueError: an output for {name!r}, which was not asked for or came before"
    assert (report.made, report.failed) == (1, {"photo1": reason, "photo2": reason})


def test_an_interrupt_passes_through_and_ends_the_process(
    records: Records, tiny: TestSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    runner = Enlarger()
    with monkeypatch.context() as patched:
        patched.setattr(MethodRecords, "add_image", interrupt)
        with pytest.raises(KeyboardInterrupt):
            restore(records, tiny, runner)
    assert runner.process is not None
    assert runner.process.returncode is not None, "waited for, not left behind"
    assert records.of("mini", "enlarger").images() == {}
    assert restore(records, tiny, Enlarger()).made == 3


def test_records_of_other_settings_are_refused_before_anything_starts(records: Records, tiny: TestSet) -> None:
    restore(records, tiny, Enlarger())
    other = Enlarger(settings={"steps": 4})
    with pytest.raises(UserError, match="steps: recorded None, now 4"):
        restore(records, tiny, other)
    assert other.process is None


def test_the_table_says_why_there_are_no_seconds_and_what_the_method_remarks(records: Records, tiny: TestSet) -> None:
    restore(records, tiny, Enlarger(settings={"remarks": ["unseeded"]}))
    names = [image.name for image in tiny.images]
    plan = Plan(
        "table1", "Table 1", "mini", 42, None, "bicubic", [PlanSet("mini", "Mini", names, 3)],
        [PlanMethod("enlarger", "Enlarger", 1, {})], [],
    )  # fmt: skip
    (row,) = summarize(records, plan).sections[0].rows
    assert row.remarks == ("unseeded",)
    assert row.cells[SECONDS].reasons == ("Enlarger: runs as a process of its own, which did not time its images",)


def test_work_of_a_killed_run_is_left_for_the_next(records: Records, tiny: TestSet) -> None:
    """Half-written files of ours are swept when a run begins; a folder that is called like one is not."""
    restore(records, tiny, Enlarger())
    folder = records.of("mini", "enlarger").work_folder / ".checkout.tmp"
    folder.mkdir()
    with records.lock():
        assert folder.is_dir()


def test_redo_takes_up_nothing_of_an_interrupted_run(records: Records, tiny: TestSet) -> None:
    """Its outputs are what is to be made again; its logs stay, since recorded reasons name them."""
    works = [Records(records.out, rank).of("mini", "enlarger").work_folder for rank in (0, 1)]
    for work in works:
        (work / "attempt-1" / "sr").mkdir(parents=True)
        (work / "attempt-1.log").touch()
    restore(records, tiny, Enlarger())
    assert all((work / "attempt-1").is_dir() for work in works)
    restore(records, tiny, Enlarger(), redo=True)
    assert not any((work / "attempt-1").exists() for work in works)
    assert all((work / "attempt-1.log").is_file() for work in works)
