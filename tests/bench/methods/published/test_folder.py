"""Published outputs: matched by name, complete, in the right size, or an error that lists every fault."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from bench.methods import get_method
from bench.methods.base import FolderMethod, Method
from bench.methods.check import check_folder
from bench.methods.published.folder import PublishedOutputs, images_by_stem
from bench.options import RunOptions
from tsd.errors import UserError

NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Images:
    """A test set's images as `bench.testsets.manifest` describes them: name, input, ground truth."""

    name: str
    lr: Path
    hr: Path | None


@dataclass(frozen=True)
class Set:
    name: str
    images: tuple[Images, ...]


def png(path: Path, size: tuple[int, int], color: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, color, color)).save(path)
    return path


@pytest.fixture
def testset(tmp_path: Path) -> Set:
    images = tuple(
        Images(name, png(tmp_path / "lr" / f"{name}.png", (8, 6)), png(tmp_path / "hr" / f"{name}.png", (32, 24)))
        for name in NAMES
    )
    return Set("toy", images)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value, name in enumerate(NAMES):
        png(tmp_path / "outputs" / f"{name}.png", (32, 24), value)
    return tmp_path / "outputs"


def load(folder: Path, testset: str | None = None) -> PublishedOutputs:
    method = get_method(f"folder:{folder}").load(RunOptions(testset=testset))
    assert isinstance(method, PublishedOutputs)
    return method


def test_outputs_are_matched_by_name_whatever_their_format(folder: Path, testset: Set):
    (folder / "b.png").unlink()
    png(folder / "b.webp", (32, 24))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image either")
    method = load(folder)
    assert isinstance(method, FolderMethod)
    assert not isinstance(method, Method)
    assert method.outputs(testset) == {"a": folder / "a.png", "b": folder / "b.webp", "c": folder / "c.png"}
    assert [finding.passed for finding in check_folder(method, testset)] == [True, True]


def test_a_folder_per_test_set_inside_is_found(folder: Path, testset: Set, tmp_path: Path):
    (tmp_path / "all").mkdir()
    folder.rename(tmp_path / "all" / "toy")
    method = load(tmp_path / "all", "toy")
    assert set(method.outputs(testset)) == set(NAMES)
    assert method.provenance()["images"] == 3


def test_a_part_of_the_test_set_needs_only_its_images(folder: Path, testset: Set):
    assert list(load(folder).outputs(Set("toy", testset.images[:1]))) == ["a"]


def test_without_ground_truth_the_size_is_four_times_the_input(folder: Path, testset: Set):
    unreferenced = Set("toy", tuple(Images(image.name, image.lr, None) for image in testset.images))
    assert set(load(folder).outputs(unreferenced)) == set(NAMES)
    png(folder / "a.png", (16, 12))
    with pytest.raises(UserError, match=r"a\.png: 16x12, expected 32x24"):
        load(folder).outputs(unreferenced)


def test_every_fault_is_listed(folder: Path, testset: Set):
    (folder / "a.png").rename(folder / "a_out.png")
    png(folder / "b.png", (8, 6))
    (folder / "c.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load(folder).outputs(testset)
    message = str(caught.value)
    assert "no image of this name for 1 of 3: a" in message
    assert f"1 name differs by _out; folder:{folder},suffix=_out takes such images" in message
    assert "images there that match no name: a_out.png" in message
    assert "b.png: 8x6, expected 32x24" in message
    assert "c.png: not a readable image" in message


def test_what_follows_every_name_is_found_or_said(folder: Path, testset: Set):
    for name in NAMES:
        (folder / f"{name}.png").rename(folder / f"{name}_x4.png")
    png(folder / "d_x4.png", (32, 24))
    expected = {name: folder / f"{name}_x4.png" for name in NAMES}
    assert load(folder).outputs(testset) == expected
    method = get_method(f"mine=folder:{folder},suffix=_x4").load(RunOptions())
    assert isinstance(method, FolderMethod)
    assert method.outputs(testset) == expected
    assert method.provenance()["images"] == 4


def test_names_of_two_endings_are_told_in_few_lines(folder: Path, testset: Set):
    (folder / "a.png").rename(folder / "a_x4.png")
    (folder / "b.png").rename(folder / "b_x4.png")
    (folder / "c.png").rename(folder / "c-final.png")
    with pytest.raises(UserError) as caught:
        load(folder).outputs(testset)
    assert str(caught.value).splitlines()[1:] == [
        "  no image of this name for 3 of 3: a, b, c",
        f"  2 names differ by _x4; folder:{folder},suffix=_x4 takes such images",
        "  images there that match no name: a_x4.png, b_x4.png, c-final.png",
    ]


def test_two_images_of_one_name_are_refused(folder: Path, testset: Set):
    png(folder / "a.bmp", (32, 24))
    with pytest.raises(UserError, match=r"both a\.bmp and a\.png"):
        load(folder).outputs(testset)


def test_an_absent_folder_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no folder at"):
        images_by_stem(tmp_path / "absent")


def test_check_reports_incomplete_outputs_as_broken(folder: Path, testset: Set):
    (folder / "a.png").unlink()
    findings = check_folder(load(folder), testset)
    assert [finding.passed for finding in findings] == [False, True]
    assert "no image of this name for 1 of 3: a" in findings[0].found


def test_provenance_changes_with_any_byte_or_name(folder: Path):
    before = load(folder).provenance()
    lines = "".join(f"{hashlib.sha256((folder / f'{n}.png').read_bytes()).hexdigest()}  {n}\n" for n in NAMES)
    assert before == {"images": 3, "images_sha256": hashlib.sha256(lines.encode()).hexdigest()}
    png(folder / "a.png", (32, 24), 99)
    changed = load(folder).provenance()
    (folder / "c.png").rename(folder / "z.png")
    assert len({str(facts["images_sha256"]) for facts in (before, changed, load(folder).provenance())}) == 3


def test_a_suffix_is_taken_off_the_names_and_does_not_count_for_the_hash(folder: Path, testset: Set):
    plain = load(folder).provenance()
    for name in NAMES:
        (folder / f"{name}.png").rename(folder / f"{name}_OURS.png")
    method = PublishedOutputs(folder, suffix="_OURS")
    assert method.outputs(testset)["b"] == folder / "b_OURS.png"
    assert method.provenance() == plain
