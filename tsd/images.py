"""Image files in and out: formats, bit depth, gray, palette, alpha, EXIF orientation, CMYK, colour profiles.

A file becomes a `Picture`: float arrays in [0, 1] plus what must be remembered to write it back as it came (gray, 16
bit, colour profile). Everything is decided here once, so the restorer sees only upright RGB.

Pillow decodes every file. It cuts 16-bit *colour* to 8 bits, so those files are read a second time by OpenCV, and what
OpenCV read is used only where its upper 8 bits agree with Pillow's reading; where the two disagree (planar TIFF,
premultiplied alpha) or OpenCV cannot read the file, the 8-bit reading stands and the picture carries a note.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from tsd.errors import UserError
from tsd.files import atomic_path

READABLE = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
# "JPEG" covers MPO, what Pillow calls a JPEG with a second (preview or stereo) image appended, as many phones write.
_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601, Pillow's gray
_DEEP_FORMATS = ("PNG", "TIFF")
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262

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
    """

    color: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False
    depth: int = 8
    icc_profile: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.color.shape[1], self.color.shape[0]

    def to_uint(self, depth: int) -> np.ndarray:
        """Rounded once to `depth` bits: (H, W) gray, (H, W, 2) gray and alpha, (H, W, 3) or (H, W, 4)."""
        color = self.color @ LUMA[:, None] if self.gray else self.color
        layers = color if self.alpha is None else np.concatenate([color, self.alpha[..., None]], axis=2)
        levels = 2**depth - 1
        array = np.rint(layers.clip(0, 1).astype(np.float64) * levels).astype(np.uint16 if depth == 16 else np.uint8)
        return array[..., 0] if array.shape[2] == 1 else array

    def to_image(self) -> Image.Image:
        """Returns an 8-bit Pillow image of mode L, LA, RGB or RGBA, with the colour profile in its `info`."""
        image = Image.fromarray(self.to_uint(8))
        if self.icc_profile:
            image.info["icc_profile"] = self.icc_profile
        return image


def read_picture(path: str | Path) -> Picture:
    """Reads a PNG, JPEG, WebP, TIFF or BMP file, whatever its suffix.

    Raises:
        ImageError: missing, unreadable, truncated, empty, of another format, or of a kind that has no defined range
            (32-bit integers, floating point).
    """
    path = Path(path)
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as image:
            deep = _is_deep_color(path, image)
            picture = from_image(image)
        if deep:
            picture = _read_at_16_bits(path, picture)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, struct.error, zlib.error) as error:
        reason = "not a readable PNG, JPEG, WebP, TIFF or BMP image" if "cannot identify" in str(error) else str(error)
        raise ImageError(f"{path}: {reason}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}") from error
    return picture


def from_image(image: Image.Image) -> Picture:
    """A Pillow image of any mode as a `Picture`: first frame, upright, RGB (CMYK converted through its profile).

    Raises:
        ImageError: modes without a defined range (F, and I beyond 16 bit) or without a conversion (LAB, HSV).
    """
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        notes.append(f"only the first of {frames} frames or pages was read")
    profile = image.info.get("icc_profile")
    image.load()
    orientation = image.getexif().get(_ORIENTATION, 1)
    array, depth, converted = _decoded(image, profile)
    array = np.ascontiguousarray(_UPRIGHT.get(orientation, lambda a: a)(array))
    gray, alpha = array.shape[2] <= 2, array[..., -1] if array.shape[2] in (2, 4) else None
    color = np.repeat(array[..., :1], 3, axis=2) if gray else array[..., :3]
    if profile and (converted or profile[16:20] != (b"GRAY" if gray else b"RGB ")):
        profile = None
    return Picture(color, alpha, gray, depth, profile, tuple(notes))


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


def write_picture(picture: Picture, path: str | Path) -> tuple[str, ...]:
    """Writes a picture atomically, in the format of the suffix; returns notes on what the format cannot hold.

    PNG and TIFF keep 16 bits; JPEG (quality 95, no chroma subsampling), WebP (lossless) and BMP are 8-bit. JPEG has no
    alpha and most readers ignore BMP's, so for both the picture is laid on white. The 16-bit colour TIFF that OpenCV
    writes carries no colour profile.
    """
    path = Path(path)
    kind = READABLE.get(path.suffix.lower())
    if kind is None:
        raise ImageError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(READABLE)}")
    notes: list[str] = []
    if kind in ("JPEG", "BMP") and picture.alpha is not None:
        alpha = picture.alpha[..., None]
        picture = replace(picture, color=picture.color * alpha + (1 - alpha), alpha=None)
        notes.append(f"{kind} has no alpha: the picture was laid on white")
    depth = picture.depth if kind in _DEEP_FORMATS else 8
    if depth < picture.depth:
        notes.append(f"{kind} holds 8 bits per channel: reduced from 16")
    array = picture.to_uint(depth)
    if depth == 16 and array.ndim == 3:
        if kind == "TIFF" and picture.icc_profile:
            notes.append("the colour profile was not kept: 16-bit colour TIFF cannot carry it here, PNG can")
        data = _encode_deep(array, kind, picture.icc_profile)
    else:
        data = _encode(array, kind, picture.icc_profile)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return tuple(notes)


def _decoded(image: Image.Image, profile: bytes | None) -> tuple[np.ndarray, int, bool]:
    """The pixels, (H, W, 1|2|3|4) float32 in [0, 1], the depth, and whether colours were converted to sRGB."""
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(image).astype(np.float32)
        if values.size and not (values.min() >= 0 and values.max() <= 65535):
            raise ImageError("32-bit integer images have no defined range; convert to 8 or 16 bit first")
        if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            values = 65535 - values  # "white is zero", which Pillow inverts only for 8 bits
        return values[..., None] / 65535, 16, False
    if mode == "F":
        raise ImageError("floating-point images have no defined range; convert to 8 or 16 bit first")
    converted = False
    if mode == "CMYK":
        image, converted = _cmyk_to_rgb(image, profile), True
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
    array = np.asarray(image, dtype=np.float32) / 255
    return (array[..., None] if array.ndim == 2 else array), 8, converted


def _cmyk_to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
            rgb = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            if rgb is not None:
                return rgb
        except (ImageCms.PyCMSError, OSError):  # a damaged profile: use Pillow's plain conversion
            pass
    return image.convert("RGB")


def _is_deep_color(path: Path, image: Image.Image) -> bool:
    """Whether the file stores 16 bits per channel where Pillow yields 8."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24] == 16  # IHDR: signature 8, chunk head 8, width and height 8, then the depth
    return image.format == "TIFF" and 16 in getattr(image, "tag_v2", {}).get(_BITS, ())


def _read_at_16_bits(path: Path, picture: Picture) -> Picture:
    """OpenCV's reading of a 16-bit file if it agrees with the 8-bit `picture`, else `picture` with a note."""
    import cv2

    shallow = replace(picture, notes=(*picture.notes, "16-bit colour could not be read in full: read at 8 bits"))
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return shallow
    finally:
        cv2.utils.logging.setLogLevel(level)
    if array is None or array.dtype != np.uint16 or array.ndim != 3 or array.shape[2] not in (3, 4):
        return shallow
    array = array[..., [2, 1, 0, 3][: array.shape[2]]].astype(np.uint16)
    if path_orientation := _png_orientation(path):
        array = _UPRIGHT[path_orientation](array)
    eight = picture.color if picture.alpha is None else np.dstack([picture.color, picture.alpha])
    if array.shape != eight.shape or np.abs((array >> 8) - eight * 255).max() > 1.5:
        return shallow
    deep = array.astype(np.float32) / 65535
    return replace(picture, color=deep[..., :3], alpha=None if picture.alpha is None else deep[..., 3], depth=16)


def _png_orientation(path: Path) -> int | None:
    """The orientation still to be applied: OpenCV turns TIFF upright by itself, but leaves PNG as stored."""
    with Image.open(path, formats=_PILLOW_FORMATS) as image:
        orientation = image.getexif().get(_ORIENTATION) if image.format == "PNG" else None
    return orientation if orientation in _UPRIGHT else None


def _encode(array: np.ndarray, kind: str, profile: bytes | None) -> bytes:
    image = Image.fromarray(array)
    settings = {
        "PNG": {},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True},
        "TIFF": {"compression": "tiff_lzw"},
        "BMP": {},
    }[kind]
    if profile and kind != "BMP":
        settings["icc_profile"] = profile
    buffer = BytesIO()
    try:
        image.save(buffer, kind, **settings)
    except (OSError, ValueError) as error:
        raise ImageError(f"a {image.width}x{image.height} image could not be written as {kind}: {error}") from error
    return buffer.getvalue()


def _encode_deep(array: np.ndarray, kind: str, profile: bytes | None) -> bytes:
    """Encodes 16-bit images of several channels, which only OpenCV writes (gray with alpha becomes RGB with alpha)."""
    import cv2

    channels = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    done, buffer = cv2.imencode(f".{kind.lower()}", np.ascontiguousarray(array[..., channels]))
    if not done:
        raise ImageError(f"a {array.shape[1]}x{array.shape[0]} 16-bit image could not be written as {kind}")
    data = buffer.tobytes()
    if profile and kind == "PNG":
        body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        data = data[:33] + chunk + data[33:]  # straight after IHDR, where the standard wants it
    return data
