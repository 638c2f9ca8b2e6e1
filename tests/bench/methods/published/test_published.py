"""Published outputs as rows: found by test set and method, checked against the card, an altered folder refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bench.cards.card import Card, Published, cards
from bench.methods import METHODS, get_method
from bench.methods.base import FolderMethod, MethodSpec
from bench.methods.check import check_folder
from bench.methods.published.folder import images_by_stem, sha256_of_files
from bench.methods.published.published import absent_outputs, published_spec, published_specs
from bench.options import RunOptions
from bench.testsets.manifest import TESTSETS, load_testset
from tsd.errors import UserError

CARD = cards()["bsrgan"]


def png(path: Path, size: tuple[int, int], colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour, colour)).save(path)
    return path


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Published images of the mini set's 18 names, as its authors might name them: photo_OURS.png."""
    folder = tmp_path / "mini" / "net"
    for value, image in enumerate(load_testset("mini").images):
        png(folder / f"{image.name}_OURS.png", (256, 256), value)
    return folder


def card(folder: Path, **changed: object) -> Card:
    digest = sha256_of_files(images_by_stem(folder, "_OURS"))
    published = replace(Published("mini", "outputs/mini", "_OURS", digest), **changed)
    return replace(CARD, name="net", display="Net", published=(published,))


def options(root: Path, testset: str | None = "mini") -> RunOptions:
    return RunOptions(data_root=root, testset=testset)


def load(spec: MethodSpec, root: Path) -> FolderMethod:
    method = spec.load(options(root))
    assert isinstance(method, FolderMethod)
    return method


def test_a_card_with_published_outputs_gives_a_row(outputs: Path, tmp_path: Path):
    made = card(outputs)
    (spec,) = published_specs({"net": made, "other": replace(CARD, name="other", published=())})
    assert (spec.name, spec.display, spec.steps, spec.how) == (
        "net-published",
        "Net (published)",
        1,
        "published outputs",
    )
    assert (spec.kind, spec.testsets, spec.licence) == ("published", ("mini",), "Apache-2.0")
    assert spec.missing(options(tmp_path)) == []
    method = load(spec, tmp_path)
    assert set(method.outputs(load_testset("mini"))) == {image.name for image in load_testset("mini").images}
    assert method.provenance() == {
        "repository": CARD.repository,
        "commit": CARD.commit,
        "path": "outputs/mini",
        "images": 18,
        "images_sha256": made.published[0].images_sha256,
    }
    assert [finding.passed for finding in check_folder(method, load_testset("mini"))] == [True, True]


def test_the_authors_suffix_may_have_been_taken_off_the_names(outputs: Path, tmp_path: Path):
    spec = published_spec("net", card(outputs))
    before = load(spec, tmp_path).provenance()
    for path in sorted(outputs.iterdir()):
        path.rename(path.with_name(path.name.replace("_OURS", "")))
    assert load(spec, tmp_path).provenance() == before
    assert len(load(spec, tmp_path).outputs(load_testset("mini"))) == 18
    shutil.copy(outputs / "brick.png", outputs / "brick_OURS.png")
    with pytest.raises(UserError, match=r"both brick\S*\.png and brick\S*\.png; expected one image a name"):
        load(spec, tmp_path).outputs(load_testset("mini"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: png(folder / "brick_OURS.png", (256, 256), 99), "some were altered, re-encoded"),
        (lambda folder: (folder / "brick_OURS.png").unlink(), "1 absent: brick"),
        (lambda folder: png(folder / "wall_OURS.png", (256, 256)), r"1 too many: wall_OURS\.png"),
    ],
)
def test_an_altered_folder_is_an_error_that_says_so(change, says: str, outputs: Path, tmp_path: Path):
    spec = published_spec("net", card(outputs))
    change(outputs)
    with pytest.raises(UserError, match=says) as caught:
        load(spec, tmp_path).provenance()
    assert "are not the published ones" in str(caught.value)
    assert f"NAME=folder:{outputs}" in str(caught.value)
    findings = check_folder(load(spec, tmp_path), load_testset("mini"))
    assert findings[-1].passed is False


def test_without_a_known_hash_names_and_sizes_are_checked(outputs: Path, tmp_path: Path):
    spec = published_spec("net", card(outputs, images_sha256=None))
    assert spec.verified == "names and sizes"
    png(outputs / "brick_OURS.png", (256, 256), 99)
    assert load(spec, tmp_path).provenance()["images"] == 18
    png(outputs / "brick_OURS.png", (128, 256))
    with pytest.raises(UserError, match=r"brick_OURS\.png: 128x256, expected 256x256"):
        load(spec, tmp_path).outputs(load_testset("mini"))


def test_where_they_are_may_be_said_in_words(outputs: Path, tmp_path: Path):
    spec = published_spec("net", card(outputs, source="the authors' drive, folder mini"))
    facts = load(spec, tmp_path).provenance()
    assert (facts["source"], "repository" in facts) == ("the authors' drive, folder mini", False)
    shutil.rmtree(outputs)
    (missing,) = spec.missing(options(tmp_path))
    assert missing.source == "the authors' drive, folder mini"


def test_any_folder_of_a_test_set_is_a_method(outputs: Path, tmp_path: Path):
    for path in sorted(outputs.iterdir()):
        path.rename(path.with_name(path.name.replace("_OURS", "")))
    spec = get_method("published:net")
    assert (spec.name, spec.display, spec.testsets, spec.steps) == ("net-published", "net (published)", None, None)
    assert get_method("theirs=published:net").name == "theirs"
    assert len(load(spec, tmp_path).outputs(load_testset("mini"))) == 18
    assert set(load(spec, tmp_path).provenance()) == {"images", "images_sha256"}
    (missing,) = spec.missing(options(tmp_path, "realsr"))
    assert missing.where == "$TSD_DATA/realsr/net/ (this harness knows of none)"
    with pytest.raises(UserError, match="name it with --testset"):
        spec.load(options(tmp_path, None))


def test_the_name_a_test_set_is_published_under_will_do(tmp_path: Path):
    png(tmp_path / "RealSRVal_crop128" / "net" / "a.png", (4, 4))
    assert get_method("published:net").missing(options(tmp_path, "realsr")) == []


def test_a_method_of_a_card_is_its_row_whichever_way_it_is_named():
    assert get_method("published:osediff") is METHODS["osediff-published"]
    with pytest.raises(UserError, match="names no folder inside a test set's folder"):
        get_method("published:a/b")


def test_a_test_set_that_the_card_does_not_know_needs_a_folder_of_ones_own(outputs: Path, tmp_path: Path):
    spec = published_spec("net", card(outputs))
    (missing,) = spec.missing(options(tmp_path, "drealsr"))
    assert missing.where == "$TSD_DATA/drealsr/net/ (this harness knows of those for mini only)"
    png(tmp_path / "drealsr" / "net" / "x_OURS.png", (512, 512))
    assert spec.missing(options(tmp_path, "drealsr")) == []
    method = spec.load(options(tmp_path, "drealsr"))
    assert method.provenance()["images"] == 1
    assert "repository" not in method.provenance(), "nobody says that these were published"


def test_without_a_test_set_one_that_is_there_is_enough(outputs: Path, tmp_path: Path):
    two = replace(card(outputs), published=(*card(outputs).published, Published("realsr", "outputs/realsr")))
    spec = published_spec("net", two)
    assert spec.missing(options(tmp_path, None)) == []
    assert [missing.name for missing in absent_outputs(two, options(tmp_path, None))] == ["realsr/net/"]
    shutil.rmtree(outputs)
    assert [missing.name for missing in spec.missing(options(tmp_path, None))] == ["mini/net/", "realsr/net/"]
    assert spec.missing(options(tmp_path, None))[0].fetch == "net-published"


def test_every_card_names_test_sets_that_there_are():
    known = [published for made in cards().values() for published in made.published]
    assert {"realsr", "realsrset"} <= {published.testset for published in known} <= set(TESTSETS)


@pytest.mark.parametrize(("name", "testset"), [("osediff-published", "realsr"), ("bsrgan-published", "realsrset")])
def test_the_real_published_images_are_those_of_the_card(name: str, testset: str, shared_dir: Path):
    root = shared_dir / "data"
    method = METHODS[name].load(options(root, testset))
    assert isinstance(method, FolderMethod)
    loaded = load_testset(testset, root)
    assert len(method.outputs(loaded)) == loaded.total
    assert method.provenance()["images"] == loaded.total


def test_the_records_of_osediffs_images_are_still_those_of_its_row(shared_dir: Path):
    from bench.records.records import Records

    run = Records(Path(__file__).parents[4] / "reports" / "realsr").of("realsr", "osediff-published").run()
    assert run is not None
    method = METHODS["osediff-published"].load(options(shared_dir / "data", "realsr"))
    assert method.provenance() == run.provenance
