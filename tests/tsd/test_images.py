import errno
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from sample_pictures import HEIGHT, SRGB, WIDTH, eight, noise, smooth

from tsd.errors import UserError
from tsd.files import megapixels_allowed
from tsd.images import (
    ImageError,
    Picture,
    Scan,
    from_array,
    from_image,
    picture_size,
    read_picture,
    read_scan,
    read_srgb,
    resized,
    stored_size,
)
from tsd.restore.restorer import resize
from tsd.writing import write_picture


class TestReading:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp"])
    def test_lossless_colour(self, tmp_path: Path, suffix: str) -> None:
        Image.fromarray(noise(3)).save(tmp_path / f"a{suffix}")
        picture = read_picture(tmp_path / f"a{suffix}")
        assert np.array_equal(eight(picture), noise(3))
        assert picture.color.dtype == np.float32
        assert (picture.alpha, picture.gray, picture.depth, picture.notes) == (None, False, 8, ())
        assert picture.size == (WIDTH, HEIGHT)

    @pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
    def test_lossy_colour(self, tmp_path: Path, suffix: str) -> None:
        Image.fromarray(smooth(3)).save(tmp_path / f"a{suffix}", quality=95)
        assert np.abs(eight(read_picture(tmp_path / f"a{suffix}")).astype(int) - smooth(3)).mean() < 4

    def test_the_content_decides_not_the_suffix(self, tmp_path: Path) -> None:
        Image.fromarray(noise(3)).save(tmp_path / "a.bmp")
        (tmp_path / "a.bmp").rename(tmp_path / "a.jpg")
        assert np.array_equal(eight(read_picture(tmp_path / "a.jpg")), noise(3))

    def test_gray(self, tmp_path: Path) -> None:
        Image.fromarray(noise()).save(tmp_path / "a.png")
        picture = read_picture(tmp_path / "a.png")
        assert picture.gray
        assert picture.color.shape == (HEIGHT, WIDTH, 3)
        assert np.array_equal(eight(picture)[..., 1], noise())

    def test_one_bit(self, tmp_path: Path) -> None:
        Image.fromarray(noise()).convert("1").save(tmp_path / "a.png")
        assert set(np.unique(eight(read_picture(tmp_path / "a.png")))) == {0, 255}

    def test_palette(self, tmp_path: Path) -> None:
        image = Image.fromarray(noise(3)).quantize(16)
        image.save(tmp_path / "a.png")
        picture = read_picture(tmp_path / "a.png")
        assert np.array_equal(eight(picture), np.asarray(image.convert("RGB")))
        assert picture.alpha is None

    def test_palette_with_a_transparent_entry(self, tmp_path: Path) -> None:
        image = Image.fromarray(noise(3)).quantize(16)
        image.save(tmp_path / "a.png", transparency=3)
        alpha = read_picture(tmp_path / "a.png").alpha
        assert alpha is not None
        assert np.array_equal(alpha == 0, np.asarray(image) == 3)

    @pytest.mark.parametrize("channels", [2, 4])
    def test_alpha(self, tmp_path: Path, channels: int) -> None:
        Image.fromarray(noise(channels)).save(tmp_path / "a.png")
        picture = read_picture(tmp_path / "a.png")
        assert picture.gray == (channels == 2)
        assert picture.alpha is not None
        assert np.array_equal(np.rint(picture.alpha * 255), noise(channels)[..., -1])
        assert np.array_equal(eight(picture)[..., 0], noise(channels)[..., 0])

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_a_colour_declared_transparent(self, tmp_path: Path, mode: str) -> None:
        image = Image.new(mode, (9, 9), 0)
        image.putpixel((4, 4), 255 if mode == "L" else (255, 255, 255))
        image.save(tmp_path / "a.png", transparency=0 if mode == "L" else (0, 0, 0))
        alpha = read_picture(tmp_path / "a.png").alpha
        assert alpha is not None
        assert alpha.sum() == 1

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    def test_sixteen_bit_gray(self, tmp_path: Path, suffix: str) -> None:
        Image.fromarray(noise(dtype=np.uint16)).save(tmp_path / f"a{suffix}")
        picture = read_picture(tmp_path / f"a{suffix}")
        assert (picture.depth, picture.gray) == (16, True)
        assert np.array_equal(picture.to_uint(16), noise(dtype=np.uint16))

    @pytest.mark.parametrize("options", [{"byteorder": ">"}, {"photometric": "miniswhite"}])
    def test_sixteen_bit_gray_tiff_variants(self, tmp_path: Path, options: dict[str, str]) -> None:
        tifffile.imwrite(tmp_path / "a.tif", noise(dtype=np.uint16), **options)
        expected = noise(dtype=np.uint16)
        expected = 65535 - expected if "photometric" in options else expected
        assert np.array_equal(read_picture(tmp_path / "a.tif").to_uint(16), expected)

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_sixteen_bit_colour_is_read_in_full(self, tmp_path: Path, suffix: str, channels: int) -> None:
        array = noise(channels, dtype=np.uint16)
        if suffix == ".png":
            cv2.imwrite(str(tmp_path / "a.png"), array[..., [2, 1, 0, 3][:channels]])
        else:
            extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
            tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", compression="zlib", **extra)
        picture = read_picture(tmp_path / f"a{suffix}")
        assert picture.depth == 16
        assert picture.notes == ()
        assert np.array_equal(picture.to_uint(16), array)

    @pytest.mark.parametrize("kind", ["planar", "premultiplied"])
    def test_sixteen_bit_colour_that_the_two_readers_see_differently_is_read_at_eight(
        self, tmp_path: Path, kind: str
    ) -> None:
        array = noise(3, dtype=np.uint16)
        if kind == "planar":
            tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(array, -1, 0), photometric="rgb", planarconfig="separate")
        else:
            array = np.dstack([array, noise(dtype=np.uint16)])
            tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["assocalpha"])
        picture = read_picture(tmp_path / "a.tif")
        assert picture.depth == 8
        assert "read at 8 bits" in picture.notes[0]

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
    def test_exif_orientation_is_applied(self, tmp_path: Path, suffix: str, orientation: int) -> None:
        corners = Image.new("RGB", (16, 8))
        corners.paste((255, 0, 0), (0, 0, 8, 4))
        corners.paste((0, 255, 0), (8, 0, 16, 4))
        corners.paste((0, 0, 255), (0, 4, 8, 8))
        exif = Image.Exif()
        exif[0x0112] = orientation
        corners.save(tmp_path / f"a{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
        # By the EXIF standard, where the stored top-left, top-right and bottom-left corners belong.
        top_left, top_right, bottom_left = {
            1: ("tl", "tr", "bl"), 2: ("tr", "tl", "br"), 3: ("br", "bl", "tr"), 4: ("bl", "br", "tl"),
            5: ("tl", "bl", "tr"), 6: ("tr", "br", "tl"), 7: ("br", "tr", "bl"), 8: ("bl", "tl", "br"),
        }[orientation]  # fmt: skip
        color = read_picture(tmp_path / f"a{suffix}").color
        assert color.shape == ((8, 16, 3) if orientation < 5 else (16, 8, 3))
        at = {"tl": color[1, 1], "tr": color[1, -2], "bl": color[-2, 1], "br": color[-2, -2]}
        assert (at[top_left].argmax(), at[top_right].argmax(), at[bottom_left].argmax()) == (0, 1, 2)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_exif_orientation_of_sixteen_bit_colour(self, tmp_path: Path, suffix: str, orientation: int) -> None:
        shallow, deep = tmp_path / f"shallow{suffix}", tmp_path / f"deep{suffix}"
        array = noise(3, dtype=np.uint16)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray((array >> 8).astype(np.uint8)).save(shallow, exif=exif)
        if suffix == ".tif":
            tifffile.imwrite(deep, array, photometric="rgb", extratags=[(0x0112, 3, 1, orientation, True)])
        else:
            plain = cv2.imencode(".png", array[..., ::-1])[1].tobytes()
            body = b"eXIf" + exif.tobytes()[6:]  # without the JPEG prefix "Exif\0\0"
            chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
            deep.write_bytes(plain[:33] + chunk + plain[33:])
        picture = read_picture(deep)
        assert np.abs(picture.color * 65535 // 256 - eight(read_picture(shallow))).max() <= 1
        assert picture.depth == 16

    def test_cmyk_without_profile(self, tmp_path: Path) -> None:
        Image.new("CMYK", (20, 20), (255, 0, 0, 0)).save(tmp_path / "a.tif")
        Image.new("CMYK", (20, 20), (255, 0, 0, 0)).save(tmp_path / "a.jpg")
        for name in ("a.tif", "a.jpg"):
            picture = read_picture(tmp_path / name)
            assert np.abs(eight(picture)[10, 10].astype(int) - [0, 255, 255]).max() < 4
            assert picture.icc_profile is None

    def test_cmyk_with_a_damaged_profile_is_still_read(self, tmp_path: Path) -> None:
        Image.new("CMYK", (20, 20), (0, 255, 0, 0)).save(tmp_path / "a.tif", icc_profile=b"no profile" * 20)
        assert np.array_equal(eight(read_picture(tmp_path / "a.tif"))[0, 0], [255, 0, 255])

    def test_a_profile_of_these_channels_is_kept_another_dropped(self, tmp_path: Path) -> None:
        Image.fromarray(noise(3)).save(tmp_path / "rgb.png", icc_profile=SRGB)
        Image.fromarray(noise()).save(tmp_path / "gray.png", icc_profile=SRGB)
        assert read_picture(tmp_path / "rgb.png").icc_profile == SRGB
        assert read_picture(tmp_path / "gray.png").icc_profile is None

    @pytest.mark.parametrize("suffix", [".tif", ".webp", ".png"])
    def test_of_several_frames_the_first_with_a_note(self, tmp_path: Path, suffix: str) -> None:
        frames = [Image.new("RGB", (9, 9), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
        picture = read_picture(tmp_path / f"a{suffix}")
        assert picture.color[4, 4].argmax() == 0
        assert "first of 3" in picture.notes[0]


class TestUnreadable:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
    def test_truncated(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(big).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=str(path)):
            read_picture(path)

    def test_truncated_sixteen_bit(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "a.png"), noise(3, dtype=np.uint16))
        (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:600])
        with pytest.raises(ImageError, match="truncated"):
            read_picture(tmp_path / "a.png")

    @pytest.mark.parametrize("content", [b"not an image", b"GIF89a" + bytes(30), b"<html>404</html>"])
    def test_no_image(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.png: "):
            read_picture(tmp_path / "a.png")

    def test_an_empty_file_and_what_is_not_read_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "a.cr2").write_bytes(b"II*\0")
        with pytest.raises(ImageError, match="an empty file"):
            read_picture(tmp_path / "a.png")
        with pytest.raises(ImageError, match=r"a\.cr2: "):
            read_picture(tmp_path / "a.cr2")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="no such file"):
            read_picture(tmp_path / "a.png")

    @pytest.mark.parametrize("read", [read_picture, stored_size, picture_size])
    def test_a_read_that_the_device_lost_is_tried_once_more(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]
    ) -> None:
        Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(tmp_path / "a.png")
        sound, lost, opened = str(read(tmp_path / "a.png")), [errno.EIO], Image.open

        def losing(*args: Any, **options: Any) -> Any:
            if lost:
                raise OSError(lost.pop(), "lost")
            return opened(*args, **options)

        monkeypatch.setattr(Image, "open", losing)
        assert str(read(tmp_path / "a.png")) == sound
        lost[:] = [errno.EIO, errno.EIO]
        with pytest.raises(ImageError, match=r"a\.png: lost"):
            read(tmp_path / "a.png")
        assert not lost

    def test_floating_point_has_no_range(self, tmp_path: Path) -> None:
        Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(ImageError, match="convert to 8 or 16 bit"):
            read_picture(tmp_path / "a.tif")

    def test_32_bit_integers_have_no_range(self) -> None:
        with pytest.raises(ImageError, match="convert to 8 or 16 bit"):
            from_image(Image.fromarray(np.full((9, 9), 70000, np.int32)))

    def test_lab_has_no_conversion(self, tmp_path: Path) -> None:
        Image.new("LAB", (9, 9)).save(tmp_path / "a.tif")
        with pytest.raises(ImageError, match="colour mode LAB"):
            read_picture(tmp_path / "a.tif")

    def test_a_decompression_bomb_is_one_bad_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("L", (60, 60)).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(ImageError, match="decompression bomb"):
            read_picture(tmp_path / "a.png")


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    """A chunk of a PNG, on request with a wrong checksum."""
    checksum = zlib.crc32(kind + body) ^ (0 if sound else 1)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunks(path: Path, *chunks: bytes) -> Path:
    """A PNG with further chunks after its head, and again before its end."""
    Image.fromarray(noise(3)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"".join(chunks) + data[33:-12] + b"".join(chunks) + data[-12:])
    return path


def other_profile(size: int = 0) -> bytes:
    """An RGB profile that is not sRGB: its red and green primaries are exchanged; on request padded to a size."""
    data = bytearray(SRGB)
    tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    red, green = (slice(tags[name] + 4, tags[name] + 12) for name in (b"rXYZ", b"gXYZ"))
    data[red], data[green] = data[green], data[red]
    data += bytes(max(size - len(data), 0))
    data[:4] = len(data).to_bytes(4, "big")
    return bytes(data)


class TestAdditions:
    """Metadata that is large or damaged costs no sound picture."""

    @pytest.mark.parametrize(
        "addition",
        [
            chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(3_000_000))),
            chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
            chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(80_000_000))),
            chunk(b"zTXt", b"note\0\x07" + b"no known compression"),
            chunk(b"tEXt", b"note\0text", sound=False),
            chunk(b"tIME", b"\0"),
            chunk(b"gAMA", b""),
            chunk(b"pHYs", b"short"),
        ],
        ids=["big zTXt", "big iTXt", "huge zTXt", "unknown compression", "checksum", "tIME", "gAMA", "pHYs"],
    )
    def test_a_png_is_read_whatever_its_texts(self, tmp_path: Path, addition: bytes) -> None:
        assert np.array_equal(eight(read_picture(with_chunks(tmp_path / "a.png", addition))), noise(3))

    def test_a_damaged_image_stays_damaged(self, tmp_path: Path) -> None:
        path = with_chunks(tmp_path / "a.png", chunk(b"tEXt", b"note\0text", sound=False))
        data = bytearray(path.read_bytes())
        data[data.index(b"IDAT") + 20] ^= 255
        path.write_bytes(data)
        with pytest.raises(ImageError, match=r"a\.png: "):
            read_picture(path)

    def test_a_large_profile_is_kept(self, tmp_path: Path) -> None:
        profile = other_profile(2_000_000)
        Image.fromarray(noise(3)).save(tmp_path / "a.png", icc_profile=profile)
        assert read_picture(tmp_path / "a.png").icc_profile == profile

    def test_a_damaged_exif_block_leaves_the_picture_as_stored(self, tmp_path: Path) -> None:
        Image.fromarray(smooth(3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0no TIFF at all")
        picture = read_picture(tmp_path / "a.jpg")
        assert picture.size == (WIDTH, HEIGHT)


class TestLargeImages:
    def test_the_limit_is_named_and_can_be_raised(self, tmp_path: Path) -> None:
        Image.new("L", (60, 50)).save(tmp_path / "a.png")
        with megapixels_allowed(0.002):
            for read in (read_picture, read_srgb, stored_size, picture_size):
                with pytest.raises(ImageError, match=r"60x50 is 0 megapixels.*--max-megapixels 1"):
                    read(tmp_path / "a.png")
            with megapixels_allowed(0.003):
                assert read_picture(tmp_path / "a.png").size == (60, 50)
        assert read_picture(tmp_path / "a.png").size == (60, 50)

    def test_a_limit_that_is_none(self) -> None:
        with pytest.raises(UserError, match="--max-megapixels is -1"), megapixels_allowed(-1):
            pass

    def test_a_photograph_of_200_megapixels_is_refused_unless_it_is_allowed(self, tmp_path: Path) -> None:
        Image.new("1", (20000, 10000)).save(tmp_path / "a.png")
        with pytest.raises(ImageError, match=r"200 megapixels, and up to 179 are read.*--max-megapixels 200"):
            stored_size(tmp_path / "a.png")
        with megapixels_allowed(200):
            assert stored_size(tmp_path / "a.png") == (20000, 10000)


class TestOtherFormats:
    @pytest.mark.parametrize(
        ("suffix", "kind"), [(".jfif", "JPEG"), (".jpe", "JPEG"), (".gif", "GIF"), (".avif", "AVIF")]
    )
    def test_pillow_reads_them(self, tmp_path: Path, suffix: str, kind: str) -> None:
        flat = Image.new("RGB", (16, 12), (200, 60, 30))
        flat.save(tmp_path / f"a{suffix}", kind)
        assert np.abs(eight(read_picture(tmp_path / f"a{suffix}")).astype(int) - (200, 60, 30)).max() <= 4

    def test_heic_is_read_or_says_what_is_needed(self, tmp_path: Path) -> None:
        flat = Image.new("RGB", (64, 48), (200, 60, 30))
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            for name in ("a.heic", "a.jpg"):
                (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
                with pytest.raises(ImageError, match="pip install pillow-heif"):
                    read_picture(tmp_path / name)
            return
        register_heif_opener()
        flat.save(tmp_path / "a.heic", "HEIF", quality=95)
        assert np.abs(eight(read_picture(tmp_path / "a.heic")).astype(int) - (200, 60, 30)).max() <= 4


class TestColourProfiles:
    def test_srgb_under_any_name_changes_nothing(self, tmp_path: Path) -> None:
        Image.fromarray(noise(3)).save(tmp_path / "a.png", icc_profile=SRGB)
        picture = read_srgb(tmp_path / "a.png")
        assert np.array_equal(eight(picture), noise(3))
        assert (picture.icc_profile, picture.notes, picture.as_stored) == (None, (), True)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
    def test_another_profile_is_converted(self, tmp_path: Path, suffix: str) -> None:
        red = Image.new("RGB", (9, 9), (250, 5, 5))
        settings = {"lossless": True} if suffix == ".webp" else {}
        red.save(tmp_path / f"a{suffix}", icc_profile=other_profile(), **settings)
        picture = read_srgb(tmp_path / f"a{suffix}")
        assert picture.color[4, 4].argmax() == 1  # what this profile calls red is green
        assert picture.icc_profile is None
        assert "converted" in picture.notes[0]
        assert not picture.as_stored

    def test_gray_with_a_profile_of_colours_is_converted_and_stays_gray(self, tmp_path: Path) -> None:
        Image.fromarray(noise()).save(tmp_path / "a.png", icc_profile=other_profile())
        picture = read_picture(tmp_path / "a.png")
        assert np.array_equal(eight(picture)[..., 0], noise())  # as stored, for those who compare values
        converted = picture.to_srgb()
        assert (converted.icc_profile, converted.gray, picture.has_other_colours()) == (None, True, True)
        assert np.ptp(converted.color, axis=2).max() == 0
        assert "converted" in write_picture(picture, tmp_path / "b.png")[0]  # a gray file cannot carry it
        assert read_picture(tmp_path / "b.png").icc_profile is None

    def test_what_cannot_be_used_is_told(self, tmp_path: Path) -> None:
        damaged = SRGB[:200] + bytes(len(SRGB) - 200)
        Image.fromarray(noise(3)).save(tmp_path / "a.png", icc_profile=damaged)
        assert "damaged" in read_srgb(tmp_path / "a.png").notes[0]
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        Image.fromarray(noise(3)).save(tmp_path / "b.png", icc_profile=lab)
        assert "does not fit these channels" in read_picture(tmp_path / "b.png").notes[0]

    def test_bmp_holds_no_profile_and_gets_converted_colours(self, tmp_path: Path) -> None:
        picture = Picture(np.full((9, 9, 3), (1, 0, 0), np.float32), icc_profile=other_profile())
        assert "converted" in write_picture(picture, tmp_path / "a.bmp")[0]
        assert read_picture(tmp_path / "a.bmp").color[4, 4].argmax() == 1


class TestNotFinite:
    """NaN and infinity become no picture."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
    def test_one_value_is_enough(self, tmp_path: Path, value: float, suffix: str) -> None:
        color = np.full((9, 9, 3), 0.5, np.float32)
        color[4, 4, 1] = value
        for picture in (Picture(color), Picture(color, gray=True), Picture(color, depth=16)):
            with pytest.raises(ImageError, match="NaN or infinite"):
                write_picture(picture, tmp_path / f"a{suffix}")
        assert list(tmp_path.iterdir()) == []

    def test_alpha_and_pillow_images_too(self) -> None:
        color, alpha = np.zeros((9, 9, 3), np.float32), np.full((9, 9), np.nan, np.float32)
        with pytest.raises(ImageError, match="81 of 324 values"):
            Picture(color, alpha).to_image()


class TestScans:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_rows_are_those_of_the_picture(self, tmp_path: Path, dtype: type) -> None:
        write_picture(from_array(noise(4, dtype=dtype)), tmp_path / "a.png")
        scan, picture = read_scan(tmp_path / "a.png"), read_picture(tmp_path / "a.png")
        assert scan.levels.dtype == dtype
        assert np.array_equal(scan.levels, noise(4, dtype=dtype))
        rows = scan.rows(3, 8)
        assert np.array_equal(rows.color, picture.color[3:8])
        assert picture.alpha is not None
        assert np.array_equal(rows.alpha, picture.alpha[3:8])
        assert rows.depth == picture.depth == 8 * np.dtype(dtype).itemsize

    def test_one_coloured_pixel_anywhere_is_not_neutral(self) -> None:
        levels = np.full((600, 5, 3), 90, np.uint8)
        levels[::2] += np.array([0, 2, 1], np.uint8)
        assert Scan(levels).is_neutral()
        levels[598, 4, 1] += 1
        assert not Scan(levels).is_neutral()


class TestArrays:
    def test_floats_are_taken_as_they_are(self) -> None:
        array = np.random.default_rng(0).random((5, 6, 3))
        assert np.allclose(from_array(array).color, array)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 4, 5), np.uint8), "found \\(4, 4, 5\\)"),
            (np.zeros(4, np.uint8), "found \\(4,\\)"),
            (np.full((4, 4), 255.0), "values in \\[0, 1\\]; found 255"),
            (np.full((4, 4), np.nan), "values in \\[0, 1\\]"),
            (np.zeros((4, 4), np.int64), "found int64"),
        ],
    )
    def test_others_are_refused(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(UserError, match=message):
            from_array(array)

    def test_to_image_keeps_the_profile(self) -> None:
        image = Picture(from_array(noise(3)).color, icc_profile=SRGB).to_image()
        assert image.info["icc_profile"] == SRGB
        assert from_image(image).icc_profile == SRGB


def test_resizing_is_pillows_and_the_restorers() -> None:
    values = np.random.default_rng(0).random((13, 17, 3), dtype=np.float32).round()
    for width, height in ((68, 52), (9, 5), (17, 30)):
        found = resized(values, width, height)
        expected = resize(torch.from_numpy(values).permute(2, 0, 1)[None], (height, width))[0].permute(1, 2, 0)
        assert np.abs(found - expected.numpy()).max() < 1e-5
        eight_bit = Image.fromarray((values * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        assert np.abs(found * 255 - np.asarray(eight_bit)).max() <= 1.01
    assert resized(values[..., 0], 5, 4).shape == (4, 5)
