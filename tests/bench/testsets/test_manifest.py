"""Manifests, the search for files, verification, and what is said when something is missing or different."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

import bench.testsets.manifest
from bench.testsets.manifest import (
    DATASETS,
    TESTSETS,
    MissingData,
    folders_of,
    has_reference,
    load_testset,
    missing_testset,
    names_of,
)
from tsd.errors import UserError

NAMES = ["b.png", "a.png", "c.png"]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_pairs(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        for side, size in (("test_LR", 8), ("test_HR", 32)):
            (folder / side).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), (10 * number, 20, 30)).save(folder / side / name)
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a toy RealSR of three pairs and a toy DIV2K-Val without listed names, and their manifests."""
    root = tmp_path / "root"
    realsr = write_pairs(root / "realsr", NAMES)
    write_pairs(root / "DIV2K_V2_val", NAMES)
    for name, images in (
        (
            "realsr",
            [
                {"name": n, "lr_sha256": sha(realsr / "test_LR" / n), "hr_sha256": sha(realsr / "test_HR" / n)}
                for n in NAMES
            ],
        ),
        ("div2k-val", None),
    ):
        real = json.loads((DATASETS / name / "manifest.json").read_text())
        toy = real | {"count": 3, "lr_size": [8, 8], "hr_size": [32, 32], "images": images}
        (tmp_path / "datasets" / name).mkdir(parents=True)
        (tmp_path / "datasets" / name / "manifest.json").write_text(json.dumps(toy))
    monkeypatch.setattr(bench.testsets.manifest, "DATASETS", tmp_path / "datasets")
    monkeypatch.delenv("TSD_DATA", raising=False)
    return root


def test_no_python_in_datasets():
    assert not list(DATASETS.rglob("*.py"))


@pytest.mark.parametrize(("name", "count"), [("mini", 18), ("realsr", 100), ("drealsr", 93), ("div2k-val", 3000)])
def test_manifests_are_complete(name: str, count: int):
    manifest = json.loads((DATASETS / name / "manifest.json").read_text())
    assert (manifest["name"], manifest["count"], manifest["scale"]) == (name, count, 4)
    assert manifest["hr_size"] == [4 * side for side in manifest["lr_size"]]
    assert manifest["licence"]
    assert manifest["source"]
    if manifest["images"] is not None:
        names = [entry["name"] for entry in manifest["images"]]
        assert len(set(names)) == len(names) == count
        for entry in manifest["images"]:
            for key in ("lr_sha256", "hr_sha256"):
                assert len(entry[key]) == 64
                int(entry[key], 16)


@pytest.mark.parametrize(("name", "count"), [("realsrset", 20), ("realset65", 65)])
def test_manifests_without_ground_truth_are_complete(name: str, count: int):
    manifest = json.loads((DATASETS / name / "manifest.json").read_text())
    assert (manifest["name"], manifest["count"], manifest["scale"], manifest["reference"]) == (name, count, 4, False)
    assert not has_reference(name)
    assert manifest["address"].startswith("https://raw.githubusercontent.com/")
    assert manifest["licence"].startswith("none stated for the images")
    stems = [Path(entry["name"]).stem for entry in manifest["images"]]
    assert len(set(stems)) == len(stems) == count
    assert names_of(name) == tuple(sorted(stems))
    for entry in manifest["images"]:
        assert set(entry) == {"name", "lr_sha256", "size"}
        assert len(entry["lr_sha256"]) == 64
        int(entry["lr_sha256"], 16)
        assert min(entry["size"]) >= 16


def test_the_kodak_manifest_lists_the_photographs():
    manifest = json.loads((DATASETS / "kodak" / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["images"]] == [f"kodim{n:02}.png" for n in range(1, 25)]
    assert "unrestricted" in manifest["licence"]


def test_kodak_files_are_those_of_the_manifest(shared_dir: Path):
    manifest = json.loads((DATASETS / "kodak" / "manifest.json").read_text())
    for entry in manifest["images"]:
        assert sha(shared_dir / "data" / "kodak" / entry["name"]) == entry["sha256"]


def test_realsr_loads_and_every_hash_fits(shared_dir: Path):
    testset = load_testset("realsr", shared_dir / "data")
    assert (testset.display, testset.total, len(testset.images)) == ("RealSR", 100, 100)
    assert [image.name for image in testset.images] == sorted(image.name for image in testset.images)
    first = testset.images[0]
    assert first.name == "Canon_001_LR4"
    assert first.hr is not None
    assert (Image.open(first.lr).size, Image.open(first.hr).size) == ((128, 128), (512, 512))
    assert first.lr_sha256 == sha(first.lr)


def test_realsrset_loads_without_ground_truth(shared_dir: Path):
    testset = load_testset("realsrset", shared_dir / "data")
    assert (testset.display, testset.total, len(testset.images)) == ("RealSRSet", 20, 20)
    assert {(image.hr, image.hr_sha256) for image in testset.images} == {(None, None)}
    manifest = json.loads((DATASETS / "realsrset" / "manifest.json").read_text())
    sizes = {Path(entry["name"]).stem: tuple(entry["size"]) for entry in manifest["images"]}
    for image in testset.images:
        with Image.open(image.lr) as lr:
            assert lr.size == sizes[image.name]


def test_mini_needs_no_data_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TSD_DATA", raising=False)
    assert missing_testset("mini") == []
    testset = load_testset("mini")
    assert len(testset.images) == testset.total == 18
    assert testset.manifest_sha256 == sha(DATASETS / "mini" / "manifest.json")
    for image in testset.images:
        assert image.hr is not None
        with Image.open(image.lr) as lr, Image.open(image.hr) as hr:
            assert (lr.size, hr.size, lr.mode, hr.mode) == ((64, 64), (256, 256), "RGB", "RGB")


def test_images_are_sorted_and_limited_by_name(root: Path):
    assert [image.name for image in load_testset("realsr", root).images] == ["a", "b", "c"]
    limited = load_testset("realsr", root, limit=2)
    assert [image.name for image in limited.images] == ["a", "b"]
    assert limited.total == 3
    assert len(load_testset("realsr", root, limit=9).images) == 3
    with pytest.raises(UserError, match="at least 1"):
        load_testset("realsr", root, limit=0)


def test_the_data_root_may_come_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TSD_DATA", str(root))
    assert len(load_testset("realsr").images) == 3
    with pytest.raises(MissingData):  # an explicit root wins
        load_testset("realsr", root / "elsewhere")


def test_the_published_layout_is_found_too(root: Path):
    (root / "realsr").rename(root / "RealSRVal_crop128")
    image = load_testset("realsr", root).images[0]
    assert image.lr == root / "RealSRVal_crop128" / "test_LR" / "a.png"


def test_an_absent_set_is_named_with_the_command_that_gets_it(root: Path, tmp_path: Path):
    (missing,) = missing_testset("realsr", tmp_path / "nothing")
    assert missing.where == f"{tmp_path}/nothing/RealSRVal_crop128/"
    assert "Iceclear/StableSR-TestSets" in missing.source
    assert "`bench fetch realsr`" in missing.line()
    assert missing.licence is not None
    assert "non-commercial" in missing.licence
    assert (
        missing.size_bytes
        == json.loads((bench.testsets.manifest.DATASETS / "realsr/manifest.json").read_text())["bytes"]
    )
    (without_root,) = missing_testset("realsr")
    assert "$TSD_DATA" in without_root.where
    with pytest.raises(MissingData) as caught:
        load_testset("realsr", tmp_path / "nothing")
    assert caught.value.missing == [missing]
    assert missing.line() in str(caught.value)


def test_absent_files_are_named(root: Path):
    (root / "realsr" / "test_HR" / "a.png").unlink()
    (missing,) = missing_testset("realsr", root)
    assert missing.name == "1 of 3 files (a.png)"
    assert missing.where == f"{root}/realsr/test_HR/"
    with pytest.raises(MissingData):
        load_testset("realsr", root)


def test_a_changed_file_is_an_error_that_names_it(root: Path):
    Image.new("RGB", (32, 32), (255, 0, 0)).save(root / "realsr" / "test_HR" / "b.png")
    with pytest.raises(UserError, match=r"(?s)1 files of realsr are not those of .*test_HR/b\.png: sha256"):
        load_testset("realsr", root)
    assert len(load_testset("realsr", root, limit=1).images) == 1  # only what is used is verified


def test_a_set_without_listed_names_is_verified_by_number_pairing_and_size(root: Path):
    testset = load_testset("div2k-val", root)
    assert [image.name for image in testset.images] == ["a", "b", "c"]
    assert testset.images[0].lr_sha256 == sha(root / "DIV2K_V2_val" / "test_LR" / "a.png")
    Image.new("RGB", (9, 8)).save(root / "DIV2K_V2_val" / "test_LR" / "b.png")
    with pytest.raises(UserError, match=r"test_LR/b\.png: 9x8, expected 8x8"):
        load_testset("div2k-val", root)
    (root / "DIV2K_V2_val" / "test_LR" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png: not a readable PNG"):
        load_testset("div2k-val", root)
    (root / "DIV2K_V2_val" / "test_LR" / "b.png").unlink()
    with pytest.raises(UserError, match=r"2 images in test_LR and 3 in test_HR, expected 3.*without a partner: b\.png"):
        load_testset("div2k-val", root)


@pytest.fixture
def unreferenced(root: Path) -> Path:
    """A toy RealSRSet of two images of odd sizes, as BSRGAN's repository publishes it, and its manifest."""
    folder = root / "RealSRSet"
    folder.mkdir()
    entries = []
    for name, size in (("b.png", (9, 7)), ("a.jpeg", (21, 16))):
        Image.new("RGB", size, (10, 20, 30)).save(folder / name)
        entries.append({"name": name, "lr_sha256": sha(folder / name), "size": list(size)})
    real = json.loads((DATASETS / "realsrset" / "manifest.json").read_text())
    toy = bench.testsets.manifest.DATASETS / "realsrset" / "manifest.json"
    toy.parent.mkdir()
    toy.write_text(json.dumps(real | {"count": 2, "images": entries}))
    return folder


def test_a_set_without_ground_truth_has_inputs_of_any_size_alone(unreferenced: Path, root: Path):
    testset = load_testset("realsrset", root)
    assert [image.name for image in testset.images] == ["a", "b"]
    assert [image.lr for image in testset.images] == [unreferenced / "a.jpeg", unreferenced / "b.png"]
    assert [(image.hr, image.hr_sha256) for image in testset.images] == [(None, None)] * 2
    assert (testset.total, len(load_testset("realsrset", root, limit=1).images)) == (2, 1)
    Image.new("RGB", (9, 7)).save(unreferenced / "b.png")
    with pytest.raises(UserError, match=r"(?s)1 files of realsrset are not those of .*RealSRSet/b\.png: sha256"):
        load_testset("realsrset", root)


def test_our_layout_of_a_set_without_ground_truth_goes_before_the_published_one(unreferenced: Path, root: Path):
    (root / "realsrset" / "bsrgan").mkdir(parents=True)  # published outputs alone are not the test set
    assert load_testset("realsrset", root).images[0].lr.parent == unreferenced
    unreferenced.rename(root / "realsrset" / "lq")
    assert load_testset("realsrset", root).images[0].lr.parent == root / "realsrset" / "lq"
    assert folders_of("realsrset") == ("realsrset", "RealSRSet")


def test_what_is_absent_of_a_set_without_ground_truth_is_named(unreferenced: Path, root: Path, tmp_path: Path):
    (missing,) = missing_testset("realsrset", tmp_path / "nothing")
    assert (missing.name, missing.where) == ("lq/, 2 images", f"{tmp_path}/nothing/realsrset/")
    assert "`bench fetch realsrset`" in missing.line()
    (unreferenced / "b.png").unlink()
    (missing,) = missing_testset("realsrset", root)
    assert (missing.name, missing.where) == ("1 of 2 files (b.png)", f"{unreferenced}/")


def test_unknown_names_get_a_suggestion_and_the_list():
    with pytest.raises(UserError, match=r"\(did you mean 'drealsr'\?\); known: mini, realsr, drealsr, div2k-val"):
        load_testset("drealrs")
    assert TESTSETS == ("mini", "realsr", "drealsr", "div2k-val", "realsrset", "realset65")


def test_without_a_checkout_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.testsets.manifest, "DATASETS", tmp_path)
    with pytest.raises(UserError, match="Run from a checkout"):
        missing_testset("mini")


def test_the_folder_that_fetch_fills_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TSD_DATA", raising=False)
    (without,) = missing_testset("realsr")
    assert without.where.startswith("$TSD_DATA/")
    (tmp_path / "data").mkdir()
    (with_folder,) = missing_testset("realsr")
    assert with_folder.where.startswith("data/")
