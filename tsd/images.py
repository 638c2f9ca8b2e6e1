"""Image files read: formats, bit depth, gray, palette, alpha, EXIF orientation, CMYK, colour profiles.

A file becomes a `Picture`: float arrays in [0, 1] plus what must be remembered to write it back as it came (gray, 16
bit, colour profile), or a `Scan`, the same in whole numbers, whose rows are pictures. Everything is decided here once,
so the restorer sees only upright RGB. Restoring and degrading keep a colour profile; training takes pixels for sRGB and
reads by `read_srgb`, which converts from other profiles; scoring compares values as stored. Which files of a folder are
images is decided in `tsd.files.find_images`.

Pillow decodes every file. It cuts 16-bit *colour* to 8 bits, so those files are read a second time by OpenCV, and what
OpenCV read is used only where its upper 8 bits agree with Pillow's reading; where the two disagree (planar TIFF,
premultiplied alpha) or OpenCV cannot read the file, the 8-bit reading stands and the picture carries a note.
"""

import errno
import functools
import math
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, features

from tsd.errors import UserError
from tsd.files import MEGAPIXELS, READABLE, UNREAD

# "JPEG" covers MPO, what Pillow calls a JPEG with a second (preview or stereo) image appended, as many phones write.
_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601, Pillow's gray
NEUTRAL = 2.01 / 255
ROWS = 256
"""Rows of a scan that are looked at together."""
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262
_LOST_READS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
_TEXT_BYTES = 2**26
"""Largest text or colour profile that is unpacked from a PNG; Pillow's own limit of 1 MB refuses sound files."""
_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT")
_SRGB_TOLERANCE = 2
"""A profile that moves no colour by more levels than this is sRGB under another name: nothing is converted."""
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_LIMITS = threading.RLock()

Source = str | Path | bytes
"""An image file, or its content."""
Read = ParamSpec("Read")
Value = TypeVar("Value")

# EXIF orientation -> the operation that sets the picture upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


class ImageError(UserError):
    """One file could not be read or written. Other files are not affected."""


@dataclass(frozen=True)
class Picture:
    """A decoded, upright image.

    Attributes:
        color: (H, W, 3) float32 in [0, 1]; a gray picture has three equal channels.
        alpha: (H, W) float32 in [0, 1], or None.
        gray: whether it is written with one colour channel.
        depth: 8 or 16 bits per channel.
        icc_profile: the embedded colour profile, where it describes these channels.
        notes: messages for the user, e.g. that only the first of three pages was read.
        mode: Pillow's name for the channels of the file, with ";16" where they have 16 bits.
        as_stored: whether the file holds these very pixels, neither turned nor in other colours.
    """

    color: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False
    depth: int = 8
    icc_profile: bytes | None = None
    notes: tuple[str, ...] = ()
    mode: str = "RGB"
    as_stored: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.color.shape[1], self.color.shape[0]

    def is_neutral(self) -> bool:
        """Whether the picture shows shades of gray: its channels differ nowhere by more than two levels of 255."""
        return bool(np.ptp(self.color, axis=2).max(initial=0) <= NEUTRAL)

    def to_uint(self, depth: int) -> np.ndarray:
        """Rounded once to `depth` bits: (H, W) gray, (H, W, 2) gray and alpha, (H, W, 3) or (H, W, 4).

        Raises:
            ImageError: a value is NaN or infinite.
        """
        color = self.color @ LUMA[:, None] if self.gray else self.color
        layers = color if self.alpha is None else np.concatenate([color, self.alpha[..., None]], axis=2)
        require_finite(layers, "the picture")
        levels = 2**depth - 1
        array = np.rint(layers.clip(0, 1).astype(np.float64) * levels).astype(np.uint16 if depth == 16 else np.uint8)
        return array[..., 0] if array.shape[2] == 1 else array

    def to_rgb8(self) -> np.ndarray:
        """(H, W, 3) uint8, without alpha."""
        levels = replace(self, alpha=None).to_uint(8)
        return np.repeat(levels[..., None], 3, axis=2) if levels.ndim == 2 else levels

    def to_image(self) -> Image.Image:
        """Returns an 8-bit Pillow image of mode L, LA, RGB or RGBA, with the colour profile in its `info`."""
        image = Image.fromarray(self.to_uint(8))
        if self.icc_profile:
            image.info["icc_profile"] = self.icc_profile
        return image

    def has_other_colours(self) -> bool:
        """Whether a colour profile other than sRGB belongs to the values."""
        mode = "L" if (self.icc_profile or b"")[16:20] == b"GRAY" else "RGB"
        return self.icc_profile is not None and _to_srgb(self.icc_profile, mode) is not None

    def to_srgb(self) -> "Picture":
        """The picture in sRGB, without a profile; colours of another profile are converted, at 8 bits, with a note."""
        if self.icc_profile is None:
            return self
        bare = replace(self, icc_profile=None)
        mode = "L" if self.icc_profile[16:20] == b"GRAY" else "RGB"
        transform = _to_srgb(self.icc_profile, mode)
        if transform is None:
            return bare
        if isinstance(transform, str):
            return replace(bare, notes=(*self.notes, f"the colour profile is damaged ({transform}): read as sRGB"))
        levels = replace(self, alpha=None, gray=mode == "L").to_uint(8)
        color = np.asarray(ImageCms.applyTransform(Image.fromarray(levels), transform), np.float32) / 255
        if self.gray:
            color = in_gray(color)
        return replace(
            bare,
            color=color,
            depth=8,
            as_stored=False,
            notes=(*self.notes, "converted from its colour profile to sRGB"),
        )


def enlarged(picture: Picture, color: np.ndarray) -> Picture:
    """The picture with restored colours: one in shades of gray stays so, and alpha is enlarged bicubically.

    Alpha is a mask and has no texture to restore. A network may tint a black-and-white photograph.

    Args:
        color: (H', W', 3) float32 in [0, 1], of any size.
    """
    alpha = picture.alpha
    if alpha is not None:
        alpha = resized(alpha, color.shape[1], color.shape[0])
    if picture.is_neutral():
        color = in_gray(color)
    return replace(picture, color=color, alpha=alpha)


def in_gray(color: np.ndarray) -> np.ndarray:
    """(H, W, 3) colours as shades of gray, the luma in all three channels."""
    return np.repeat(color @ LUMA[:, None], 3, axis=2)


def resized(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pillow's bicubic resizing (a = -0.5, antialiased when shrinking) of (H, W) or (H, W, C) floats in [0, 1].

    Each of its two passes ends in [0, 1], as it does for 8 bits.
    """
    layers = values[..., None] if values.ndim == 2 else values
    channels = []
    for channel in np.moveaxis(layers.astype(np.float32, copy=False), 2, 0):
        for size in ((width, channel.shape[0]), (width, height)):
            resampled = Image.fromarray(np.ascontiguousarray(channel)).resize(size, Image.Resampling.BICUBIC)
            channel = np.asarray(resampled).clip(0, 1)
        channels.append(channel)
    return np.stack(channels, axis=2).reshape(height, width, *values.shape[2:])


@dataclass(frozen=True)
class Scan:
    """A decoded, upright image in the whole numbers of its file, which take a quarter of a `Picture`'s memory.

    Attributes:
        levels: (H, W, 1 to 4) uint8, or uint16 where the file has 16 bits per channel. One or three channels, and alpha
            behind them if their number is even.
        gray, icc_profile, notes, mode, as_stored: see `Picture`.
    """

    levels: np.ndarray
    gray: bool = False
    icc_profile: bytes | None = None
    notes: tuple[str, ...] = ()
    mode: str = "RGB"
    as_stored: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.levels.shape[1], self.levels.shape[0]

    @property
    def depth(self) -> int:
        """Bits per channel, 8 or 16."""
        return 8 * self.levels.itemsize

    def rows(self, top: int, bottom: int) -> Picture:
        """The rows top … bottom − 1 as a picture of their own."""
        scaled = self.levels[top:bottom].astype(np.float32) / (2**self.depth - 1)
        channels = scaled.shape[2]
        color = scaled[..., :3] if channels >= 3 else np.repeat(scaled[..., :1], 3, axis=2)
        alpha = scaled[..., -1] if channels in (2, 4) else None
        return Picture(color, alpha, self.gray, self.depth, self.icc_profile, self.notes, self.mode, self.as_stored)

    def picture(self) -> Picture:
        return self.rows(0, self.levels.shape[0])

    def is_neutral(self) -> bool:
        """See `Picture.is_neutral`."""
        height = self.levels.shape[0]
        return all(self.rows(top, top + ROWS).is_neutral() for top in range(0, height, ROWS))


def require_finite(values: np.ndarray, what: str) -> None:
    """Refuses values that no image file can hold.

    Raises:
        ImageError: a value is NaN or infinite.
    """
    broken = values.size - int(np.isfinite(values).sum())
    if broken:
        raise ImageError(f"{what} holds {broken:,} of {values.size:,} values that are NaN or infinite")


def _tried_twice(read: Callable[Read, Value]) -> Callable[Read, Value]:
    """A reader that tries again when the device refused: disks and networks lose single reads, and a sound image would
    count as damaged from then on."""

    @functools.wraps(read)
    def again(*args: Read.args, **options: Read.kwargs) -> Value:
        try:
            return read(*args, **options)
        except ImageError as error:
            if getattr(error.__cause__, "errno", None) not in _LOST_READS:
                raise
            return read(*args, **options)

    return again


def read_picture(source: Source) -> Picture:
    """`read_scan`, in floats."""
    scan = read_scan(source)
    with _faults_named(source):
        return scan.picture()


@_tried_twice
def read_scan(source: Source) -> Scan:
    """Reads a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF file, or HEIC with pillow-heif, whatever its suffix.

    A PNG whose texts or other additions are damaged or too large is read without them.

    Raises:
        ImageError: missing, unreadable, truncated, empty, too large (`tsd.files.megapixels_allowed`), of another
            format, or of a kind that has no defined range (32-bit integers, floating point).
    """
    with _faults_named(source):
        try:
            return _read(source)
        except (ImageError, FileNotFoundError, MemoryError):
            raise
        except Exception as error:
            lean = None if getattr(error, "errno", None) in _LOST_READS else _lean_png(source)
            if lean is None:
                raise
            scan = _read(lean)
            return replace(scan, notes=(*scan.notes, "damaged or very large additions of the PNG were left out"))


def read_srgb(source: Source) -> Picture:
    """`read_picture`, with colours of other profiles converted to sRGB."""
    return read_picture(source).to_srgb()


@_tried_twice
def stored_size(path: Path) -> tuple[int, int]:
    """(width, height) by the file's header, before any orientation is applied.

    Raises:
        ImageError: see `read_picture`.
    """
    with _faults_named(path), _opened(path) as image:
        return image.size


@_tried_twice
def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright picture, see `read_picture`."""
    with _faults_named(path), _opened(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image)[0] >= 5 else (width, height)


@contextmanager
def _faults_named(source: Source) -> Iterator[None]:
    """Makes every error of a decoder an `ImageError` that begins with the file's path."""
    path = None if isinstance(source, bytes) else Path(source)
    where = "" if path is None else f"{path}: "
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"{where}no such file") from error
    except ImageError as error:
        raise ImageError(f"{where}{error}") from error
    except MemoryError as error:
        raise ImageError(f"{where}not enough memory to read it") from error
    except Exception as error:  # decoders raise whatever they meet in a damaged file
        unknown = isinstance(error, Image.UnidentifiedImageError) or "cannot identify" in str(error)
        said = getattr(error, "strerror", None) or str(error)  # of the system, without number and path
        reason = _why_unknown(path) if unknown else said or type(error).__name__
        raise ImageError(f"{where}{reason}") from error


def _why_unknown(path: Path | None) -> str:
    known = "PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF"
    suffix = "" if path is None else path.suffix.lower()
    head = b"?" if path is None else _content(path, 64)
    if not head:
        return "an empty file"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    brand = head[8:12] if head[4:8] == b"ftyp" else b""  # telephones also send HEIC under the name of a JPEG
    if (brand in _HEIC_BRANDS or READABLE.get(suffix) == "HEIF") and "HEIF" not in _formats():
        return "HEIC is read with the package pillow-heif: pip install pillow-heif"
    if (brand in (b"avif", b"avis") or suffix == ".avif") and "AVIF" not in _formats():
        return "this Pillow reads no AVIF: pip install -U Pillow"
    if suffix in UNREAD:
        return f"{suffix} is not read; convert it to PNG or TIFF first"
    return f"not a readable {known} image"


def _read(source: Source) -> Scan:
    with _opened(source) as image:
        if image.format == "PNG" and not all(sound for kind, _, sound in _chunks(_content(source)) if kind == b"IDAT"):
            raise ImageError("damaged: the checksum of its pixels is wrong")  # Pillow looks at those of other chunks
        deep = _is_deep_color(source, image)
        scan = _scan_image(image)
    if not deep:
        return scan
    return replace(_read_at_16_bits(source, scan), mode=f"{scan.mode};16")


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that are tried: Pillow's AVIF where it is built in, HEIF where pillow-heif is installed."""
    found = [*_PILLOW_FORMATS, *(["AVIF"] if features.check("avif") else [])]
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    except ImportError:
        return tuple(found)
    register_heif_opener()
    return (*found, "HEIF")


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """Opens an image under this module's limits in place of Pillow's; they hold until the block ends.

    Raises:
        ImageError: more megapixels than are allowed.
    """
    with _LIMITS:
        before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
        most = _most_pixels(before[0])
        Image.MAX_IMAGE_PIXELS = None
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = _TEXT_BYTES, 4 * _TEXT_BYTES
        try:
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
                if math.prod(image.size) > most:
                    raise ImageError(
                        f"{image.width}x{image.height} is {math.prod(image.size) / 1e6:,.0f} megapixels, and up to "
                        f"{most / 1e6:,.0f} are read, since a decompression bomb unpacks to fill the memory; if it is "
                        f"sound: --max-megapixels {math.ceil(math.prod(image.size) / 1e6)}, or the variable "
                        f"{MEGAPIXELS}"
                    )
                yield image
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


def _most_pixels(pillow_limit: int | None) -> float:
    """The most pixels that are read: what the variable says, else what Pillow takes for a bomb, twice its limit."""
    given = os.environ.get(MEGAPIXELS)
    if given is None:
        return math.inf if pillow_limit is None else 2 * pillow_limit
    try:
        return float(given) * 1e6
    except ValueError as error:
        raise ImageError(f"{MEGAPIXELS} is {given!r}; expected a number of megapixels") from error


def _lean_png(source: Source) -> bytes | None:
    """A PNG without the chunks that a picture does not need or whose checksum is wrong; None for other files."""
    data = _content(source)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, length, kind = [data[:8]], 8, b""
    for kind, chunk, sound in _chunks(data):
        length += len(chunk)
        if kind in _KEPT_CHUNKS and (sound or kind[0] < 97):  # critical chunks, in capitals, stay: Pillow judges them
            kept.append(chunk)
    return b"".join(kept) if length == len(data) or kind == b"IEND" else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """The chunks of a PNG: kind, the whole chunk, and whether its checksum is right."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        sound = end <= len(data) and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        yield data[at + 4 : at + 8], data[at:end], sound
        at = end


def _orientation(image: Image.Image) -> tuple[int, tuple[str, ...]]:
    """The EXIF orientation, 1 if there is none, and a note where the EXIF block is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what the note says
            return int(image.getexif().get(_ORIENTATION, 1)), ()
    except (OSError, MemoryError):
        raise
    except Exception:
        return 1, ("the EXIF block is damaged: the picture is taken as upright",)


def from_image(image: Image.Image) -> Picture:
    """A Pillow image of any mode as a `Picture`: first frame, upright, RGB (CMYK converted through its profile).

    Raises:
        ImageError: modes without a defined range (F, and I beyond 16 bit) or without a conversion (LAB, HSV).
    """
    return _scan_image(image).picture()


def _scan_image(image: Image.Image) -> Scan:
    """See `from_image`."""
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        notes.append(f"only the first of {frames} frames or pages was read")
    image.load()
    profile = image.info.get("icc_profile") or None
    orientation, damaged = _orientation(image)
    notes += damaged
    levels, converted = _decoded(image, profile)
    levels = np.ascontiguousarray(_UPRIGHT.get(orientation, lambda a: a)(levels))
    gray = levels.shape[2] <= 2
    stored = image.mode if levels.itemsize == 1 or ";16" in image.mode else f"{image.mode};16"
    scan = Scan(levels, gray, profile, tuple(notes), stored, orientation not in _UPRIGHT)
    if profile is None:
        return scan
    if converted is not None:
        return replace(scan, icc_profile=None, as_stored=False, notes=(*notes, *converted))
    space = profile[16:20]
    if space == (b"GRAY" if gray else b"RGB "):
        return scan
    if space == b"RGB ":  # of a gray picture: `write_picture` converts, since no format could carry it
        return replace(scan, icc_profile=None) if _to_srgb(profile, "RGB") is None else scan
    shown = space.decode("ascii", "replace").strip()
    return replace(
        scan, icc_profile=None, notes=(*notes, f"a colour profile of {shown} does not fit these channels: left out")
    )


def from_array(array: np.ndarray) -> Picture:
    """A NumPy image as a `Picture`: (H, W), (H, W, 1), 2, 3 or 4 channels; uint8, uint16, or floats in [0, 1]."""
    layers = array[..., None] if array.ndim == 2 else array
    if layers.ndim != 3 or layers.shape[2] not in (1, 2, 3, 4):
        raise UserError(f"an image array has shape (H, W) or (H, W, 1 to 4); found {array.shape}")
    if array.dtype == np.uint8 or array.dtype == np.uint16:
        scaled = layers.astype(np.float32) / np.iinfo(array.dtype).max
    elif np.issubdtype(array.dtype, np.floating):
        scaled = layers.astype(np.float32)
        if scaled.size and not (scaled.min() >= 0 and scaled.max() <= 1):
            raise UserError(f"a float image has values in [0, 1]; found {scaled.min():.4g} to {scaled.max():.4g}")
    else:
        raise UserError(f"an image array has dtype uint8, uint16 or float; found {array.dtype}")
    gray, alpha = layers.shape[2] <= 2, scaled[..., -1] if layers.shape[2] in (2, 4) else None
    color = np.repeat(scaled[..., :1], 3, axis=2) if gray else scaled[..., :3]
    return Picture(color, alpha, gray, depth=16 if array.dtype == np.uint16 else 8)


def _decoded(image: Image.Image, profile: bytes | None) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The pixels, (H, W, 1|2|3|4) uint8 or uint16; notes if the profile was used up, else None."""
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(image)
        if values.size and not (values.min() >= 0 and values.max() <= 65535):
            raise ImageError("32-bit integer images have no defined range; convert to 8 or 16 bit first")
        if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            values = 65535 - values  # "white is zero", which Pillow inverts only for 8 bits
        return values[..., None].astype(np.uint16), None
    if mode == "F":
        raise ImageError("floating-point images have no defined range; convert to 8 or 16 bit first")
    converted = None
    if mode == "CMYK":
        image, converted = _cmyk_to_rgb(image, profile)
    elif mode in ("1", "L") and "transparency" not in image.info:
        image = image.convert("L")
    elif mode in ("1", "L", "LA", "La"):
        image = image.convert("LA")
    elif mode in ("RGBA", "RGBa", "PA") or (mode in ("P", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    elif mode in ("RGB", "RGBX", "P", "YCbCr"):
        image = image.convert("RGB")
    else:
        raise ImageError(f"colour mode {mode} cannot be converted to RGB; convert the file first")
    array = np.asarray(image)
    return (array[..., None] if array.ndim == 2 else array), converted


def _cmyk_to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    """RGB through the profile; through Pillow's plain conversion, with a note, if the profile cannot be used."""
    if not profile:
        return image.convert("RGB"), ()
    try:
        source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        if rgb is not None:
            return rgb, ()
    except (ImageCms.PyCMSError, OSError):
        pass
    return image.convert("RGB"), ("the colour profile is damaged: CMYK was converted without it",)


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> "ImageCms.ImageCmsTransform | str | None":
    """The conversion from a profile of `mode` (L or RGB); None if it is sRGB; a text if the profile is damaged."""
    try:
        source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
        if mode == "L":
            levels = np.arange(256, dtype=np.uint8)[None]
            expected = np.repeat(levels[..., None], 3, axis=2)
        else:
            steps = np.linspace(0, 255, 9).round().astype(np.uint8)
            levels = expected = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        found = np.asarray(ImageCms.applyTransform(Image.fromarray(levels), transform))
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if np.abs(found.astype(int) - expected).max() <= _SRGB_TOLERANCE else transform


def _is_deep_color(source: Source, image: Image.Image) -> bool:
    """Whether the file stores 16 bits per channel where Pillow yields 8."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    if image.format == "PNG":
        return _content(source, 25)[24] == 16  # IHDR: signature 8, chunk head 8, width and height 8, then the depth
    return image.format == "TIFF" and 16 in getattr(image, "tag_v2", {}).get(_BITS, ())


def _content(source: Source, most: int = -1) -> bytes:
    """The first bytes of a file or of its content, by default all."""
    if isinstance(source, bytes):
        return source if most < 0 else source[:most]
    with open(source, "rb") as file:
        return file.read(most)


def _read_at_16_bits(source: Source, scan: Scan) -> Scan:
    """OpenCV's reading of a 16-bit file if it agrees with the 8-bit `scan`, else `scan` with a note."""
    import cv2

    shallow = replace(scan, notes=(*scan.notes, "16-bit colour could not be read in full: read at 8 bits"))
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        array = cv2.imdecode(np.frombuffer(_content(source), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return shallow
    finally:
        cv2.utils.logging.setLogLevel(level)
    if array is None or array.dtype != np.uint16 or array.ndim != 3 or array.shape[2] not in (3, 4):
        return shallow
    array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    if orientation := _png_orientation(source):
        array = _UPRIGHT[orientation](array)
    eight = scan.levels if scan.levels.shape[2] >= 3 else scan.levels[..., [0, 0, 0, 1][: scan.levels.shape[2] + 2]]
    if array.shape != eight.shape or np.abs(np.right_shift(array, 8).astype(np.int16) - eight).max() > 1:
        return shallow
    return replace(scan, levels=np.ascontiguousarray(array))


def _png_orientation(source: Source) -> int | None:
    """The orientation still to be applied: OpenCV turns TIFF upright by itself, but leaves PNG as stored."""
    with _opened(source) as image:
        orientation = _orientation(image)[0] if image.format == "PNG" else None
    return orientation if orientation in _UPRIGHT else None
