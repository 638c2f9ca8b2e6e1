"""Stage 1 (restore, makers, pixels) on three small images, with real methods and ones that go wrong."""

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.methods import METHODS, MethodSpec, get_method
from bench.methods.base import nothing_missing
from bench.options import RunOptions
from bench.pixels import checked_pixels, read_image
from bench.provenance import image_seed
from bench.records.records import Records
from bench.records.schema import StaleRecords
from bench.run.report import StageReport
from bench.run.restore import restore_set
from bench.testsets.manifest import TestSet, load_testset
from tsd.errors import UserError


@dataclass
class Scripted:
    """A method that does what a test wants, and remembers its seeds."""

    function: Callable[[torch.Tensor, int], object]
    settings: dict[str, object] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)

    def restore(self, lr: torch.Tensor, seed: int) -> torch.Tensor:
        self.seeds.append(seed)
        return self.function(lr, seed)  # type: ignore[return-value]

    def provenance(self) -> dict[str, object]:
        return self.settings

    def spec(self) -> MethodSpec:
        return MethodSpec("scripted", "Scripted", 1, "function", "", "", lambda options: self, nothing_missing)


def enlarge(lr: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "out")


def restore(
    records: Records, testset: TestSet, spec: MethodSpec, lines: list[str] | None = None, seed: int = 42, **more
) -> StageReport:
    log = (lines if lines is not None else []).append
    return restore_set(records, testset, spec, RunOptions(seed=seed), log=log, **more)


def test_every_image_gets_a_png_and_a_row_that_proves_it(records: Records, tiny: TestSet) -> None:
    report = restore(records, tiny, METHODS["bicubic"])
    assert (report.made, report.kept, report.failed) == (3, 0, {})
    rows = records.of("mini", "bicubic").images()
    assert list(rows) == ["photo0", "photo1", "photo2"]
    run = records.of("mini", "bicubic").run()
    assert run is not None
    for image in tiny.images:
        row, path = rows[image.name], records.of("mini", "bicubic").image_path(image.name)
        assert row.sr_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row.lr_sha256, row.hr_sha256) == (image.lr_sha256, image.hr_sha256)
        assert (row.width, row.height, row.seed) == (80, 64, image_seed(42, image.name))
        assert row.seconds is not None
        assert row.seconds > 0
        assert run.environments[row.environment]["device"] == "cpu"
    assert (run.seed, run.manifest_sha256) == (42, tiny.manifest_sha256)
    assert run.provenance == METHODS["bicubic"].load(RunOptions()).provenance()


def test_the_png_is_the_output_clamped_and_rounded_once(records: Records, tiny: TestSet) -> None:
    def overshoot(lr: torch.Tensor, seed: int) -> torch.Tensor:
        return enlarge(lr) * 1.2 - 0.1

    restore(records, tiny, Scripted(overshoot).spec())
    lr = read_image(tiny.images[0].lr).numpy()[0].transpose(1, 2, 0)
    expected = np.rint(np.clip(lr.astype(np.float32) * np.float32(1.2) - np.float32(0.1), 0, 1) * 255)
    with Image.open(records.of("mini", "scripted").image_path("photo0")) as image:
        assert image.mode == "RGB"
        written = np.asarray(image)
    assert np.array_equal(written[::4, ::4], expected.astype(np.uint8))


def test_reading_gives_the_pixels_of_the_file_divided_by_255(tiny: TestSet) -> None:
    tensor = read_image(tiny.images[1].lr)
    assert (tensor.shape, tensor.dtype) == ((1, 3, 16, 20), torch.float32)
    with Image.open(tiny.images[1].lr) as image:
        assert np.array_equal((tensor[0].permute(1, 2, 0) * 255).round().numpy(), np.asarray(image))


def test_a_warm_up_comes_first_and_the_seed_is_that_of_the_image(records: Records, tiny: TestSet) -> None:
    method = Scripted(enlarge)
    restore(records, tiny, method.spec())
    seeds = [image_seed(42, image.name) for image in tiny.images]
    assert method.seeds == [seeds[0], *seeds]


def test_a_second_run_restores_nothing_and_changes_no_byte(records: Records, tiny: TestSet) -> None:
    method = Scripted(enlarge)
    restore(records, tiny, method.spec())
    before = {path: path.read_bytes() for path in records.out.rglob("*") if path.is_file()}
    method.seeds.clear()
    report = restore(records, tiny, method.spec())
    assert (report.kept, report.made, method.seeds) == (3, 0, [])
    assert before == {path: path.read_bytes() for path in records.out.rglob("*") if path.is_file()}


def test_more_images_of_the_set_are_added_to_those_that_are_there(records: Records, datasets: Path) -> None:
    method = Scripted(enlarge)
    restore(records, load_testset("mini", limit=1), method.spec())
    method.seeds.clear()
    report = restore(records, load_testset("mini"), method.spec())
    assert (report.kept, report.made) == (1, 2)
    assert image_seed(42, "photo0") not in method.seeds


def test_images_absent_or_changed_on_disk_are_restored_again_and_said_in_one_line(
    records: Records, tiny: TestSet
) -> None:
    restore(records, tiny, METHODS["lanczos"])
    path = records.of("mini", "lanczos").image_path("photo1")
    good = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(good[:50])):
        damage()
        said: list[str] = []
        report = restore(records, tiny, METHODS["lanczos"], said)
        assert (report.kept, report.made) == (2, 1)
        assert said == ["lanczos on mini: 1 recorded images are not on disk as recorded, restored again"]
        assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda lr, seed: lr, "restore returned (1, 3, 16, 20), expected a tensor of shape (1, 3, 64, 80)"),
        (lambda lr, seed: enlarge(lr)[0], "expected a tensor of shape"),
        (lambda lr, seed: enlarge(lr).numpy(), "restore returned ndarray"),
        (lambda lr, seed: (enlarge(lr) * 255).byte(), "restore returned torch.uint8"),
        (lambda lr, seed: enlarge(lr) * 255, "expected [0, 1]"),
        (lambda lr, seed: enlarge(lr) * 2 - 1, "restore returned values from -0."),
        (lambda lr, seed: enlarge(lr) / 0, "NaN or infinite"),
        (lambda lr, seed: None, "restore returned NoneType"),
        (lambda lr, seed: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_an_output_that_breaks_the_contract_is_an_error_row(
    records: Records, tiny: TestSet, output: Callable, says: str
) -> None:
    report = restore(records, tiny, Scripted(output).spec())
    rows = records.of("mini", "scripted").images()
    assert list(report.failed) == list(rows) == ["photo0", "photo1", "photo2"]
    for row in rows.values():
        assert row.error is not None
        assert says in row.error
        assert (row.sr_sha256, row.seconds) == (None, None)
    assert not list(records.out.rglob("*.png"))


def test_one_failing_image_costs_itself_alone_and_is_tried_again(records: Records, tiny: TestSet) -> None:
    broken = {image_seed(42, "photo1")}

    def sometimes(lr: torch.Tensor, seed: int) -> torch.Tensor:
        if seed in broken:
            raise RuntimeError("out of memory\nat line 3")
        return enlarge(lr)

    method = Scripted(sometimes)
    report = restore(records, tiny, method.spec())
    assert (report.made, report.failed) == (2, {"photo1": "RuntimeError: out of memory at line 3"})
    broken.clear()
    report = restore(records, tiny, method.spec())
    assert (report.kept, report.made, report.failed) == (2, 1, {})
    assert [row.error for row in records.of("mini", "scripted").images().values()] == [None] * 3


def test_a_method_that_cannot_be_loaded_is_an_error_row_per_image(records: Records, tiny: TestSet) -> None:
    def load(options: RunOptions) -> Scripted:
        raise UserError("weights.pth has another sha256:\n  expected 12")

    spec = replace(Scripted(enlarge).spec(), load=load)
    report = restore(records, tiny, spec)
    reason = "could not be loaded: weights.pth has another sha256: expected 12"
    assert report.failed == dict.fromkeys(["photo0", "photo1", "photo2"], reason)
    assert {row.error for row in records.of("mini", "scripted").images().values()} == {reason}
    # Once it loads, its rows replace the errors, whatever the settings are.
    assert restore(records, tiny, Scripted(enlarge, {"a": 1}).spec()).made == 3
    # And a later failure to load leaves results alone.
    assert restore(records, tiny, spec).kept == 3
    assert records.of("mini", "scripted").run().provenance == {"a": 1}  # type: ignore[union-attr]


def test_the_reason_of_an_error_is_recorded_without_this_machines_paths(
    records: Records, tiny: TestSet, tmp_path: Path
) -> None:
    """The report, for the terminal, keeps them."""
    weights = tmp_path / "net.pth"
    weights.write_bytes(b"no network")

    def broken(lr: torch.Tensor, seed: int) -> torch.Tensor:
        return torch.load(tmp_path / "absent.pth")

    for spec, names in ((get_method(f"net=spandrel:{weights}"), "…/net.pth"), (Scripted(broken).spec(), "…/absent")):
        report = restore(records, tiny, spec)
        assert str(tmp_path) in report.failed["photo0"]
        row = records.of("mini", spec.name).images()["photo0"]
        assert names in (row.error or "")
        assert str(tmp_path) not in "".join(path.read_text() for path in records.root.rglob("*.json*"))


def test_a_recorded_result_outlives_its_image_and_a_failure(records: Records, tiny: TestSet) -> None:
    """A fresh clone on a machine where the method cannot be loaded, or fails, still has what was measured elsewhere."""

    def load(options: RunOptions) -> Scripted:
        raise UserError("no GPU")

    def broken(lr: torch.Tensor, seed: int) -> torch.Tensor:
        raise RuntimeError("out of memory")

    restore(records, tiny, Scripted(enlarge).spec())
    before = records.of("mini", "scripted").images()
    shutil.rmtree(records.out / "images")
    for spec in (replace(Scripted(enlarge).spec(), load=load), Scripted(broken).spec()):
        report = restore(records, tiny, spec)
        assert (report.kept, report.made, len(report.failed)) == (0, 0, 3)
        assert records.of("mini", "scripted").images() == before
        assert set(records.of("mini", "scripted").run().environments) == {before["photo0"].environment}  # type: ignore[union-attr]
    assert restore(records, tiny, Scripted(enlarge).spec()).made == 3


def test_results_of_other_settings_are_never_mixed_in(records: Records, tiny: TestSet) -> None:
    restore(records, tiny, Scripted(enlarge, {"tile": {"size": 64}, "weights": "aa"}).spec())
    other = Scripted(enlarge, {"tile": {"size": 96}, "weights": "aa", "new": True}).spec()
    before = records.of("mini", "scripted").images()
    with pytest.raises(StaleRecords) as error:
        restore(records, tiny, other)
    assert "tile.size: recorded 64, now 96" in str(error.value)
    assert "new: recorded None, now True" in str(error.value)
    assert "--redo scripted" in str(error.value)
    assert "weights" not in str(error.value).split("\n", 1)[1].split("Results")[0]
    assert records.of("mini", "scripted").images() == before

    said: list[str] = []
    report = restore(records, tiny, other, said, redo=True)
    assert (report.made, report.kept) == (3, 0)
    aside = records.out / "superseded" / "mini" / "scripted.1"
    assert said == [f"scripted on mini: old records moved to {aside}"]
    assert len((aside / "images.jsonl").read_text().splitlines()) == 3


def test_other_words_about_the_same_method_are_the_same_method(records: Records, tiny: TestSet) -> None:
    said = {"remarks": ["unseeded"], "patch_reasons": ["its paths"]}
    restore(records, tiny, Scripted(enlarge, {"tile": 64}).spec())
    for settings in ({"tile": 64, **said}, {"tile": 64, "remarks": ["no seed"]}):
        assert restore(records, tiny, Scripted(enlarge, settings).spec()).kept == 3
        assert records.of("mini", "scripted").run().provenance == settings  # type: ignore[union-attr]
    with pytest.raises(StaleRecords, match="tile: recorded 64, now 96"):
        restore(records, tiny, Scripted(enlarge, {"tile": 96, **said}).spec())


def test_another_seed_is_another_run(records: Records, tiny: TestSet) -> None:
    restore(records, tiny, METHODS["bicubic"])
    with pytest.raises(StaleRecords, match="seed: recorded 42, now 43"):
        restore(records, tiny, METHODS["bicubic"], seed=43)


def test_another_test_image_under_the_same_name_is_refused(records: Records, tiny: TestSet) -> None:
    restore(records, tiny, METHODS["bicubic"])
    first = replace(tiny.images[0], lr_sha256="0" * 64)
    with pytest.raises(StaleRecords, match="test image photo0 is another file"):
        restore(records, replace(tiny, images=(first, *tiny.images[1:])), METHODS["bicubic"])


def test_records_without_their_images_are_moved_aside_when_settings_changed(records: Records, tiny: TestSet) -> None:
    """A fresh clone has committed records and no images: there is nothing a new image could be mixed with."""
    restore(records, tiny, Scripted(enlarge, {"version": 1}).spec())
    shutil.rmtree(records.out / "images")
    said: list[str] = []
    report = restore(records, tiny, Scripted(enlarge, {"version": 2}).spec(), said)
    assert report.made == 3
    assert len(said) == 1
    assert "version: recorded 1, now 2" in said[0]
    assert "restored again" in said[0]


def test_published_pngs_are_taken_over_byte_for_byte_and_not_timed(
    records: Records, tiny: TestSet, tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for image in tiny.images:
        shutil.copy(image.hr, folder / f"{image.name}.png")  # type: ignore[arg-type]
    with Image.open(folder / "photo2.png") as image:
        image.save(folder / "photo2.bmp")
    (folder / "photo2.png").unlink()
    spec = get_method(f"theirs=folder:{folder}")
    assert restore(records, tiny, spec).made == 3
    rows = records.of("mini", "theirs").images()
    assert {(row.seconds, row.seed) for row in rows.values()} == {(None, None)}
    assert [rows[f"photo{i}"].sr_sha256 == tiny.images[i].hr_sha256 for i in (0, 1)] == [True, True]
    with Image.open(records.of("mini", "theirs").image_path("photo2")) as copy, Image.open(tiny.images[2].hr) as hr:  # type: ignore[arg-type]
        assert copy.format == "PNG"
        assert np.array_equal(np.asarray(copy), np.asarray(hr))


def test_published_images_of_another_kind_are_error_rows(records: Records, tiny: TestSet, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for image in tiny.images:
        with Image.open(image.hr) as hr:  # type: ignore[arg-type]
            hr.convert("RGBA").save(folder / f"{image.name}.png")
    report = restore(records, tiny, get_method(f"theirs=folder:{folder}"))
    assert report.failed["photo0"] == "ValueError: wrong format: photo0.png is RGBA, expected 8-bit RGB"
    (folder / "photo1.png").unlink()
    report = restore(records, tiny, get_method(f"theirs=folder:{folder}"))
    assert "could not be loaded" in report.failed["photo1"]


def test_rounding_is_half_to_even() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, 254.5]) / 255
    sr = values.repeat(1, 3, 4, 1)
    halves = (sr * 255)[0, 0, 0]
    expected = np.rint(halves.numpy())
    assert np.array_equal(checked_pixels(sr, 1, 1)[0, :, 0], expected)


def test_a_png_is_the_same_bytes_whenever_it_is_made(records: Records, tiny: TestSet) -> None:
    restore(records, tiny, METHODS["bicubic"])
    path = records.of("mini", "bicubic").image_path("photo0")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.info == {}


def test_settings_that_json_writes_otherwise_are_still_the_same_settings(records: Records, tiny: TestSet) -> None:
    settings: dict[str, object] = {"sizes": (1, 2), "table": {4: "four"}}
    restore(records, tiny, Scripted(enlarge, settings).spec())
    assert restore(records, tiny, Scripted(enlarge, settings).spec()).kept == 3


def test_environments_without_a_row_are_dropped(records: Records, tiny: TestSet) -> None:
    restore(records, tiny, METHODS["bicubic"])
    run = records.of("mini", "bicubic").run()
    assert run is not None
    records.of("mini", "bicubic").write_run(replace(run, environments=run.environments | {"old": {}}))
    restore(records, tiny, METHODS["bicubic"])
    assert records.of("mini", "bicubic").run() == run
