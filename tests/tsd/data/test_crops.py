import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tsd.data.crops import CropConfig, CropMaker, decode, encode_image, to_tensor, to_uint8
from tsd.data.degrade import FULL, LIGHT, degrade, usm_sharpen
from tsd.data.sources import SourceImage
from tsd.images import ImageError
from tsd.seeds import seed_for

CONFIG = CropConfig(crop=32, mode="random", per_image=3, degradation=LIGHT, usm=False, scale=4, seed=7)


def pattern(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def source(path: Path, array: np.ndarray, name: str = "set/a.png") -> SourceImage:
    Image.fromarray(array).save(path)
    return SourceImage(0, name, path)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_crops_are_windows_and_their_files_hold_target_and_degradation(tmp_path: Path):
    photo = pattern(50, 60)
    done = CropMaker(CONFIG)[source(tmp_path / "a.png", photo)]
    assert [crop.number for crop in done.crops] == [0, 1, 2]
    assert len({(crop.top, crop.left) for crop in done.crops}) == 3
    for crop in done.crops:
        np.testing.assert_array_equal(crop.hr, photo[crop.top : crop.top + 32, crop.left : crop.left + 32])
        np.testing.assert_array_equal(pixels(crop.hr_file), crop.hr)
        lr = degrade(to_tensor(crop.hr), LIGHT, seed_for(7, "degrade", "set/a.png", crop.number))
        np.testing.assert_array_equal(pixels(crop.lr_file), to_uint8(lr))
    assert done.source.picture == {}  # what was read is not sent back


def test_places_depend_on_seed_name_and_number_alone(tmp_path: Path):
    photo = source(tmp_path / "a.png", pattern(80, 90))

    def corners(config: CropConfig, name: str = "set/a.png") -> list[tuple[int, int]]:
        return [(c.top, c.left) for c in CropMaker(config)[dataclasses.replace(photo, name=name)].crops]

    assert corners(dataclasses.replace(CONFIG, per_image=5))[:3] == corners(CONFIG)
    assert corners(CONFIG, "set/b.png") != corners(CONFIG)
    assert corners(dataclasses.replace(CONFIG, seed=8)) != corners(CONFIG)


def test_a_grid_takes_every_whole_crop_from_the_middle(tmp_path: Path):
    grid = dataclasses.replace(CONFIG, mode="grid")
    done = CropMaker(grid)[source(tmp_path / "a.png", pattern(70, 101))]
    assert [(crop.top, crop.left) for crop in done.crops] == [(y, x) for y in (3, 35) for x in (2, 34, 66)]
    exact = CropMaker(grid)[source(tmp_path / "b.png", pattern(32, 64))]
    assert [(crop.top, crop.left) for crop in exact.crops] == [(0, 0), (0, 32)]


def test_usm_sharpens_the_target_which_is_then_degraded(tmp_path: Path):
    photo = np.full((32, 32, 3), 60, np.uint8)
    photo[:, 16:] = 190
    config = dataclasses.replace(CONFIG, usm=True, per_image=1, degradation=FULL)
    (crop,) = CropMaker(config)[source(tmp_path / "a.png", photo)].crops
    np.testing.assert_array_equal(crop.hr, to_uint8(usm_sharpen(to_tensor(photo))))
    assert not np.array_equal(crop.hr, photo)
    lr = degrade(to_tensor(crop.hr), FULL, seed_for(7, "degrade", "set/a.png", 0))
    np.testing.assert_array_equal(pixels(crop.lr_file), to_uint8(lr))


def test_bad_images_have_a_reason_without_a_path(tmp_path: Path):
    make = CropMaker(CONFIG)
    small = make[source(tmp_path / "small.png", pattern(40, 31))]
    assert (small.crops, small.reason) == ((), "31x40 is smaller than the 32x32 crop")
    (tmp_path / "broken.png").write_bytes(b"no image")
    cut = tmp_path / "cut.png"
    Image.fromarray(pattern(64, 64)).save(cut)
    data = cut.read_bytes()[:3000]
    cut.write_bytes(data)
    bad = [tmp_path / "broken.png", cut, tmp_path / "absent.png", {"bytes": data, "path": None}]
    bad += [{"bytes": b"no image", "path": "a.png"}, {"bytes": None, "path": None}, {}, {"path": "zip://a::b.zip"}]
    for picture in bad:
        done = make[SourceImage(0, "x", picture)]  # type: ignore[arg-type]
        assert not done.crops
        assert done.reason
        assert str(tmp_path) not in done.reason
        assert "0x" not in done.reason  # an address would differ from run to run


def test_decoding_turns_upright_and_rounds_16_bits(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(pattern(20, 30))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert decode({"bytes": buffer.getvalue(), "path": None}).shape == (30, 20, 3)
    deep = (np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decode(tmp_path / "deep.png")[..., 1], np.rint(deep / 257))
    with pytest.raises(ImageError, match="holds no image"):
        decode({"bytes": None, "path": None})


def test_tensors_and_files_keep_every_level():
    photo = pattern(33, 18)
    tensor = to_tensor(photo)
    assert (tensor.shape, tensor.dtype) == ((3, 33, 18), torch.float32)
    np.testing.assert_array_equal(to_uint8(tensor), photo)
    np.testing.assert_array_equal(pixels(encode_image(photo)), photo)
