import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from sample_pictures import HEIGHT, SRGB, WIDTH, eight, noise, smooth

from tsd.errors import UserError
from tsd.files import WRITABLE
from tsd.images import ImageError, Picture, from_array, read_picture
from tsd.writing import PNG_TEXT, check_size, write_picture, written_rows


class TestWriting:
    @pytest.mark.parametrize(
        ("suffix", "channels"),
        [(suffix, channels) for suffix in (".png", ".webp", ".tif", ".tiff") for channels in ((), (2,), (3,), (4,))]
        + [(".bmp", ()), (".bmp", (3,))],
    )
    def test_lossless_formats_return_the_values(self, tmp_path: Path, suffix: str, channels: tuple[int, ...]) -> None:
        assert write_picture(from_array(noise(*channels)), tmp_path / f"a{suffix}") == ()
        again = read_picture(tmp_path / f"a{suffix}")
        expected = from_array(noise(*channels))
        assert np.array_equal(eight(again), eight(expected))
        if expected.alpha is not None:
            assert again.alpha is not None
            assert np.array_equal(again.alpha, expected.alpha)

    def test_gray_is_written_with_one_channel(self, tmp_path: Path) -> None:
        for suffix in (".png", ".jpg", ".tif"):
            write_picture(from_array(smooth()), tmp_path / f"a{suffix}")
            with Image.open(tmp_path / f"a{suffix}") as image:
                assert image.mode == "L"

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    @pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
    def test_sixteen_bit_round_trip(self, tmp_path: Path, suffix: str, channels: tuple[int, ...]) -> None:
        array = noise(*channels, dtype=np.uint16)
        assert write_picture(from_array(array), tmp_path / f"a{suffix}") == ()
        again, expected = read_picture(tmp_path / f"a{suffix}"), from_array(array)
        assert again.depth == 16
        assert np.array_equal(again.color, expected.color)
        assert (again.alpha is None) == (expected.alpha is None)
        if expected.alpha is not None:
            assert np.array_equal(again.alpha, expected.alpha)

    @pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
    def test_formats_without_alpha_lay_it_on_white_and_say_so(self, tmp_path: Path, suffix: str) -> None:
        array = np.zeros((16, 16, 4), np.uint8)
        array[:, 8:, 3] = 255
        notes = write_picture(from_array(array), tmp_path / f"a{suffix}")
        assert "laid on white" in notes[0]
        result = eight(read_picture(tmp_path / f"a{suffix}"))
        assert result[:, :7].min() > 245
        assert result[:, 9:].max() < 10

    def test_sixteen_bit_in_an_eight_bit_format_says_so(self, tmp_path: Path) -> None:
        notes = write_picture(from_array(noise(3, dtype=np.uint16)), tmp_path / "a.webp")
        assert "reduced from 16" in notes[0]

    def test_profiles_are_written(self, tmp_path: Path) -> None:
        for dtype, suffix in (
            (np.uint8, ".png"),
            (np.uint8, ".jpg"),
            (np.uint8, ".webp"),
            (np.uint8, ".tif"),
            (np.uint16, ".png"),
        ):
            given = from_array(noise(3, dtype=dtype))
            picture = Picture(given.color, depth=given.depth, icc_profile=SRGB)
            assert write_picture(picture, tmp_path / f"a{suffix}") == ()
            again = read_picture(tmp_path / f"a{suffix}")
            assert again.icc_profile == SRGB
            assert again.depth == given.depth

    def test_a_profile_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        picture = Picture(from_array(noise(3)).color, depth=16, icc_profile=SRGB)
        assert "colour profile was not kept" in write_picture(picture, tmp_path / "a.tif")[0]

    def test_values_are_rounded_once_and_clipped(self) -> None:
        color = np.array([[[-0.2, 0.4999 / 255, 0.5001 / 255]], [[254.6 / 255, 1.0, 1.7]]], np.float32)
        assert Picture(color).to_uint(8).ravel().tolist() == [0, 0, 1, 255, 255, 255]

    def test_an_unknown_suffix_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"cannot write \.gif"):
            write_picture(from_array(noise(3)), tmp_path / "a.gif")

    def test_what_a_format_cannot_hold_is_an_error_and_leaves_nothing(self, tmp_path: Path) -> None:
        too_wide = Picture(np.zeros((1, 17000, 3), np.float32))  # WebP ends at 16383
        with pytest.raises(ImageError, match="17000x1 image could not be written as WEBP"):
            write_picture(too_wide, tmp_path / "a.webp")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "width"), [("a.webp", 16384), ("a.jpg", 65501), ("a.tif", 10**6), ("a.bmp", 10**6)]
    )
    def test_a_size_that_a_format_cannot_hold_is_refused_before_the_work(self, name: str, width: int) -> None:
        with pytest.raises(ImageError, match="could not be written as"):
            check_size(width, 2000, Path(name))
        check_size(width, 2000, Path("a.png"))
        check_size(1000, 1000, Path(name))

    def test_names_as_long_as_the_file_system_takes(self, tmp_path: Path) -> None:
        for name in ("x" * 251 + ".png", "照" * 83 + ".png"):
            write_picture(from_array(noise(3)), tmp_path / name)
            assert [path.name for path in tmp_path.iterdir()] == [name]
            (tmp_path / name).unlink()

    def test_folders_are_made_and_no_partial_file_is_left(self, tmp_path: Path) -> None:
        write_picture(from_array(noise(3)), tmp_path / "deep" / "er" / "a.png")
        assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a.png"]


def test_every_writable_suffix_is_read_again(tmp_path: Path) -> None:
    for suffix in WRITABLE:
        write_picture(from_array(noise(3)), tmp_path / f"a{suffix}")
        assert read_picture(tmp_path / f"a{suffix}").size == (WIDTH, HEIGHT)


def write_by_rows(picture: Picture, path: Path, step: int = 5, text: str | None = None) -> tuple[str, ...]:
    width, height = picture.size
    with written_rows(path, width, height, text) as writer:
        for top in range(0, height, step):
            alpha = None if picture.alpha is None else picture.alpha[top : top + step]
            rows = Picture(
                picture.color[top : top + step], alpha, picture.gray, picture.depth, icc_profile=picture.icc_profile
            )
            writer.write(rows)
    return writer.notes


class TestRows:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
    def test_give_what_the_picture_gives_in_one_piece(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, dtype: type, channels: tuple[int, ...]
    ) -> None:
        monkeypatch.setattr("tsd.writing._PART_BYTES", 300)  # several parts and strips for this small image
        picture = from_array(noise(*channels, dtype=dtype))
        notes = write_picture(picture, tmp_path / f"whole{suffix}")
        assert write_by_rows(picture, tmp_path / f"rows{suffix}") == notes
        whole, rows = read_picture(tmp_path / f"whole{suffix}"), read_picture(tmp_path / f"rows{suffix}")
        assert np.array_equal(rows.color, whole.color)
        assert (rows.gray, rows.depth, rows.mode, rows.notes) == (whole.gray, whole.depth, whole.mode, whole.notes)
        assert (rows.alpha is None) == (whole.alpha is None)
        assert whole.alpha is None or np.array_equal(rows.alpha, whole.alpha)

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp"])
    def test_a_text_says_how_a_png_was_made(self, tmp_path: Path, suffix: str) -> None:
        for number, dtype in enumerate((np.uint8, np.uint16)):
            picture = replace(from_array(noise(3, dtype=dtype)), icc_profile=SRGB)
            for write in (write_picture, write_by_rows):
                silent, telling = tmp_path / f"{number}{suffix}", tmp_path / f"{number}-text{suffix}"
                write(picture, silent)
                write(picture, telling, text='{"scale": 4}')
                if suffix != ".png":
                    assert telling.read_bytes() == silent.read_bytes()
                    continue
                with Image.open(telling) as image:
                    assert image.info[PNG_TEXT] == '{"scale": 4}'
                assert np.array_equal(read_picture(telling).color, read_picture(silent).color)
                assert read_picture(telling).icc_profile == SRGB

    def test_other_readers_agree(self, tmp_path: Path) -> None:
        for dtype in (np.uint8, np.uint16):
            for channels in (3, 4):
                array = noise(channels, dtype=dtype)
                write_by_rows(from_array(array), tmp_path / "a.png")
                write_by_rows(from_array(array), tmp_path / "a.tif")
                read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
                assert np.array_equal(read[..., [2, 1, 0, 3][:channels]], array)
                assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), array)

    def test_smooth_rows_are_compressed_as_well_as_pillow_does(self, tmp_path: Path) -> None:
        y, x = np.mgrid[0:200, 0:300]
        photo = np.stack([x * y // 300, x + y // 2, 255 - x * 255 // 300], axis=-1).astype(np.uint8)
        write_by_rows(from_array(photo), tmp_path / "a.png", step=64)
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "PNG")
        assert (tmp_path / "a.png").stat().st_size < 1.2 * len(buffer.getvalue())

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    @pytest.mark.parametrize("depth", [8, 16])
    def test_profiles_are_kept(self, tmp_path: Path, suffix: str, depth: int) -> None:
        picture = Picture(from_array(noise(3)).color, depth=depth, icc_profile=SRGB)
        assert write_by_rows(picture, tmp_path / f"a{suffix}") == ()
        again = read_picture(tmp_path / f"a{suffix}")
        assert (again.icc_profile, again.depth) == (SRGB, depth)

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
    def test_an_interruption_leaves_nothing_and_an_older_file_as_it_was(self, tmp_path: Path, suffix: str) -> None:
        def write_half(ending: Exception | KeyboardInterrupt | None) -> None:
            with written_rows(path, WIDTH, HEIGHT) as writer:
                writer.write(from_array(noise(3)[:5]))
                if ending is not None:
                    raise ending

        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"older")
        for ending in (KeyboardInterrupt(), UserError("no room")):
            with pytest.raises(type(ending)):
                write_half(ending)
        with pytest.raises(ValueError, match=f"5 of {HEIGHT} rows"):
            write_half(None)
        assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(path.name, b"older")]

    def test_a_size_that_cannot_be_written_is_refused_before_the_first_row(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ImageError, match="70000x10 image could not be written as JPEG"),
            written_rows(tmp_path / "a.jpg", 70000, 10),
        ):
            pytest.fail("nothing is asked for")
        with pytest.raises(UserError, match="files end at 4 GiB"):
            check_size(24000, 30000, tmp_path / "a.tif", pixel_bytes=6)
        check_size(24000, 30000, tmp_path / "a.tif")
