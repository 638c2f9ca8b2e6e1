import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from tsd.data.degrade import LIGHT, degrade, usm_sharpen
from tsd.data.pairs import PairDataset
from tsd.errors import UserError
from tsd.presets import MINI
from tsd.seeds import seed_for
from tsd.train.feed import batches, data_record


def pattern(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 (H,W,3), every pixel different enough to recognise where a crop came from."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs in three formats, one of them in a sub-folder, and a file that is no image."""
    root = tmp_path / "hq"
    (root / "more").mkdir(parents=True)
    Image.fromarray(pattern(70, 90, 0)).save(root / "a.png")
    Image.fromarray(pattern(64, 64, 1)).save(root / "more" / "b.JPG")
    Image.fromarray(pattern(80, 66, 2)).save(root / "c.webp")
    (root / "notes.txt").write_text("not an image")
    return root


def equal(a: dict[str, Tensor | int], b: dict[str, Tensor | int]) -> bool:
    return a["index"] == b["index"] and all(torch.equal(a[key], b[key]) for key in ("hr", "lr_up"))  # type: ignore[arg-type]


def test_an_item_has_the_promised_keys_shapes_and_ranges(folder: Path):
    dataset = PairDataset(folder, crop=32, seed=1)
    assert len(dataset) == 3  # files in sub-folders and upper-case suffixes count, text does not
    item = dataset[0]
    assert set(item) == {"hr", "lr_up", "index"}
    assert item["index"] == 0
    for key in ("hr", "lr_up"):
        tensor = item[key]
        assert isinstance(tensor, Tensor)
        assert (tensor.shape, tensor.dtype) == ((3, 32, 32), torch.float32)
        assert -1 <= float(tensor.min()) <= float(tensor.max()) <= 1
        assert float(tensor.min()) < -0.1


def test_lr_up_is_the_degraded_crop_enlarged_by_bicubic(folder: Path):
    dataset = PairDataset(folder, crop=32, seed=5, degradation=LIGHT, length=20)
    for index in (0, 17):
        item = dataset[index]
        lr = degrade((item["hr"] + 1) / 2, LIGHT, seed_for(5, "degrade", index))
        expected = F.interpolate(lr[None], scale_factor=4, mode="bicubic")[0].clamp(0, 1) * 2 - 1
        torch.testing.assert_close(item["lr_up"], expected)


def test_crops_are_pixels_of_the_photograph_mirrored_and_turned():
    photo = pattern(40, 48, 3)
    dataset = PairDataset([photo], crop=32, seed=0, length=60)
    turned = [np.rot90(photo, k)[:, ::step] for k in range(4) for step in (1, -1)]
    seen: set[int] = set()
    corners: set[tuple[int, int]] = set()
    for index in range(60):
        hr = ((dataset[index]["hr"] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        for number, version in enumerate(turned):
            windows = np.lib.stride_tricks.sliding_window_view(version, (32, 32, 3))[:, :, 0]
            where = np.argwhere((windows == hr).all(axis=(2, 3, 4)))
            if len(where):
                seen.add(number)
                corners.add(tuple(where[0]))
                break
        else:
            pytest.fail(f"crop {index} is no part of the photograph")
    assert seen == set(range(8))
    assert len(corners) > 20


def test_without_augmentation_crops_are_upright():
    photo = np.zeros((32, 32, 3), np.uint8)
    photo[:16] = 255
    dataset = PairDataset([photo], crop=32, seed=0, length=10, augment=False)
    assert all(torch.equal(dataset[0]["hr"], dataset[i]["hr"]) for i in range(10))


def test_items_depend_on_seed_and_index_alone(folder: Path):
    reference = PairDataset(folder, crop=32, seed=1, length=12)
    items = [reference[i] for i in range(12)]
    again = PairDataset(folder, crop=32, seed=1, length=12)
    assert all(equal(again[i], items[i]) for i in reversed(range(12)))  # any order, without what came before
    assert not any(equal(items[0], items[i]) for i in range(1, 12))
    other = PairDataset(folder, crop=32, seed=2, length=12)
    assert not any(torch.equal(other[i]["hr"], items[i]["hr"]) for i in range(12))


def test_batches_workers_and_resuming_change_nothing(folder: Path):
    dataset = PairDataset(folder, crop=32, seed=1, length=12)
    items = [dataset[i] for i in range(12)]
    for batch_size, workers, start in ((4, 0, 0), (3, 2, 0), (2, 0, 6)):
        loader = DataLoader(Subset(dataset, range(start, 12)), batch_size=batch_size, num_workers=workers)
        batches = list(loader)
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(start, 12))
        for key in ("hr", "lr_up"):
            got = torch.cat([batch[key] for batch in batches])
            assert torch.equal(got, torch.stack([item[key] for item in items[start:]]))


def test_every_round_visits_every_image_once_in_a_new_order():
    photos = [np.full((32, 32, 3), value, np.uint8) for value in range(0, 250, 25)]
    dataset = PairDataset(photos, crop=32, seed=0, length=30)
    values = [round((float(dataset[i]["hr"].mean()) + 1) * 127.5) for i in range(30)]
    rounds = [values[:10], values[10:20], values[20:]]
    assert all(sorted(visited) == list(range(0, 250, 25)) for visited in rounds)
    assert rounds[0] != rounds[1] != rounds[2]


def test_usm_sharpens_the_target_and_the_source_of_the_degradation(folder: Path):
    plain, sharp = (PairDataset(folder, crop=32, seed=1, usm=usm)[0] for usm in (False, True))
    torch.testing.assert_close(sharp["hr"], usm_sharpen((plain["hr"] + 1) / 2) * 2 - 1)
    assert not torch.equal(sharp["lr_up"], plain["lr_up"])


def test_sharpened_black_stays_in_range_and_can_be_degraded():
    """The sharpening mask comes out of an FFT: rounding once took black to -1e-32, which `degrade` refuses."""
    photo = np.zeros((256, 256, 3), np.uint8)
    photo[:64, :64] = 255
    photo[120:, 120:] = pattern(136, 136, 0) // 20
    hr = usm_sharpen(torch.from_numpy(photo).permute(2, 0, 1) / 255)
    assert 0 <= float(hr.min()) <= float(hr.max()) <= 1
    assert len(PairDataset([photo], crop=256, seed=0, usm=True)[0]) == 3


def test_cache_holds_what_fits_and_changes_nothing(folder: Path):
    small = PairDataset(folder, crop=32, seed=1, length=9, cache_bytes=70 * 90 * 3)
    large = PairDataset(folder, crop=32, seed=1, length=9)
    assert all(equal(small[i], large[i]) for i in range(9))
    assert sum(pixels.nbytes for pixels in small._cache.values()) <= 70 * 90 * 3
    assert len(large._cache) == 3


def test_16_bit_gray_is_rounded_not_clipped(tmp_path: Path):
    gray = (np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(gray).save(tmp_path / "deep.png")
    item = PairDataset(tmp_path, crop=32, seed=0, augment=False)[0]
    expected = torch.from_numpy((gray / 257.0).round().astype(np.float32)) / 127.5 - 1
    torch.testing.assert_close(item["hr"], expected.expand(3, 32, 32))


def test_small_images_are_left_out_and_listed(folder: Path):
    with pytest.warns(UserWarning, match=r"left out 1 images smaller than the 66x66 crop"):
        PairDataset(folder, crop=66, seed=0, scale=2)
    with pytest.warns(UserWarning, match=r"b\.JPG \(64x64\)"):
        dataset = PairDataset(folder, crop=66, seed=0, scale=2)
    assert len(dataset) == 2
    with pytest.raises(UserError, match="none of the 3 images holds a 128x128 crop"):
        PairDataset(folder, crop=128, seed=0)


@pytest.mark.parametrize("crop", [0, -4, 30])
def test_crop_must_be_a_multiple_of_the_scale(folder: Path, crop: int):
    with pytest.raises(UserError, match="multiple of the scale 4"):
        PairDataset(folder, crop=crop, seed=0)


def test_bad_sources_are_explained(tmp_path: Path):
    with pytest.raises(UserError, match="no such file or folder"):
        PairDataset(tmp_path / "absent", crop=32, seed=0)
    with pytest.raises(UserError, match="no images in"):
        PairDataset(tmp_path, crop=32, seed=0)
    with pytest.raises(UserError, match="no training images"):
        PairDataset([], crop=32, seed=0)
    with pytest.raises(UserError, match=r"uint8 arrays of shape \(H, W, 3\), got float64"):
        PairDataset([np.zeros((32, 32, 3))], crop=32, seed=0)


def cut(path: Path) -> str:
    """Truncates an image behind its header; returns its name."""
    path.write_bytes(path.read_bytes()[:2000])
    return path.name


def test_files_that_are_no_images_are_left_out_and_listed_at_the_start(folder: Path):
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "gone.png").symlink_to("nowhere.png")
    for system in ("._a.png", ".hidden.png", "Thumbs.db", "@eaDir/a.png", "__MACOSX/a.png"):
        (folder / system).parent.mkdir(exist_ok=True)
        (folder / system).write_bytes(b"metadata")
    with pytest.warns(UserWarning, match=r"(?s)left out 3 images.*broken\.png.*empty\.jpg.*gone\.png") as warned:
        data = PairDataset(folder, crop=32, seed=0)
    assert "._a" not in str(warned[0].message)
    assert data.names == ["a.png", "c.webp", "more/b.JPG"]
    assert data.listing() == {"broken.png": None, "empty.jpg": None, "gone.png": None}
    assert equal(data[0], PairDataset([folder / name for name in data.names], crop=32, seed=0)[0])


def test_not_one_readable_file_is_an_error(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"(?s)not one of 1 images can be read.*broken\.png"):
        PairDataset(tmp_path, crop=32, seed=0)
    Image.fromarray(pattern(64, 64, 0)).save(tmp_path / "broken.png")
    cut(tmp_path / "broken.png")
    with pytest.raises(UserError, match=r"(?s)not one training image can be decoded.*broken\.png"):
        PairDataset(tmp_path, crop=32, seed=0)[0]


def test_a_truncated_image_is_replaced_by_the_next_and_named(folder: Path):
    name = cut(folder / "a.png")
    data = PairDataset(folder, crop=32, seed=0, length=6)
    items = [data[index] for index in range(6)]
    assert [list(item["unreadable"]) for item in items if "unreadable" in item] == [[name]]  # told once
    assert str(folder / name) in data.unreadable[name]
    # Every sample that does not need the file is as before, and its own are of the next image, "c.webp".
    sound = PairDataset(folder, crop=32, seed=0, length=6)
    sound.images[0] = sound.images[1]
    assert all(equal(item, sound[index]) for index, item in enumerate(items))
    assert data.listing() == {name: 0}


def test_batches_carry_the_news_of_worker_processes(folder: Path):
    name = cut(folder / "a.png")
    data = PairDataset(folder, crop=32, seed=0, length=6)
    config = dataclasses.replace(MINI.scaled_to(3), batch_size=2)
    told: list[dict[str, str]] = []
    device = torch.device("cpu")
    for workers in (0, 1):
        read = batches(data, config, 0, process=0, processes=1, workers=workers, device=device, report=told.append)
        assert sum(len(batch.indices) for batch in read) == 6
        data = PairDataset(folder, crop=32, seed=0, length=6)
    assert [list(news) for news in told] == [[name], [name]]


@pytest.mark.parametrize("then", ["as it was", "removed", "repaired", "wholly broken"])
def test_a_listed_file_may_be_there_or_not_or_repaired_on_resumption(folder: Path, then: str):
    whole = (folder / "a.png").read_bytes()
    name = cut(folder / "a.png")
    before = PairDataset(folder, crop=32, seed=0, length=6)
    items = [before[index] for index in range(6)]
    if then == "removed":
        (folder / name).unlink()
    elif then == "repaired":
        (folder / name).write_bytes(whole)
    elif then == "wholly broken":
        (folder / name).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = PairDataset(folder, crop=32, seed=0, length=6)
    after.rejoin(before.listing())
    assert after.names == before.names
    assert after.listing() == before.listing()
    assert data_record(after, None) == data_record(before, None)
    same = [equal(items[index], after[index]) for index in range(6)]
    assert sum(same) == (4 if then == "repaired" else 6)


def test_a_file_left_out_at_the_start_stays_out_when_it_is_repaired(folder: Path):
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read"):
        before = PairDataset(folder, crop=32, seed=0, length=4)
    (folder / "a.png").write_bytes(whole)
    after = PairDataset(folder, crop=32, seed=0, length=4)
    after.rejoin(before.listing())
    assert after.names == before.names
    assert all(equal(before[index], after[index]) for index in range(4))
    assert data_record(after, None) == data_record(before, None)


def test_the_folder_of_the_run_holds_no_training_images(folder: Path):
    for place in ("run/validation", "running"):
        (folder / place).mkdir(parents=True)
        Image.fromarray(pattern(64, 64, 3)).save(folder / place / "step.png")
    assert "run/validation/step.png" not in PairDataset(folder, crop=32, seed=0, exclude=folder / "run").names
    assert "running/step.png" in PairDataset(folder, crop=32, seed=0, exclude=folder / "run").names
    assert len(PairDataset(folder, crop=32, seed=0, exclude=folder).names) == 5  # the run's folder is the images' own


def test_indices_outside_the_length_are_errors(folder: Path):
    dataset = PairDataset(folder, crop=32, seed=0, length=5)
    for index in (5, -1):
        with pytest.raises(IndexError):
            dataset[index]
