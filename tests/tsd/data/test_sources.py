import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from tsd.data.crops import decode
from tsd.data.sources import FolderSource, HubSource, SourceImage
from tsd.errors import UserError


def picture(seed: int, width: int = 40, height: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def everything(source: FolderSource | HubSource, start: int = 0, stream_state: dict | None = None) -> list[SourceImage]:
    return list(source.images(start, stream_state, state_every=2))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "trip").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.jpg", "trip/a.PNG")):
        picture(seed).save(root / name)
        (root / name).with_suffix(".txt").write_text(f"caption of\n {name} ", encoding="utf-8")
    return root


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Five rows of a data set as the hub holds them: encoded images, captions, and a column that is not needed."""
    rows = {
        "picture": [{"bytes": png(i), "path": None} for i in range(5)],
        "text": ["one", ["two", "zwei"], "", None, " five \n words"],
        "other": list(range(5)),
    }
    rows["text"] = [text if isinstance(text, list) else [text or ""] for text in rows["text"]]
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "text": datasets.List(datasets.Value("string")),
            "other": datasets.Value("int64"),
        }
    )
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    return tmp_path / "set"


def test_files_are_named_by_folder_and_path_in_order(folder: Path):
    source = FolderSource([folder], caption_files=True)
    found = everything(source)
    assert [image.name for image in found] == ["photos/a.jpg", "photos/b.png", "photos/trip/a.PNG"]
    assert [image.index for image in found] == [0, 1, 2]
    assert found[2].caption == "caption of trip/a.PNG"
    assert source.length == 3
    assert everything(source, start=1) == found[1:]
    assert everything(FolderSource([folder]))[0].caption == ""


def test_folders_with_equal_file_names_are_told_apart(folder: Path, tmp_path: Path):
    other = tmp_path / "more"
    other.mkdir()
    picture(9).save(other / "a.jpg")
    assert [image.name for image in everything(FolderSource([folder, other, other / "a.jpg"]))][-2:] == [
        "more/a.jpg",
        "a.jpg",
    ]
    with pytest.raises(UserError, match=r"would both be called more/a\.jpg"):
        FolderSource([other, other])


def test_description_notices_another_file_and_holds_no_path(folder: Path, tmp_path: Path):
    before = FolderSource([folder]).describe()
    assert str(tmp_path) not in str(before)
    assert FolderSource([folder]).describe() == before
    picture(9, 41).save(folder / "b.png")
    assert FolderSource([folder]).describe() != before
    assert FolderSource([folder], limit=2).describe()["images"] == 2


def test_missing_caption_files_are_listed_unless_something_stands_in(folder: Path):
    (folder / "b.txt").unlink()
    with pytest.raises(UserError, match=r"(?s)1 of 3 images have no \.txt.*--caption TEXT.*b\.png"):
        FolderSource([folder], caption_files=True)
    found = everything(FolderSource([folder], caption_files=True, fallback=True))
    assert [bool(image.caption) for image in found] == [True, False, True]


def test_bad_folders_are_explained(tmp_path: Path):
    with pytest.raises(UserError, match="no such file or folder"):
        FolderSource([tmp_path / "absent"])
    with pytest.raises(UserError, match="no images in"):
        FolderSource([tmp_path])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_set_is_read_undecoded(parquet: Path, streaming: bool):
    source = HubSource(str(parquet), image_column="picture", caption_column="text", streaming=streaming)
    found = everything(source)
    assert [image.name for image in found] == [f"train/{i:08d}" for i in range(5)]
    assert [image.caption for image in found] == ["one", "two", "", "", "five words"]
    for i, image in enumerate(found):
        assert image.picture["bytes"] == png(i)  # type: ignore[index]  # not decoded and encoded again
    assert everything(HubSource(str(parquet), image_column="picture", limit=2, streaming=streaming))[-1].index == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_is_entered_in_the_middle(parquet: Path, streaming: bool):
    def source() -> HubSource:
        return HubSource(str(parquet), image_column="picture", caption_column="text", streaming=streaming)

    found = everything(source())
    for start in (2, 4):
        state = found[start - 1].stream_state
        assert (state is not None) == streaming
        again = everything(source(), start, state)
        assert [(i.index, i.name, i.caption, i.picture) for i in again] == [
            (i.index, i.name, i.caption, i.picture) for i in found[start:]
        ]
    assert [image.index for image in everything(source(), 3)] == [3, 4]  # without a state by skipping


def test_folders_of_images_and_saved_sets_are_read_too(folder: Path, tmp_path: Path):
    for text in folder.rglob("*.txt"):
        text.unlink()
    source = HubSource(str(folder))
    assert source.length == 3
    assert [decode(image.picture).shape for image in everything(source)] == [(36, 40, 3)] * 3

    saved = datasets.Dataset.from_dict({"image": [picture(0), picture(1)]})
    saved.save_to_disk(tmp_path / "saved")
    (first, _) = everything(HubSource(str(tmp_path / "saved")))
    np.testing.assert_array_equal(decode(first.picture), np.asarray(picture(0)))
    datasets.DatasetDict({"val": saved}).save_to_disk(tmp_path / "dict")
    assert HubSource(str(tmp_path / "dict"), split="val", streaming=True).length is None
    with pytest.raises(UserError, match=r"no split 'train' \(found: 'val'\)"):
        HubSource(str(tmp_path / "dict"))


def test_a_file_inside_an_archive_is_opened_by_datasets(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.png", png(3))
    row = {"bytes": None, "path": f"zip://a.png::{tmp_path / 'photos.zip'}"}
    np.testing.assert_array_equal(decode(row), np.asarray(picture(3)))


def test_bad_sets_are_explained(parquet: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"no column 'image' \(found: 'picture', 'text', 'other'\)"):
        HubSource(str(parquet))
    with pytest.raises(UserError, match="no column 'label'"):
        HubSource(str(parquet), image_column="picture", caption_column="label", streaming=True)
    with pytest.raises(UserError, match="could not be opened"):
        HubSource(str(parquet), split="test", image_column="picture")
    with pytest.raises(UserError, match="could not be opened"):
        HubSource(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="could not be opened"):
        HubSource("nobody/nothing-of-this-name")
